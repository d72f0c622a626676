//! The model at the size of a region: 1 000 000 containers in 20 000 networks on 10 000 nodes, on one core.

#![expect(clippy::print_stdout, reason = "it is a program, and this is what it says")]

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use clap::Parser;
use comfy_table::{Table, presets};
use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, Name, NetworkId, NetworkRequest, Node, NodeId, NodePlanner,
    Project, ProjectId, PublicKey, Region, Slot, State, Terms, Timestamp,
};
use serde_json::json;

/// Containers of each network.
const PER_NETWORK: u32 = 50;

/// Measures `pn-core` at the size of a region.
#[derive(Debug, Parser)]
struct Options {
    /// How many networks of 50 containers the large region has.
    #[arg(long, default_value_t = 20_000)]
    networks: u32,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn apply(state: &mut State, change: Change) {
    if let Err(error) = state.apply(Timestamp::ZERO, change) {
        panic!("{error}");
    }
}

/// Makes nodes and networks without containers: numbers are ids, from 1.
fn skeleton(nodes: u32, networks: u32) -> State {
    let mut state = State::new(Region::default());
    let label = || "region".parse().expect("a label");
    for n in 1..=nodes {
        let (high, low) = ((n >> 16) as u16, n as u16);
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let underlay = (Ipv4Addr::from_bits(0x0a00_0000 | u32::from(high) << 16 | u32::from(low)), 51820).into();
        let tunnel = Ipv4Addr::from_bits(0x6440_0000 + n).into();
        apply(&mut state, Change::AddNode(Node::new(node(n), label(), underlay, tunnel, PublicKey::new(key))));
    }
    for n in 1..=networks {
        let (project, app) = (ProjectId::from_u128(n.into()), AppId::from_u128(n.into()));
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        apply(&mut state, Change::AddProject(Project::new(project, label())));
        let request = NetworkRequest::new(project, NetworkId::from_u128(n.into()), terms);
        apply(&mut state, Change::EnablePrivateNetwork(request));
        apply(&mut state, Change::AddApp(App::new(app, project, label())));
        apply(&mut state, Change::Scale { app, formation: "web:1000".parse().expect("a formation") });
    }
    state
}

fn node(n: u32) -> NodeId {
    NodeId::from_u128(n.into())
}

/// Returns the id of a container: in no order, as random ones are.
fn container(network: u32, index: u32) -> ContainerId {
    let mixed = (u128::from(network) << 32 | u128::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    ContainerId::from_u128(mixed)
}

fn start(container: ContainerId, network: u32, index: u32, on: u32) -> Change {
    let slot = Slot::new(AppId::from_u128(network.into()), ContainerType::web(), index).expect("indexes from 1");
    Change::Start { container, slot, node: node(on) }
}

/// Makes a region with so many networks, each on 50 of the nodes.
fn region(networks: u32) -> State {
    let nodes = networks.div_ceil(2).max(PER_NETWORK);
    let mut state = skeleton(nodes, networks);
    for index in 1..=PER_NETWORK {
        for network in 1..=networks {
            // Consecutive networks are on other nodes, so that nodes share few networks.
            let on = (network.wrapping_mul(7919).wrapping_add(index.wrapping_mul(104_729))) % nodes + 1;
            let container = container(network, index);
            apply(&mut state, start(container, network, index, on));
            apply(&mut state, Change::Ready(container));
        }
    }
    state
}

/// What is in the caches of the processor when a start comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caches {
    /// What a hundred thousand starts left there.
    Warm,
    /// Nothing of the region: so much else was written since.
    Emptied,
}

/// How much is written to empty the caches, in octets: more than the whole processor has of them.
const ELSEWHERE: usize = 1 << 29;

/// Returns the median time, in microseconds, of one more start and the update of its node's plan.
///
/// Nodes are picked at random over the whole region, one after the other, and of each its networks. Whatever the size of
/// the region, a network has 50 containers and an address that its 51st left, which starts again under a new id.
fn start_us(state: &mut State, caches: Caches) -> f64 {
    let (nodes, starts) = if caches == Caches::Warm { (40, 2500) } else { (20, 5) };
    let mut elsewhere = vec![0_u64; if caches == Caches::Warm { 0 } else { ELSEWHERE / size_of::<u64>() }];
    let mut random = fastrand::Rng::with_seed(1);
    let last = u32::try_from(state.nodes().len()).expect("nodes are few");
    let mut times = Vec::new();
    for _ in 0..nodes {
        let on = random.u32(1..=last);
        let mut planner = NodePlanner::new(state, node(on));
        let networks: Vec<u32> = planner.plan().networks.keys().map(|id| id.as_u128() as u32).collect();
        let mut time = |network, container| {
            let change = start(container, network, PER_NETWORK + 1, on);
            let begin = Instant::now();
            apply(state, change);
            black_box(planner.update(state));
            let time = begin.elapsed().as_secs_f64() * 1e6;
            apply(state, Change::Fail(container));
            planner.update(state);
            time
        };
        for network in &networks {
            time(*network, ContainerId::from_u128(random.u128(..)));
        }
        for _ in 0..starts {
            elsewhere.iter_mut().step_by(8).for_each(|line| *line += 1);
            black_box(&elsewhere);
            let network = networks[random.usize(..networks.len())];
            times.push(time(network, ContainerId::from_u128(random.u128(..))));
        }
    }
    median(&mut times)
}

/// Returns the median time, in milliseconds, of planning a node with 200 containers in 100 networks of 50 from nothing.
fn node_plan_ms() -> f64 {
    let mut times: Vec<f64> = (0..21)
        .map(|_| {
            let mut state = skeleton(2000, 100);
            for network in 1..=100 {
                for index in 1..=PER_NETWORK {
                    let on = if index <= 2 { 1 } else { (network * 37 + index * 101) % 1999 + 2 };
                    apply(&mut state, start(container(network, index), network, index, on));
                }
            }
            let begin = Instant::now();
            let plan = black_box(state.node_plan(node(1)));
            let time = begin.elapsed().as_secs_f64() * 1e3;
            assert_eq!(plan.networks.len(), 100);
            time
        })
        .collect();
    median(&mut times)
}

/// Returns the median time of formatting and of parsing a name, in nanoseconds.
fn name_ns() -> (f64, f64) {
    const BATCH: u32 = 1000;
    let slot = Slot::new(AppId::from_u128(u128::MAX / 7), "my-app-backend".parse().expect("a type"), 12);
    let name = Name::container(NetworkId::from_u128(u128::MAX / 3), &slot.expect("indexes from 1"));
    let text = name.to_string();
    let time = |work: &mut dyn FnMut()| {
        let mut times: Vec<f64> = (0..501)
            .map(|_| {
                let begin = Instant::now();
                (0..BATCH).for_each(|_| work());
                begin.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
            })
            .collect();
        median(&mut times)
    };
    let mut buffer = [0; Name::MAX_LEN];
    let format = time(&mut || {
        black_box(black_box(&name).encode(&mut buffer));
    });
    let parse = time(&mut || {
        black_box(black_box(&text).parse::<Name>().is_ok());
    });
    (format, parse)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Returns the resident memory of this process, in octets.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(f64::NAN) * 4096.0
}

/// What is measured of a region of a size.
struct Measured {
    build_s: f64,
    plan_s: f64,
    bytes: f64,
    bytes_with_plans: f64,
    start_us: f64,
    start_cold_us: f64,
}

/// Builds a region with so many networks and measures it, in the same order whatever its size.
fn measure(networks: u32) -> Measured {
    let before = resident();
    let bytes = || (resident() - before) / f64::from(networks * PER_NETWORK);
    let begin = Instant::now();
    let mut state = region(networks);
    let (build_s, state_bytes) = (begin.elapsed().as_secs_f64(), bytes());
    let begin = Instant::now();
    let plan = state.plan();
    let plan_s = begin.elapsed().as_secs_f64();
    let bytes_with_plans = bytes();
    drop(plan);
    Measured {
        build_s,
        plan_s,
        bytes: state_bytes,
        bytes_with_plans,
        start_us: start_us(&mut state, Caches::Warm),
        start_cold_us: start_us(&mut state, Caches::Emptied),
    }
}

/// Begins again with huge pages, which a process that holds a region should have: what changes is all over its memory, and
/// most of what it would wait for otherwise are page tables.
fn ask_for_huge_pages() -> std::io::Result<()> {
    const TUNABLES: &str = "GLIBC_TUNABLES";
    if std::env::var_os(TUNABLES).is_some() {
        return Ok(());
    }
    let mut again = Command::new(std::env::current_exe()?);
    Err(again.args(std::env::args_os().skip(1)).env(TUNABLES, "glibc.malloc.hugetlb=1").exec())
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    ask_for_huge_pages()?;
    let small = measure(200);
    let large = measure(options.networks);
    let (name_format_ns, name_parse_ns) = name_ns();
    let figures = [
        ("build_s", large.build_s, "the region built from changes, s"),
        ("bytes_per_container", large.bytes_with_plans, "memory a container, with every plan made, octets"),
        ("state_bytes_per_container", large.bytes, "memory a container, without plans, octets"),
        ("start_us_10k", small.start_us, "one more start and its node's plan, of 10 000 containers, µs"),
        ("start_us_1m", large.start_us, "one more start and its node's plan, of the large region, µs"),
        ("start_cold_us_10k", small.start_cold_us, "the same with emptied caches, of 10 000 containers, µs"),
        ("start_cold_us_1m", large.start_cold_us, "the same with emptied caches, of the large region, µs"),
        ("plan_s", large.plan_s, "every plan from nothing, s"),
        ("node_plan_ms", node_plan_ms(), "a node's plan with 200 containers in 100 networks of 50, from nothing, ms"),
        ("name_format_ns", name_format_ns, "a name formatted, ns"),
        ("name_parse_ns", name_parse_ns, "a name parsed, ns"),
    ];
    if options.json {
        let figures: serde_json::Map<_, _> =
            figures.iter().map(|(key, value, _)| ((*key).to_owned(), json!(value))).collect();
        println!("{}", json!({"figures": figures}));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "what".to_owned(),
        format!("{} containers, {} networks", options.networks * PER_NETWORK, options.networks),
    ]);
    for (_, value, what) in figures {
        table.add_row([what.to_owned(), format!("{value:.2}")]);
    }
    println!("{table}");
    Ok(())
}
