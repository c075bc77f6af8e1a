#![no_std]
#![forbid(unsafe_code)]
//! (being written)
