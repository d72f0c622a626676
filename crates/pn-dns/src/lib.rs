#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod answer;
pub mod cookie;
pub mod counts;
#[cfg(test)]
mod fixture;
pub mod framing;
pub mod names;
pub mod other_names;
pub mod rcode;
#[cfg(feature = "server")]
pub mod server;
pub mod stub;
mod wire;
pub mod zone;

pub use answer::{View, answer};
pub use cookie::{Cookies, Secret};
pub use counts::{Count, Counts};
pub use names::{Freshness, Names};
pub use other_names::{OtherNames, Transfers};
pub use rcode::Rcode;
#[cfg(feature = "server")]
pub use server::{DnsServer, DnsServerBuilder, RateLimit, serve_stream};
pub use zone::{Lookup, Zone};
