//! Upstream: xen/include/public/grant_table.h.
