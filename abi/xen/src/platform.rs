//! Upstream: xen/include/public/platform.h.
