//! Upstream: xen/include/public/event_channel.h.
