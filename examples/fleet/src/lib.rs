//! What the programs here share.

#![forbid(unsafe_code)]

pub mod interface;
