#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod answer;
pub mod conformance;
pub mod cookie;
pub mod counts;
#[cfg(feature = "files")]
mod directory;
#[cfg(feature = "dynamic-update")]
pub mod dynamic_update;
#[cfg(test)]
mod fixture;
#[cfg(feature = "forward")]
pub mod forward;
pub mod framing;
#[cfg(feature = "files")]
pub mod hosts_file;
#[cfg(feature = "peers")]
#[cfg_attr(
    not(all(feature = "dynamic-update", feature = "transfer")),
    allow(dead_code, unused_imports, reason = "each of the two needs a part of it")
)]
mod messages;
pub mod names;
pub mod other_names;
pub mod rcode;
#[cfg(any(feature = "files", feature = "peers"))]
#[cfg_attr(
    not(all(feature = "files", feature = "dynamic-update", feature = "transfer")),
    allow(dead_code, reason = "files are text, messages are octets, and each needs a part of it")
)]
mod records;
#[cfg(feature = "server")]
pub mod server;
pub mod stub;
#[cfg(feature = "transfer")]
pub mod transfer;
mod wire;
pub mod zone;
#[cfg(feature = "files")]
pub mod zone_file;

pub use answer::{View, answer};
pub use cookie::{Cookies, Secret};
pub use counts::{Count, Counts};
#[cfg(feature = "files")]
pub use directory::FileError;
#[cfg(feature = "dynamic-update")]
pub use dynamic_update::DynamicUpdate;
#[cfg(feature = "forward")]
pub use forward::{ForwardError, Forwarder};
#[cfg(feature = "files")]
pub use hosts_file::HostsFile;
#[cfg(feature = "peers")]
pub use messages::{PeerError, TsigAlgorithm, TsigKey, TsigKeyError};
pub use names::{Freshness, Names};
pub use other_names::{OtherNames, Transfers, is_for_others};
pub use rcode::Rcode;
#[cfg(feature = "server")]
pub use server::{DnsServer, DnsServerBuilder, RateLimit, serve_stream};
#[cfg(feature = "transfer")]
pub use transfer::{Primary, Secondary};
pub use zone::{Lookup, ReverseZone, Zone};
#[cfg(feature = "files")]
pub use zone_file::ZoneFile;
