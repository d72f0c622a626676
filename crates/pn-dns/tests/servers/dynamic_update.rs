//! Zones on BIND and Knot, kept equal to the plan by updates.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use pn_core::{Action, DnsBackend, ErrorKind, NetworkDomain, NetworkId, Report, Subnet, Transport, ZoneSet};
use pn_dns::conformance::{Fidelity, Subject, dns, networks};
use pn_dns::{DynamicUpdate, PeerError, ReverseZone, TsigKey};

use crate::model::{APP, Model, NETWORK};
use crate::support::{self, KEY, Kind, ServedZone, Server, TempDir, command, installed, run};

fn key() -> TsigKey {
    format!("hmac-sha256:{}:{}", KEY.0, KEY.1).parse().unwrap()
}

/// Starts a server with an empty zone for a network, as an operator would write it.
async fn start(kind: Kind, dir: &TempDir, network: NetworkId) -> Server {
    start_with(kind, dir, &[NetworkDomain(network).to_string()]).await
}

async fn start_with(kind: Kind, dir: &TempDir, names: &[String]) -> Server {
    let zone = |name: &String| {
        let text = format!(
            "$ORIGIN {name}.\n@ 3600 SOA ns.example. hostmaster.example. 1 3600 600 86400 3600\n@ 3600 NS ns.example.\n"
        );
        let file = dir.0.join(format!("{name}.{kind:?}"));
        std::fs::write(&file, text).unwrap();
        let more = match kind {
            Kind::Bind => format!("type primary; allow-update {{ key {0}; }}; allow-transfer {{ key {0}; }}; ", KEY.0),
            Kind::Knot => "  acl: with-key\n  zonefile-sync: -1\n".to_owned(),
            Kind::Nsd => unreachable!("NSD takes no updates"),
        };
        ServedZone { name: name.clone(), file, more, primary: None }
    };
    Server::start(kind, dir, &names.iter().map(zone).collect::<Vec<_>>()).await
}

/// A server for each network, each kept by a backend of its own.
#[derive(Debug)]
struct Updated {
    each: BTreeMap<NetworkId, (DynamicUpdate, Server)>,
    _dir: TempDir,
}

impl Updated {
    async fn new(kind: Kind) -> Self {
        let dir = TempDir::new();
        let mut each = BTreeMap::new();
        for network in networks() {
            let server = start(kind, &dir, network).await;
            let backend = DynamicUpdate::new(network, server.address, key()).with_timeout(support::DEADLINE);
            each.insert(network, (backend, server));
        }
        Self { each, _dir: dir }
    }
}

#[async_trait]
impl DnsBackend for Updated {
    async fn publish(&self, zones: &ZoneSet) -> Report {
        let mut report = Report::new(zones.generation);
        for (backend, _) in self.each.values() {
            report.outcomes.extend(backend.publish(zones).await.outcomes);
        }
        report
    }
}

#[async_trait]
impl Subject for Updated {
    fn backend(&self) -> &dyn DnsBackend {
        self
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Whole
    }

    async fn settle(&self, _: &ZoneSet) {}

    async fn ask(&self, network: NetworkId, transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
        support::ask(self.each[&network].1.address, transport, query).await
    }

    async fn send(&self, network: NetworkId, datagram: &[u8]) {
        support::send(self.each[&network].1.address, datagram);
    }
}

#[tokio::test]
async fn bind_kept_by_updates_obeys_the_laws() {
    if installed(&["named"]) {
        dns(&Updated::new(Kind::Bind).await).await;
    }
}

#[tokio::test]
async fn knot_kept_by_updates_obeys_the_laws() {
    if installed(&["knotd"]) {
        dns(&Updated::new(Kind::Knot).await).await;
    }
}

/// Reads a server's zone with `dig`: its address records, and everything else.
fn zone(server: SocketAddr) -> (Vec<String>, Vec<String>) {
    zone_lines(server, &NetworkDomain(NETWORK).to_string()).into_iter().partition(|line| line.contains(" in a "))
}

/// Reads a zone with `dig`, record by record and sorted.
fn zone_lines(server: SocketAddr, zone: &str) -> Vec<String> {
    let (key, port) = (format!("hmac-sha256:{}:{}", KEY.0, KEY.1), server.port().to_string());
    let text = run("dig", &["@127.0.0.1", "-p", &port, "-y", &key, "+onesoa", "+noall", "+answer", zone, "AXFR"]);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(';'));
    let mut lines: Vec<String> =
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase()).collect();
    lines.sort();
    lines
}

/// Changes a server's zone by hand.
fn by_hand(server: SocketAddr, commands: &str) {
    let (key, zone) = (format!("hmac-sha256:{}:{}", KEY.0, KEY.1), NetworkDomain(NETWORK));
    let mut nsupdate = command("nsupdate").args(["-v", "-y", &key]).stdin(Stdio::piped()).spawn().unwrap();
    let script = format!("server 127.0.0.1 {}\nzone {zone}\n{commands}\nsend\n", server.port());
    nsupdate.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(nsupdate.wait().unwrap().success());
}

async fn containers_come_and_go(kind: Kind) {
    let dir = TempDir::new();
    let reverse: Vec<ReverseZone> = ReverseZone::of(Subnet::DEFAULT, None).collect();
    let names = reverse.iter().map(ReverseZone::to_string).chain([NetworkDomain(NETWORK).to_string()]);
    let server = start_with(kind, &dir, &names.collect::<Vec<_>>()).await;
    let of = |zone: &ReverseZone| DynamicUpdate::reverse(NETWORK, *zone, server.address, key());
    let mut backends: Vec<DynamicUpdate> = reverse.iter().map(of).collect();
    backends.push(DynamicUpdate::new(NETWORK, server.address, key()));
    let backends: Vec<DynamicUpdate> =
        backends.into_iter().map(|backend| backend.with_timeout(support::DEADLINE)).collect();
    let mut model = Model::new("web:400 worker:3 idle:0");
    let (mut rng, mut running) = (fastrand::Rng::with_seed(7), BTreeMap::new());
    for round in 0..40 {
        // One container, several, or hundreds.
        let changes = match rng.u8(0..10) {
            0 => 150,
            1..5 => 3,
            _ => 1,
        };
        for _ in 0..changes {
            let index = rng.u32(1..=400);
            match running.remove(&index) {
                Some(container) => model.fail(container),
                None => drop(running.insert(index, model.run("web", index))),
            }
        }
        for backend in &backends {
            let report = backend.publish(&model.zones()).await;
            let failures: Vec<_> =
                report.failures().map(|error| format!("{error}: {:?}", std::error::Error::source(error))).collect();
            assert!(failures.is_empty(), "round {round}: {failures:?}\n{}", server.log());
        }
        let (addresses, others) = zone(server.address);
        assert_eq!(addresses, model.lines(), "round {round}");
        if round % 8 == 7 {
            // D15: in each reverse zone the addresses that are there.
            let lines = reverse.iter().flat_map(|zone| zone_lines(server.address, &zone.to_string()));
            let mut pointers: Vec<String> = lines.filter(|line| line.contains(" in ptr ")).collect();
            pointers.sort();
            assert_eq!(pointers, model.pointer_lines(), "round {round}");
        }
        // SOA, NS, the marker and the three types without containers, or two.
        assert!((5..=6).contains(&others.len()), "{others:?}");
    }
}

#[tokio::test]
async fn bind_follows_containers_that_come_and_go() {
    if installed(&["named", "dig"]) {
        containers_come_and_go(Kind::Bind).await;
    }
}

#[tokio::test]
async fn knot_follows_containers_that_come_and_go() {
    if installed(&["knotd", "dig"]) {
        containers_come_and_go(Kind::Knot).await;
    }
}

async fn what_somebody_changed_is_repaired(kind: Kind) {
    let dir = TempDir::new();
    let server = start(kind, &dir, NETWORK).await;
    let backend = DynamicUpdate::new(NETWORK, server.address, key()).with_timeout(support::DEADLINE);
    let mut model = Model::new("web:5 idle:0");
    for index in 1..=3 {
        model.run("web", index);
    }
    let report = backend.publish(&model.zones()).await;
    assert_eq!(report.outcomes[0].result.as_ref().unwrap(), &Action::Created);
    let good = zone(server.address);
    assert_eq!(good.0, model.lines());
    assert!(good.1.iter().any(|line| line.contains(" 1 in soa ") && line.ends_with(" 1")), "D3: {:?}", good.1);

    let domain = NetworkDomain(NETWORK);
    let changes = [
        format!("add 9.web.{APP}.{domain} 60 A 10.240.0.99"),
        format!("delete 1.web.{APP}.{domain} A"),
        format!("delete {APP}.{domain} A 10.240.0.2"),
        format!("delete web.{APP}.{domain} A\nadd web.{APP}.{domain} 3600 A 10.240.0.1"),
        format!("add evil.{domain} 60 TXT hello\nadd *.{APP}.{domain} 60 CNAME elsewhere.example."),
        format!("delete idle.{APP}.{domain}"),
        format!("add idle.{APP}.{domain} 5 TYPE65280 \\# 60500 {}", "07".repeat(60_500)),
        format!("delete _generation.{domain}"),
        format!("delete _generation.{domain}\nadd _generation.{domain} 60 TXT \"not ours\""),
    ];
    for change in changes {
        // On request, though nothing changed in the plan.
        by_hand(server.address, &change);
        assert_ne!(zone(server.address), good, "{change}");
        let report = backend.repair().await;
        assert!(report.failures().next().is_none(), "{change}: {report:?}");
        let serial_apart = |(addresses, others): (Vec<String>, Vec<String>)| {
            (addresses, others.into_iter().filter(|line| !line.contains(" soa ")).collect::<Vec<_>>())
        };
        assert_eq!(serial_apart(zone(server.address)), serial_apart(good.clone()), "{change}");
        assert!(backend.repair().await.is_unchanged(), "{change}");

        // And by the next publication, which sees another serial number.
        by_hand(server.address, &change);
        let report = backend.publish(&model.zones()).await;
        assert!(report.failures().next().is_none(), "{change}: {report:?}");
        assert_eq!(serial_apart(zone(server.address)), serial_apart(good.clone()), "{change}");
    }
}

#[tokio::test]
async fn what_somebody_changed_in_bind_is_repaired() {
    if installed(&["named", "dig", "nsupdate"]) {
        what_somebody_changed_is_repaired(Kind::Bind).await;
    }
}

#[tokio::test]
async fn what_somebody_changed_in_knot_is_repaired() {
    if installed(&["knotd", "dig", "nsupdate"]) {
        what_somebody_changed_is_repaired(Kind::Knot).await;
    }
}

#[tokio::test]
async fn of_two_publishers_the_older_is_refused() {
    if !installed(&["knotd"]) {
        return;
    }
    let dir = TempDir::new();
    let server = start(Kind::Knot, &dir, NETWORK).await;
    let [first, second] = [1, 2].map(|_| DynamicUpdate::new(NETWORK, server.address, key()));
    let mut model = Model::new("web:5");
    model.run("web", 1);
    let older = model.zones();
    model.run("web", 2);
    let newer = model.zones();
    first.publish(&older).await.into_result().unwrap();
    second.publish(&newer).await.into_result().unwrap();
    let good = zone(server.address);
    // The first knows nothing of the second but what the zone says.
    let refused = first.publish(&older).await.into_result().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Superseded);
    let restarted = DynamicUpdate::new(NETWORK, server.address, key());
    assert_eq!(restarted.publish(&older).await.into_result().unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(zone(server.address), good);
    // With a plan that is no older, each may go on where the other was.
    model.run("web", 3);
    first.publish(&model.zones()).await.into_result().unwrap();
    model.run("web", 4);
    second.publish(&model.zones()).await.into_result().unwrap();
    assert_eq!(zone(server.address).0, model.lines());
}

/// Publishes and returns what went wrong, which must leave the zone as it was.
async fn failure(backend: &DynamicUpdate, set: &ZoneSet) -> (ErrorKind, PeerError) {
    let error = backend.publish(set).await.into_result().unwrap_err();
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<PeerError>().unwrap();
    let clone = if let PeerError::UnknownKey { key } = source {
        PeerError::UnknownKey { key: key.clone() }
    } else if let PeerError::WrongSecret { key } = source {
        PeerError::WrongSecret { key: key.clone() }
    } else if let PeerError::Refused { zone, rcode, hint } = source {
        PeerError::Refused { zone: zone.clone(), rcode: rcode.clone(), hint }
    } else if let PeerError::Unreachable { server, source } = source {
        PeerError::Unreachable { server: *server, source: source.kind().into() }
    } else {
        panic!("{source}")
    };
    (error.kind(), clone)
}

async fn failures_say_what_to_do(kind: Kind) {
    let dir = TempDir::new();
    let server = start(kind, &dir, NETWORK).await;
    let mut model = Model::new("web:5");
    model.run("web", 1);
    let backend = DynamicUpdate::new(NETWORK, server.address, key());
    backend.publish(&model.zones()).await.into_result().unwrap();
    let good = zone(server.address);
    model.run("web", 2);
    let set = model.zones();

    let key_of = |text: &str| text.parse::<TsigKey>().unwrap();
    let wrong = key_of(&format!("hmac-sha256:{}:d3JvbmcgYnV0IGxvbmcgZW5vdWdoIHRvIHBhc3M=", KEY.0));
    let (kind, error) = failure(&DynamicUpdate::new(NETWORK, server.address, wrong), &set).await;
    assert!(matches!(error, PeerError::WrongSecret { .. }), "{error}");
    assert_eq!(kind, ErrorKind::PermissionDenied);

    let unknown = key_of(&format!("hmac-sha256:unknown.:{}", KEY.1));
    let (kind, error) = failure(&DynamicUpdate::new(NETWORK, server.address, unknown), &set).await;
    assert!(matches!(error, PeerError::UnknownKey { .. }), "{error}");
    assert_eq!(kind, ErrorKind::PermissionDenied);

    let mut other = set.clone();
    let network = NetworkId::from_u128(77);
    other.zones.insert(network, set.zones[&NETWORK].clone());
    let (kind, error) = failure(&DynamicUpdate::new(network, server.address, key()), &other).await;
    assert!(matches!(error, PeerError::Refused { .. }), "{error}");
    assert_eq!(kind, ErrorKind::PermissionDenied);

    let nobody = SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let (kind, error) = failure(&DynamicUpdate::new(NETWORK, nobody, key()), &set).await;
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
    assert_eq!(kind, ErrorKind::Io);

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent =
        DynamicUpdate::new(NETWORK, silent.local_addr().unwrap(), key()).with_timeout(Duration::from_millis(50));
    let (kind, error) = failure(&silent, &set).await;
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
    assert_eq!(kind, ErrorKind::Io);

    assert_eq!(zone(server.address), good, "the last good zone stays");
    backend.publish(&set).await.into_result().unwrap();
    assert_eq!(zone(server.address).0, model.lines());
}

#[tokio::test]
async fn failures_with_bind_say_what_to_do() {
    if installed(&["named", "dig"]) {
        failures_say_what_to_do(Kind::Bind).await;
    }
}

#[tokio::test]
async fn failures_with_knot_say_what_to_do() {
    if installed(&["knotd", "dig"]) {
        failures_say_what_to_do(Kind::Knot).await;
    }
}
