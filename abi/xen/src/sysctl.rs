//! Upstream: xen/include/public/sysctl.h.
