#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod answer;
#[cfg(test)]
mod fixture;
pub mod names;
pub mod other_names;
#[cfg(feature = "server")]
pub mod server;
pub mod stub;
mod wire;
pub mod zone;

pub use answer::{View, answer};
pub use names::Names;
pub use other_names::{OtherNames, Transfers};
#[cfg(feature = "server")]
pub use server::{DnsServer, DnsServerBuilder, serve_stream};
pub use zone::{Lookup, Zone};
