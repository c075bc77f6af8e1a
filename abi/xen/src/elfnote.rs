//! Upstream: xen/include/public/elfnote.h.
