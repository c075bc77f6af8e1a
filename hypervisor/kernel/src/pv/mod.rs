//! Paravirtual guests: kernels that know that they run at CPL 3 and ask us for what needs CPL 0.

pub mod bounce;
pub mod emulate;
pub mod hypercall_page;
pub mod levelling;
pub mod mm;
pub mod mode;
pub mod policy;
pub mod trap;
