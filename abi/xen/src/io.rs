//! Shared rings of the console and of xenstore. Upstream: `xen/include/public/io/{console,xs_wire}.h`.

/// `struct xencons_interface`: byte offsets in the console's page.
pub mod console {
    /// `in[1024]`: to the guest.
    pub const IN: usize = 0;
    /// Bytes of `in`.
    pub const IN_SIZE: u32 = 1024;
    /// `out[2048]`: from the guest.
    pub const OUT: usize = 1024;
    /// Bytes of `out`.
    pub const OUT_SIZE: u32 = 2048;
    /// `in_cons`, 32 bits.
    pub const IN_CONS: usize = 3072;
    /// `in_prod`, 32 bits.
    pub const IN_PROD: usize = 3076;
    /// `out_cons`, 32 bits.
    pub const OUT_CONS: usize = 3080;
    /// `out_prod`, 32 bits.
    pub const OUT_PROD: usize = 3084;
}

/// `struct xenstore_domain_interface`: byte offsets in xenstore's page.
pub mod xenstore {
    /// Bytes of either ring (`XENSTORE_RING_SIZE`).
    pub const RING_SIZE: u32 = 1024;
    /// `req[1024]`: from the guest.
    pub const REQ: usize = 0;
    /// `rsp[1024]`: to the guest.
    pub const RSP: usize = 1024;
    /// `req_cons`, 32 bits.
    pub const REQ_CONS: usize = 2048;
    /// `req_prod`, 32 bits.
    pub const REQ_PROD: usize = 2052;
    /// `rsp_cons`, 32 bits.
    pub const RSP_CONS: usize = 2056;
    /// `rsp_prod`, 32 bits.
    pub const RSP_PROD: usize = 2060;
    /// `server_features`, 32 bits.
    pub const SERVER_FEATURES: usize = 2064;
    /// `connection`, 32 bits.
    pub const CONNECTION: usize = 2068;
    /// `error`, 32 bits.
    pub const ERROR: usize = 2072;
}
