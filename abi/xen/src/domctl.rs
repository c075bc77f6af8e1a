//! Upstream: xen/include/public/domctl.h.
