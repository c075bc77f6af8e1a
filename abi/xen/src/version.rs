//! Upstream: xen/include/public/version.h.
