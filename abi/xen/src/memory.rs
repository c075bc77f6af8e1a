//! Upstream: xen/include/public/memory.h.
