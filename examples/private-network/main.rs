//! Private networks, end to end, as any user: several nodes on loopback, two projects whose networks have the same
//! addresses, an app without a public process behind a firewall, and an intruder.

#![expect(clippy::print_stderr, reason = "it is a program, and this is what it says")]

mod http;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use pn_backend_userspace::{Loopback, Port, Recorder, ResolveError, UserspaceBackend, probe};
use pn_core::*;
use pn_examples::{Check, Report, answers};
use pn_overlay::packet::UdpPacket;
use pn_overlay::{DropReason, vxlan};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::http::Error;

/// Runs private networks on this machine and checks what they promise.
#[derive(Debug, Parser)]
struct Options {
    /// How many nodes to start, on 127.0.0.1, 127.0.0.2 and so on.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: u8,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Keep running after the checks, until Ctrl-C.
    #[arg(long)]
    serve: bool,
}

/// Adds a project and enables its private network.
fn add_project(region: &mut Loopback, label: &str) -> Result<(ProjectId, NetworkId), Error> {
    let project = ProjectId::from_u128(Uuid::new_v4().as_u128());
    let network = NetworkId::from_u128(Uuid::new_v4().as_u128());
    let terms = Terms { accepted_by: "you".parse()?, version: "beta".parse()?, accepted_at: Timestamp::ZERO };
    region.change(Change::AddProject(Project::new(project, label.parse()?)))?;
    region.change(Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)))?;
    Ok((project, network))
}

/// Adds an app and starts its containers, each on the next of these nodes.
fn add_app(
    region: &mut Loopback,
    project: ProjectId,
    label: &str,
    formation: &str,
    nodes: &[usize],
) -> Result<(AppId, Vec<Container>), Error> {
    let app = AppId::from_u128(Uuid::new_v4().as_u128());
    let formation: Formation = formation.parse()?;
    region.change(Change::AddApp(App::new(app, project, label.parse()?)))?;
    region.change(Change::Scale { app, formation: formation.clone() })?;
    let slots = formation.types().flat_map(|(of_type, count)| (1..=count).map(move |n| Slot::new(app, *of_type, n)));
    let mut containers = Vec::new();
    for (slot, node) in slots.zip(nodes.iter().cycle()) {
        let container = ContainerId::from_u128(Uuid::new_v4().as_u128());
        let node = region.nodes()[(node - 1) % region.nodes().len()].id;
        region.change(Change::Start { container, slot: slot?, node })?;
        region.change(Change::Ready(container))?;
        containers.extend(region.state().container(container));
    }
    Ok((app, containers))
}

async fn run(options: &Options) -> Result<bool, Error> {
    let recorder = Arc::new(Recorder::default());
    let mut region = Loopback::start(options.nodes, Some(recorder.clone())).await?;
    let (shop, network) = add_project(&mut region, "shop")?;
    let (my_app, backends) = add_app(&mut region, shop, "my-app", "web:0 my-app-backend:2", &[1, 2])?;
    let (_, firewall) = add_app(&mut region, shop, "waf", "web:1", &[3])?;
    let (_, probes) = add_app(&mut region, shop, "probes", "web:0 probe:3", &[1, 1, 2])?;
    let (elsewhere, foreign) = add_project(&mut region, "elsewhere")?;
    let (_, intruders) = add_app(&mut region, elsewhere, "intruder", "web:2", &[1, 2])?;
    region.apply().await?;
    let ports =
        |of: &[Container]| of.iter().map(|container| region.port(container.id)).collect::<Result<Vec<Port>, _>>();

    // The backends serve HTTP inside the network; nothing public leads to them.
    let requests = Arc::new(AtomicU64::new(0));
    for (container, port) in backends.iter().zip(ports(&backends)?) {
        let page = format!("hello from backend {}, {}\n", container.slot.index(), Uuid::new_v4());
        tokio::spawn(http::serve_backend(port.listen(3000)?, page, requests.clone()));
    }
    // The firewall is public, and reaches them by name.
    let backend = format!("{}:3000", Name::of_type(network, my_app, "my-app-backend".parse()?));
    let public = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = public.local_addr()?;
    tokio::spawn(http::serve_firewall(public, ports(&firewall)?.remove(0), backend));

    let (mut checks, mut bodies) = (Vec::new(), Vec::new());
    let mut note = |name, ok, evidence| checks.push(Check { name, ok, evidence });

    let mut pages = BTreeMap::<_, u32>::new();
    for _ in 0..20 {
        *pages.entry(http::fetch(address, "/").await?).or_default() += 1;
    }
    let good = pages.keys().all(|(status, page)| *status == 200 && page.starts_with("hello from backend"));
    note("public port", good, answers(&pages));
    note("both backends", pages.len() == 2, format!("their shares of 20 requests: {:?}", pages.values()));
    bodies.extend(pages.into_keys().map(|(_, page)| page.into_bytes()));

    let before = requests.load(Ordering::Relaxed);
    let (status, _) = http::fetch(address, "/?id=1%27%20OR%20%271%27=%271").await?;
    let reached = requests.load(Ordering::Relaxed) - before;
    note("hostile request", status == 403 && reached == 0, format!("{status}, and {reached} reached a backend"));

    // From the first probe to the second on the same node, and to the third on another.
    let probe_ports = ports(&probes)?;
    let from = &probe_ports[0];
    for (to, tcp, udp) in [(1, "TCP on one node", "UDP on one node"), (2, "TCP across nodes", "UDP across nodes")] {
        let (to, mut intact) = (&probe_ports[to], (Vec::new(), Vec::new()));
        for (port, len) in [(1, 1), (3000, 1400), (65_535, 60_000)] {
            for body in [500_000, len].map(|len| Uuid::new_v4().into_bytes().into_iter().cycle().take(len).collect()) {
                bodies.push(body);
            }
            let [.., stream, datagram] = &bodies[..] else { unreachable!("two were just pushed") };
            let stream_arrived = timeout(SOON, probe::tcp(from, to, port, stream)).await??;
            let datagram_arrived = timeout(SOON, probe::udp(from, to, port, datagram)).await??;
            intact.0.extend((Sha256::digest(stream_arrived) == Sha256::digest(stream)).then_some(port));
            intact.1.extend((Sha256::digest(datagram_arrived) == Sha256::digest(datagram)).then_some(len));
        }
        note(tcp, intact.0.len() == 3, format!("500000 octets arrived intact on ports {:?}", intact.0));
        note(udp, intact.1.len() == 3, format!("datagrams of {:?} octets arrived intact", intact.1));
    }

    let (plan, intruders) = (region.state().plan(), ports(&intruders)?);
    let (names, mut denied) = (plan.networks[&network].zone.names(), 0);
    for (name, _) in &names {
        let answer = intruders[0].resolve(&name.to_string()).await;
        denied += usize::from(matches!(answer, Err(ResolveError::NoSuchName { .. })));
    }
    note("intruder's names", denied == names.len(), format!("NXDOMAIN for {denied} of the {} names", names.len()));
    // Both networks have the same addresses, so the second backend's is the intruder's second container's, too.
    let before = requests.load(Ordering::Relaxed);
    let found = timeout(SOON, probe::tcp(&intruders[0], &intruders[1], 3000, b"hello?")).await??;
    let reached = requests.load(Ordering::Relaxed) - before;
    let same = intruders[1].address() == backends[1].address && found == b"hello?" && reached == 0;
    let evidence = format!("{}:3000 is the intruder's own, {reached} reached a backend", backends[1].address);
    note("intruder's connection", same, evidence);

    let node = &region.node_of(probes[0].id).ok_or("the probe's node is gone")?.backend;
    let mut forged = vec![0; 28];
    UdpPacket::write_headers(&mut forged, (probes[1].address.into(), 7), (probes[2].address.into(), 7), 0);
    from.send_raw(&forged)?;
    let count = dropped(node, DropReason::ForgedSource).await?;
    let evidence = format!("{} sent as {}: {count} dropped as forged_source", probes[0].address, probes[1].address);
    note("forged source", count == 1, evidence);
    let plain = [&vxlan::header(plan.networks[&network].vni)[..], &[2; 14], &forged].concat();
    tokio::net::UdpSocket::bind("127.0.0.1:0").await?.send_to(&plain, node.local_addr()).await?;
    let count = dropped(node, DropReason::NotWireGuard).await?;
    let evidence = format!("{} octets to {}: {count} dropped as not_wireguard", plain.len(), node.local_addr());
    note("plain VXLAN", count == 1, evidence);

    let wire = recorder.inspect(bodies.iter().map(Vec::as_slice));
    let is_sealed = wire.foreign == 0 && wire.in_clear == 0 && (options.nodes == 1 || wire.sent > 0);
    note("wire", is_sealed, wire.to_string());

    let report = Report {
        state: region.state(),
        networks: &[("shop", network), ("elsewhere", foreign)],
        checks: &checks,
        public_url: &format!("http://{address}/"),
        on: format!("{} nodes", region.nodes().len()),
    };
    let ok = report.print(options.json);
    if options.serve {
        eprintln!("serving http://{address}/ until Ctrl-C");
        tokio::signal::ctrl_c().await?;
    }
    Ok(ok)
}

/// What takes longer on loopback does not come any more.
const SOON: Duration = Duration::from_secs(5);

/// Waits until a node has dropped something for a reason, and tells how often it has.
async fn dropped(backend: &UserspaceBackend, reason: DropReason) -> Result<u64, Error> {
    let counted = async {
        while backend.drops().get(reason) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, counted).await?;
    Ok(backend.drops().get(reason))
}

#[tokio::main]
async fn main() -> ExitCode {
    let ok = run(&Options::parse()).await.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        false
    });
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
