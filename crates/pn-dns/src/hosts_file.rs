//! Names as hosts files, for containers and resolvers that read such.

use core::fmt::Write as _;
use core::net::IpAddr;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use pn_core::{DnsBackend, Name, NetworkId, Report, ZonePlan, ZoneSet};

use crate::directory::{Directory, Form};

/// A directory of hosts files, `pn-UUID.hosts` for each network, kept equal to what is published.
///
/// A file has one line for each address: the name of its container, then those of its type and its app. It is what
/// `/etc/hosts` of a container may be, and what dnsmasq reads with `--hostsdir` or `--addn-hosts`. Files are replaced as those of
/// [`ZoneFile`](crate::ZoneFile) are.
///
/// A hosts file has no way to say that a name exists without addresses, nor how long an answer may be kept.
#[derive(Debug, Clone)]
pub struct HostsFile {
    directory: Arc<Directory<Hosts>>,
}

impl HostsFile {
    /// Makes the publisher of a directory, which is made where there is none. Nothing is opened before the first `publish`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Arc::new(Directory::new(directory.into(), Hosts)) }
    }

    /// Returns the path of a network's file, whether there is one or not.
    #[must_use]
    pub fn path(&self, network: NetworkId) -> PathBuf {
        self.directory.path_of(network)
    }
}

#[async_trait]
impl DnsBackend for HostsFile {
    /// # Panics
    /// Outside a tokio runtime.
    async fn publish(&self, zones: &ZoneSet) -> Report {
        self.directory.publish(zones).await
    }
}

/// The form of hosts(5).
#[derive(Debug)]
struct Hosts;

impl Form for Hosts {
    const SUFFIX: &'static str = ".hosts";
    const COMMENT: char = '#';

    fn write(&self, plan: &ZonePlan, _serial: u32) -> String {
        let mut lines: BTreeMap<IpAddr, Vec<Name>> = BTreeMap::new();
        for (name, addresses) in plan.names() {
            for address in addresses {
                lines.entry(address.into()).or_default().push(name);
                if let Some(prefix) = plan.ipv6 {
                    lines.entry(prefix.address(address).into()).or_default().push(name);
                }
            }
        }
        let mut text = String::new();
        for (address, mut names) in lines {
            // The first name is the one an address is turned into: the container's own.
            names.sort_by_key(|name| core::cmp::Reverse(name.scope()));
            write!(text, "{address}").expect("a string takes everything");
            for name in names {
                write!(text, " {name}").expect("a string takes everything");
            }
            text.push('\n');
        }
        text
    }
}
