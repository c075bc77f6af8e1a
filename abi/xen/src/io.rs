//! Upstream: xen/include/public/io.h.
