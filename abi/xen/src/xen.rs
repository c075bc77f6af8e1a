//! Upstream: xen/include/public/xen.h.
