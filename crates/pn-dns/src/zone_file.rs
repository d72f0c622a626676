//! Zones as RFC 1035 master files, for a name server that reads them.

use core::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use pn_core::{DnsBackend, NetworkDomain, NetworkId, Report, ZonePlan, ZoneSet};

use crate::directory::{Directory, Form};
use crate::records::records;
use crate::zone::Zone;

/// A directory of master files, `pn-UUID.zone` for each network, kept equal to what is published.
///
/// Each file is a whole zone, `pn-UUID.private-network.internal.`, that BIND, Knot and NSD load as it is; whoever runs the
/// server tells it to load a file again when a report names its network. Give each network a server, a view or an address of
/// its own: an answer depends on who asks, and a server that has two networks' zones answers for both.
///
/// A file is replaced whole (written beside, synced, renamed), and only when its zone changed: the serial number is that of
/// the set that last changed it. Files that somebody changed or removed are written again by the next `publish`; those that
/// are not ours stay as they are. Another process that publishes to the same directory is refused.
///
/// BIND (from 9.18.28) loads no zone with more than 100 records of one name and type where its `max-records-per-type` does not say
/// otherwise.
///
/// A declared type without containers has a record of TYPE65280, which is for private use, with no data: its name exists,
/// so that asking for its address gives no data instead of "no such name" (RFC 8020). PTR records are not written: a
/// reverse zone is one for all networks, and who is asked must know who asks.
#[derive(Debug, Clone)]
pub struct ZoneFile {
    directory: Arc<Directory<Master>>,
}

impl ZoneFile {
    /// Makes the publisher of a directory, which is made where there is none. Nothing is opened before the first `publish`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Arc::new(Directory::new(directory.into(), Master)) }
    }

    /// Returns the path of a network's file, whether there is one or not.
    #[must_use]
    pub fn path(&self, network: NetworkId) -> PathBuf {
        self.directory.path_of(network)
    }
}

#[async_trait]
impl DnsBackend for ZoneFile {
    /// # Panics
    /// Outside a tokio runtime.
    async fn publish(&self, zones: &ZoneSet) -> Report {
        self.directory.publish(zones).await
    }
}

/// The form of RFC 1035 §5.
#[derive(Debug)]
struct Master;

impl Form for Master {
    const SUFFIX: &'static str = ".zone";
    const COMMENT: char = ';';

    fn write(&self, plan: &ZonePlan, serial: u32) -> String {
        let zone = Zone::new(Arc::new(plan.clone()), serial);
        let (ttl, negative) = (zone.ttl(), zone.negative_ttl());
        let mut text = format!(
            "$ORIGIN {:#}\n$TTL {ttl}\n@ {negative} SOA {SERVER} nobody.invalid. {serial} 3600 1200 604800 {negative}\n@ NS {SERVER}\n",
            NetworkDomain(plan.network)
        );
        for (owner, data) in records(plan) {
            writeln!(text, "{owner} {data}").expect("a string takes everything");
        }
        text
    }
}

/// The name server of each zone. Nobody follows it, and unlike a name in the zone it needs no address (RFC 6303 §3).
const SERVER: &str = "localhost.";
