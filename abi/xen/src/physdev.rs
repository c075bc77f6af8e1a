//! Upstream: xen/include/public/physdev.h.
