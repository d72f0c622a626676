//! How long a node takes until it has a network: the kernel's data plane, beside `ip -batch`, `bridge -batch` and `nft -f` that
//! make the same objects. Rounds are interleaved; medians are printed.
//!
//! It needs root, iproute2 and nftables.

#![expect(clippy::print_stdout, reason = "it is a program, and this is what it says")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_core::*;
use pn_overlay::PrivateKey;
use serde_json::json;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Measures how long a node takes to be programmed.
#[derive(Debug, Parser)]
struct Options {
    /// Containers of the network.
    #[arg(long, default_value_t = 1022)]
    containers: u32,
    /// How many of them are on the node itself.
    #[arg(long, default_value_t = 2)]
    local: u32,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Print JSON instead of lines.
    #[arg(long)]
    json: bool,
}

const NETWORK: NetworkId = NetworkId::from_u128(1);
const APP: AppId = AppId::from_u128(1);
const HERE: NodeId = NodeId::from_u128(1);
const THERE: NodeId = NodeId::from_u128(2);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let mut measured: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..options.rounds {
        for (name, seconds) in measure(&options, round).await? {
            measured.entry(name).or_default().push(seconds * 1e3);
        }
    }
    let medians: BTreeMap<&str, f64> = measured
        .into_iter()
        .filter_map(|(name, mut times)| {
            times.sort_unstable_by(f64::total_cmp);
            Some((name, *times.get(times.len() / 2)?))
        })
        .collect();
    if options.json {
        println!("{}", json!({ "containers": options.containers, "local": options.local, "milliseconds": medians }));
        return Ok(());
    }
    println!("{} containers, {} of them here; medians of {} rounds", options.containers, options.local, options.rounds);
    for (name, milliseconds) in medians {
        println!("{milliseconds:8.2} ms  {name}");
    }
    Ok(())
}

/// Namespaces and files of one round, which end with it.
struct Round {
    prefix: String,
    scratch: PathBuf,
    namespaces: Vec<String>,
}

impl Round {
    fn new(round: usize) -> Result<Self, Error> {
        let prefix = format!("program-{}-{round}", std::process::id());
        let scratch = PathBuf::from(format!("/run/{prefix}"));
        std::fs::create_dir_all(&scratch)?;
        Ok(Self { prefix, scratch, namespaces: Vec::new() })
    }

    fn namespace(&mut self, name: &str) -> Result<String, Error> {
        let name = self.name(name);
        run(&format!("ip netns add {name}"))?;
        Ok(name)
    }

    /// Names a namespace that somebody else makes.
    fn name(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.prefix);
        self.namespaces.push(name.clone());
        name
    }

    fn file(&self, name: &str, text: &str) -> Result<String, Error> {
        let path = self.scratch.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _: Result<String, Error> = run(&format!("ip netns delete {namespace}"));
        }
        let kept = self.scratch.display();
        let _: Result<String, Error> = run(&format!("umount -q {kept}/*/* ; rm -rf {kept}"));
    }
}

async fn measure(options: &Options, round: usize) -> Result<Vec<(&'static str, f64)>, Error> {
    let mut round = Round::new(round)?;
    let key = PrivateKey::from_bytes([1; 32]);
    let mut state = state(&key, options)?;
    let before = state.node_plan(HERE);
    start(&mut state, options.containers, THERE)?;
    let after = state.node_plan(HERE);

    let node = round.namespace("node")?;
    let builder = LinuxBackend::builder(HERE).private_key(key).directory(&round.scratch).tunnel(TunnelKind::UserSpace);
    let backend = builder.namespace(format!("/run/netns/{node}")).build().await?;
    for n in 1..=options.local {
        let namespace = round.namespace(&format!("ours{n}"))?;
        backend.attach(ContainerId::from_u128(n.into()), format!("/run/netns/{namespace}")).await?;
    }
    settle();
    let start = Instant::now();
    backend.apply(&before).await.into_result()?;
    let ours = start.elapsed().as_secs_f64();
    let kept = round.scratch.join(HERE.to_string());
    let rules = [kept.join("transport"), kept.join(NETWORK.to_string())].map(|path| list(&path, "nft list ruleset"));
    let start = Instant::now();
    backend.apply(&after).await.into_result()?;
    let ours_more = start.elapsed().as_secs_f64();
    let [transport_rules, network_rules] = rules;
    let counted = |text: &str| text.lines().filter(|line| line.contains("dst 100.64.0.2")).count();
    let fdb = list(&kept.join(NETWORK.to_string()), "bridge fdb show dev vxlan0")?;
    let programmed = counted(&fdb);

    // The same by batches.
    let (transport, network) = (round.name("transport"), round.name("network"));
    let plan = before.networks.get(&NETWORK).ok_or("the plan has no network")?;
    let mut batches = Batches::default();
    for endpoint in &plan.endpoints {
        let (address, mac) = (endpoint.address, endpoint.mac());
        if endpoint.node == HERE {
            let namespace = round.namespace(&format!("theirs{address}"))?;
            batches.local(address, mac, plan.mtu, &namespace)?;
        } else {
            batches.remote(address, mac)?;
        }
    }
    let setup = format!(
        "tuntap add tunnel0 mode tun\nlink set tunnel0 mtu {} up\naddress add 100.64.0.1/32 dev tunnel0\n\
         route add default dev tunnel0\nlink add vxlan0 mtu {} netns {network} type vxlan id {} local 100.64.0.1 dstport 4789 \
         nolearning df set\n",
        plan.mtu + 50,
        plan.mtu,
        plan.vni
    );
    let bridge = format!(
        "link add br0 mtu {0} type bridge mcast_snooping 0 forward_delay 0\nlink set vxlan0 master br0 up\nlink set br0 up\n\
         link set vxlan0 type bridge_slave learning off flood off mcast_flood off bcast_flood off neigh_suppress on\n\
         address add 169.254.53.53/32 dev br0\nroute add 10.240.0.0/22 dev br0\n",
        plan.mtu
    );
    let namespaces = round.file("namespaces", &format!("netns add {transport}\nnetns add {network}\n"))?;
    let (setup, links) = (round.file("setup", &setup)?, round.file("links", &(bridge + &batches.links))?);
    let fdb = round.file("fdb", &batches.fdb)?;
    let mut script = format!(
        "ip -batch {namespaces}; ip -n {transport} -batch {setup}; ip -n {network} -batch {links}; bridge -n {network} -batch {fdb}\n"
    );
    for (namespace, text) in &batches.inside {
        let file = round.file(namespace, text)?;
        writeln!(script, "ip -n {namespace} -batch {file}")?;
    }
    let rules = [round.file("transport.nft", &transport_rules?)?, round.file("network.nft", &network_rules?)?];
    let filters =
        format!("ip netns exec {transport} nft -f {}; ip netns exec {network} nft -f {}\n", rules[0], rules[1]);
    settle();
    let theirs = timed(&script)?;
    let theirs_filters = timed(&filters)?;
    let last = after.networks.get(&NETWORK).and_then(|network| network.endpoints.last()).ok_or("an empty network")?;
    let mut more = Batches::default();
    more.remote(last.address, last.mac())?;
    let (links, fdb) = (round.file("more-links", &more.links)?, round.file("more-fdb", &more.fdb)?);
    let number =
        u64::from_be_bytes([&[0, 0], &last.mac().octets()[..]].concat().try_into().map_err(|_| "a MAC address")?);
    let element = format!(
        "add element inet private_network senders4 {{ 100.64.0.2 . {} . {number} . {} }}\n",
        plan.vni,
        last.address.to_bits()
    );
    let element = round.file("more-nft", &element)?;
    let theirs_more = timed(&format!("ip -n {network} -batch {links}; bridge -n {network} -batch {fdb}"))?;
    let theirs_more_filters = timed(&format!("ip netns exec {transport} nft -f {element}"))?;

    let theirs_fdb = run(&format!("bridge -n {network} fdb show dev vxlan0"))?;
    if (programmed, counted(&theirs_fdb)) != ((options.containers - options.local) as usize, programmed) {
        return Err(format!("{programmed} and {} forwarding entries", counted(&theirs_fdb)).into());
    }
    backend.apply(&NodePlan::empty(HERE, Generation::new(u64::MAX))).await.into_result()?;
    Ok(vec![
        ("from nothing: ours, with the filter", ours),
        ("from nothing: ip -batch and bridge -batch", theirs),
        ("from nothing: ip -batch, bridge -batch and nft -f", theirs + theirs_filters),
        ("one more: ours, with the filter", ours_more),
        ("one more: ip -batch and bridge -batch", theirs_more),
        ("one more: ip -batch, bridge -batch and nft -f", theirs_more + theirs_more_filters),
    ])
}

/// What `ip` and `bridge` are given.
#[derive(Debug, Default)]
struct Batches {
    links: String,
    fdb: String,
    /// By namespace of a container.
    inside: BTreeMap<String, String>,
}

impl Batches {
    fn remote(&mut self, address: Ipv4Addr, mac: MacAddr) -> Result<(), Error> {
        writeln!(self.links, "neighbour replace {address} lladdr {mac} dev br0 nud permanent")?;
        writeln!(self.fdb, "fdb replace {mac} dev vxlan0 master static")?;
        writeln!(self.fdb, "fdb replace {mac} dev vxlan0 dst 100.64.0.2 self permanent")?;
        Ok(())
    }

    fn local(&mut self, address: Ipv4Addr, mac: MacAddr, mtu: u16, namespace: &str) -> Result<(), Error> {
        let port = format!("p{:08x}", address.to_bits());
        write!(
            self.links,
            "link add {port} mtu {mtu} type veth peer name pn0 address {mac} mtu {mtu} netns {namespace}\n\
             link set {port} master br0 up alias of-{address}\n\
             link set {port} type bridge_slave learning off flood off mcast_flood off bcast_flood off proxy_arp_wifi on\n\
             neighbour replace {address} lladdr {mac} dev br0 nud permanent\n"
        )?;
        writeln!(self.fdb, "fdb replace {mac} dev {port} master static")?;
        let inside = format!(
            "link set pn0 up alias of-{address}\naddress add {address}/22 dev pn0 noprefixroute\nroute add 10.240.0.0/22 dev pn0\n\
             route add 169.254.53.53/32 dev pn0\n"
        );
        self.inside.insert(namespace.to_owned(), inside);
        Ok(())
    }
}

/// Two nodes, and a network that has all its containers but one.
fn state(key: &PrivateKey, options: &Options) -> Result<State, Error> {
    let mut state = State::new(Region::default());
    let mut apply = |change| state.apply(Timestamp::ZERO, change).map(drop);
    for (n, id, public_key) in [(1, HERE, key.public_key()), (2, THERE, PublicKey::new([2; 32]))] {
        let underlay = SocketAddr::from(([192, 0, 2, n], 51820));
        apply(Change::AddNode(Node::new(
            id,
            format!("node-{n}").parse()?,
            underlay,
            [100, 64, 0, n].into(),
            public_key,
        )))?;
    }
    let project = ProjectId::from_u128(1);
    let terms = Terms { accepted_by: "me".parse()?, version: "1".parse()?, accepted_at: Timestamp::ZERO };
    apply(Change::AddProject(Project::new(project, "bench".parse()?)))?;
    apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, NETWORK, terms)))?;
    apply(Change::AddApp(App::new(APP, project, "bench".parse()?)))?;
    apply(Change::Scale { app: APP, formation: format!("web:{}", options.containers).parse()? })?;
    for n in 1..options.containers {
        start(&mut state, n, if n <= options.local { HERE } else { THERE })?;
    }
    Ok(state)
}

fn start(state: &mut State, n: u32, node: NodeId) -> Result<(), Error> {
    let (container, slot) = (ContainerId::from_u128(n.into()), Slot::new(APP, ContainerType::web(), n)?);
    state.apply(Timestamp::ZERO, Change::Start { container, slot, node })?;
    Ok(())
}

/// Lets the kernel take down what the round before has left, which it does in its own time and under the lock of all links.
fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}

/// Runs a command line in a namespace that a backend keeps.
fn list(namespace: &Path, line: &str) -> Result<String, Error> {
    run(&format!("nsenter --net={} {line}", namespace.display()))
}

fn timed(script: &str) -> Result<f64, Error> {
    let start = Instant::now();
    run(script)?;
    Ok(start.elapsed().as_secs_f64())
}

fn run(script: &str) -> Result<String, Error> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
