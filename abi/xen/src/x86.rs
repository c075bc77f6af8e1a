//! Upstream: xen/include/public/x86.h.
