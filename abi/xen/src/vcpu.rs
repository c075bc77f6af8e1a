//! Upstream: xen/include/public/vcpu.h.
