//! Upstream: xen/include/public/features.h.
