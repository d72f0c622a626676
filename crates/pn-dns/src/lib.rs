#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod answer;
pub mod conformance;
#[cfg(feature = "files")]
mod directory;
#[cfg(test)]
mod fixture;
#[cfg(feature = "files")]
pub mod hosts_file;
pub mod names;
pub mod other_names;
#[cfg(any(feature = "files", feature = "peers"))]
mod records;
#[cfg(feature = "server")]
pub mod server;
pub mod stub;
mod wire;
pub mod zone;
#[cfg(feature = "files")]
pub mod zone_file;

pub use answer::{View, answer};
#[cfg(feature = "files")]
pub use directory::FileError;
#[cfg(feature = "files")]
pub use hosts_file::HostsFile;
pub use names::Names;
pub use other_names::{OtherNames, Transfers};
#[cfg(feature = "server")]
pub use server::{DnsServer, DnsServerBuilder, serve_stream};
pub use zone::{Lookup, Zone};
#[cfg(feature = "files")]
pub use zone_file::ZoneFile;
