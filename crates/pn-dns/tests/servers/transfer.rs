//! Zones handed to secondaries by the embedded server.

use std::collections::BTreeMap;
use std::iter::once;
use std::net::SocketAddr;
use std::sync::Arc;

use pn_core::{DnsBackend, Name, NetworkDomain, Resolver, Subnet, Transport};
use pn_dns::stub::{self, Reply};
use pn_dns::{DnsServer, Names, Primary, ReverseZone, Secondary, TsigKey};
use tokio::time::Instant;

use crate::model::{Model, NETWORK};
use crate::support::{self, KEY, Kind, ServedZone, Server, TempDir, command, eventually, free_port, installed, run};

fn key() -> TsigKey {
    format!("hmac-sha256:{}:{}", KEY.0, KEY.1).parse().unwrap()
}

/// The embedded server with one secondary.
struct Serving {
    primary: Arc<Primary>,
    names: Arc<Names>,
    server: DnsServer,
}

impl Serving {
    async fn new(at: SocketAddr, secondary: SocketAddr) -> Self {
        let names = Arc::new(Names::new(1));
        let secondary = Secondary { network: NETWORK, address: secondary, key: key() };
        let primary = Arc::new(Primary::new(names.clone(), [secondary]));
        let builder = DnsServer::builder(NETWORK, names.clone()).transfers(primary.clone());
        Self { primary, names, server: builder.bind(at).await.unwrap() }
    }
}

/// Asks a server for the addresses of a name.
async fn addresses(server: SocketAddr, name: &Name) -> Reply {
    let query = stub::query(&name.to_string(), 7).unwrap();
    let reply = support::ask(server, Transport::Tcp, &query).await.expect("a server that runs answers");
    let reply = stub::addresses(7, &name.to_string(), &reply).unwrap();
    if let Reply::Addresses(mut addresses) = reply {
        addresses.sort();
        return Reply::Addresses(addresses);
    }
    reply
}

/// Asks a server with `dig`.
fn ask(server: SocketAddr, name: &str, record_type: &str) -> String {
    let port = server.port().to_string();
    let text = run("dig", &["@127.0.0.1", "-p", &port, "+short", "+tries=1", "+time=5", name, record_type]);
    text.trim_end().to_ascii_lowercase()
}

/// Returns the serial number that a server has of a zone.
fn serial(server: SocketAddr, zone: &str) -> Option<u32> {
    ask(server, zone, "SOA").split_whitespace().nth(2)?.parse().ok()
}

async fn a_secondary_serves_the_same_zone(kind: Kind) {
    let dir = TempDir::new();
    let port = free_port();
    let serving = Serving::new("127.0.0.1:0".parse().unwrap(), ([127, 0, 0, 1], port).into()).await;
    let mut model = Model::new("web:400 worker:3 idle:0");
    serving.primary.publish(&model.zones()).await.into_result().unwrap();
    let at = serving.server.local_addr();
    let forward = ServedZone { primary: Some(at), ..ServedZone::of(NETWORK, dir.0.join("copy.zone")) };
    let names =
        || once(forward.name.clone()).chain(ReverseZone::of(Subnet::DEFAULT, None).map(|zone| zone.to_string()));
    let copies = names().map(|name| ServedZone { file: dir.0.join(&name), name, ..forward.clone() });
    let secondary = Server::start_at(port, kind, &dir, &copies.collect::<Vec<_>>()).await.unwrap();
    let has = |serial_number: u32| names().all(|name| serial(secondary.address, &name) == Some(serial_number));
    let wanted = model.zones().serial();
    eventually("the first transfer", || async { has(wanted) }).await;
    let (mut rng, mut running) = (fastrand::Rng::with_seed(7), BTreeMap::new());
    let mut slowest = std::time::Duration::ZERO;
    for round in 0..6 {
        for _ in 0..[400, 1, 3, 1, 60, 1][round] {
            let index = rng.u32(1..=400);
            match running.remove(&index) {
                Some(container) => model.fail(container),
                None => drop(running.insert(index, model.run("web", index))),
            }
        }
        let since = Instant::now();
        serving.primary.publish(&model.zones()).await.into_result().unwrap();
        let wanted = model.zones().serial();
        eventually(&format!("round {round}"), || async { has(wanted) }).await;
        slowest = slowest.max(since.elapsed());
        let zone = serving.names.zone(NETWORK).unwrap();
        for (name, mut planned) in zone.plan().names().into_iter().step_by(7) {
            planned.sort();
            assert_eq!(addresses(secondary.address, &name).await, Reply::Addresses(planned), "{name}");
        }
        for line in model.pointer_lines().into_iter().step_by(41) {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(ask(secondary.address, words[0], "PTR"), words[4], "D15");
        }
    }
    println!("{kind:?}: a change was there after {slowest:?} at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn nsd_serves_the_same_zone_as_secondary() {
    if installed(&["nsd", "dig"]) {
        a_secondary_serves_the_same_zone(Kind::Nsd).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bind_serves_the_same_zone_as_secondary() {
    if installed(&["named", "dig"]) {
        a_secondary_serves_the_same_zone(Kind::Bind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn knot_serves_the_same_zone_as_secondary() {
    if installed(&["knotd", "dig"]) {
        a_secondary_serves_the_same_zone(Kind::Knot).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_and_kdig_transfer_with_the_key_only() {
    if !installed(&["dig", "kdig"]) {
        return;
    }
    let serving = Serving::new("127.0.0.1:0".parse().unwrap(), "127.0.0.1:9".parse().unwrap()).await;
    let mut model = Model::new("web:400 worker:3 idle:0");
    for index in 1..=400 {
        model.run("web", index);
    }
    serving.primary.publish(&model.zones()).await.into_result().unwrap();
    let port = serving.server.local_addr().port().to_string();
    let (zone, secret) = (NetworkDomain(NETWORK).to_string(), format!("hmac-sha256:{}:{}", KEY.0, KEY.1));
    for program in ["dig", "kdig"] {
        let at = ["@127.0.0.1", "-p", &port];
        let whole = run(program, &[&at[..], &["-y", &secret, &zone, "AXFR"]].concat());
        let mut lines: Vec<String> = whole
            .lines()
            .filter(|line| {
                !line.starts_with(';') && !line.is_empty() && !line.contains(" TSIG ") && !line.contains("\tTSIG\t")
            })
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let soa = format!("{zone}. 1 IN SOA {zone}. nobody.invalid. {} 3600 1200 604800 1", model.zones().serial());
        assert_eq!((lines.first(), lines.last()), (Some(&soa), Some(&soa)), "{program}");
        assert!(lines.contains(&format!("{zone}. 5 IN NS {zone}.")), "{program}");
        assert!(!whole.contains("verify") && !whole.contains("WARNING"), "{program}: {whole}");
        lines.iter_mut().for_each(|line| line.make_ascii_lowercase());
        lines.retain(|line| line.contains(" in a "));
        lines.sort();
        assert_eq!(lines, model.lines(), "{program}");

        // A signed question of another kind is answered, signed.
        let soa = run(program, &[&at[..], &["-y", &secret, "+short", &zone, "SOA"]].concat());
        assert!(soa.contains(&format!(" {} ", model.zones().serial())), "{program}: {soa}");

        for (key, wants) in [
            (None, "REFUSED"),
            (Some("hmac-sha256:tests.:d3JvbmcgYnV0IGxvbmcgZW5vdWdoIHRvIHBhc3M="), "BADSIG"),
            (Some("hmac-sha256:unknown.:d3JvbmcgYnV0IGxvbmcgZW5vdWdoIHRvIHBhc3M="), "BADKEY"),
        ] {
            let mut dig = command(program);
            dig.args(at).args(key.map(|key| ["-y", key]).iter().flatten()).args([&*zone, "AXFR"]);
            let output = dig.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(!text.contains("10.240."), "{program} {key:?}: {text}");
            let said = text.contains(wants) || text.contains("failed") || text.contains("NOTAUTH");
            assert!(said, "{program} {key:?}: {text}");
        }
    }
    assert!(serving.names.resolve(NETWORK, Transport::Udp, &stub::query("example", 1).unwrap()).is_some());
    serving.server.shutdown().await;
}
