//! Upstream: xen/include/public/sched.h.
