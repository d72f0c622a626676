//! The laws of name servers, run against the embedded server and against what reads the files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use pn_core::{DnsBackend, NetworkId, Transport, ZoneSet};
use pn_dns::conformance::{Fidelity, Subject, dns, networks};
use pn_dns::{DnsServer, HostsFile, Names, Primary, Secondary, TsigKey, ZoneFile};
use tokio::sync::Mutex;

use crate::support::{self, Kind, ServedZone, Server, TempDir, installed};

/// The embedded server, one for each network, and what it is fed through.
struct Embedded {
    backend: Arc<dyn DnsBackend>,
    servers: BTreeMap<NetworkId, DnsServer>,
}

#[async_trait]
impl Subject for Embedded {
    fn backend(&self) -> &dyn DnsBackend {
        &*self.backend
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Whole
    }

    async fn settle(&self, _: &ZoneSet) {}

    async fn ask(&self, network: NetworkId, transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
        support::ask(self.servers[&network].local_addr(), transport, query).await
    }

    async fn send(&self, network: NetworkId, datagram: &[u8]) {
        support::send(self.servers[&network].local_addr(), datagram);
    }
}

/// Starts a server for each network.
async fn embedded(names: Arc<Names>, backend: Arc<dyn DnsBackend>) -> Embedded {
    let mut servers = BTreeMap::new();
    for network in networks() {
        let server = DnsServer::builder(network, names.clone()).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        servers.insert(network, server);
    }
    Embedded { backend, servers }
}

#[tokio::test]
async fn the_embedded_server_obeys_the_laws() {
    let names = Arc::new(Names::new(1));
    dns(&embedded(names.clone(), names).await).await;
}

#[tokio::test]
async fn a_primary_with_secondaries_obeys_the_laws() {
    let names = Arc::new(Names::new(1));
    let key = "hmac-sha256:key:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".parse::<TsigKey>().unwrap();
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let secondaries = networks().map(|network| Secondary { network, address, key: key.clone() });
    let primary = Arc::new(Primary::new(names.clone(), secondaries));
    dns(&embedded(names, primary).await).await;
}

/// A directory of files and a server for each network that reads them; it is started again after each publication.
struct Files<B> {
    backend: B,
    reader: Reader,
    dir: TempDir,
    servers: Mutex<BTreeMap<NetworkId, Server>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Zones(Kind),
    Dnsmasq,
}

impl<B> Files<B> {
    fn new(reader: Reader, make: impl FnOnce(std::path::PathBuf) -> B) -> Self {
        let dir = TempDir::new();
        Self { backend: make(dir.0.join("published")), reader, dir, servers: Mutex::default() }
    }

    async fn address(&self, network: NetworkId) -> Option<SocketAddr> {
        self.servers.lock().await.get(&network).map(|server| server.address)
    }
}

trait PathOf {
    fn path_of(&self, network: NetworkId) -> std::path::PathBuf;
}

impl PathOf for ZoneFile {
    fn path_of(&self, network: NetworkId) -> std::path::PathBuf {
        self.path(network)
    }
}

impl PathOf for HostsFile {
    fn path_of(&self, network: NetworkId) -> std::path::PathBuf {
        self.path(network)
    }
}

#[async_trait]
impl<B: DnsBackend + PathOf> Subject for Files<B> {
    fn backend(&self) -> &dyn DnsBackend {
        &self.backend
    }

    fn fidelity(&self) -> Fidelity {
        if self.reader == Reader::Dnsmasq { Fidelity::Addresses } else { Fidelity::Whole }
    }

    async fn settle(&self, set: &ZoneSet) {
        let mut servers = self.servers.lock().await;
        servers.clear();
        for network in networks() {
            let file = self.backend.path_of(network);
            assert_eq!(file.exists(), set.zones.contains_key(&network), "{}", file.display());
            if file.exists() {
                let server = match self.reader {
                    Reader::Dnsmasq => Server::dnsmasq(&self.dir, &file).await,
                    Reader::Zones(kind) => Server::start(kind, &self.dir, &[ServedZone::of(network, file)]).await,
                };
                servers.insert(network, server);
            }
        }
    }

    async fn ask(&self, network: NetworkId, transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
        support::ask(self.address(network).await?, transport, query).await
    }

    async fn send(&self, network: NetworkId, datagram: &[u8]) {
        if let Some(address) = self.address(network).await {
            support::send(address, datagram);
        }
    }
}

#[tokio::test]
async fn zone_files_obey_the_laws_in_nsd() {
    if installed(&["nsd"]) {
        dns(&Files::new(Reader::Zones(Kind::Nsd), ZoneFile::new)).await;
    }
}

#[tokio::test]
async fn zone_files_obey_the_laws_in_knot() {
    if installed(&["knotd"]) {
        dns(&Files::new(Reader::Zones(Kind::Knot), ZoneFile::new)).await;
    }
}

#[tokio::test]
async fn zone_files_obey_the_laws_in_bind() {
    if installed(&["named"]) {
        dns(&Files::new(Reader::Zones(Kind::Bind), ZoneFile::new)).await;
    }
}

#[tokio::test]
async fn hosts_files_obey_the_laws_in_dnsmasq() {
    if installed(&["dnsmasq"]) {
        dns(&Files::new(Reader::Dnsmasq, HostsFile::new)).await;
    }
}
