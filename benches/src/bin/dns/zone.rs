//! The zone that every server serves: apps with 100 names each, in the three forms of names.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use pn_core::{
    App, AppId, AppNames, Change, ContainerId, ContainerType, Formation, Name, NetworkDomain, NetworkId,
    NetworkRequest, Node, NodeId, Policy, Ports, Project, ProjectId, PublicKey, Region, Slot, State, Subnet, Terms,
    Timestamp, TypeNames, ZonePlan,
};

/// How many names an app has: itself, 25 types and 74 containers.
pub(crate) const PER_APP: u32 = 100;

/// Each app's types: three containers each, and two of the last. `web` also has the app's own name.
const TYPES: u32 = 25;

/// Time to live of every record, in seconds.
const TTL: u64 = 5;

/// The network.
pub(crate) fn network() -> NetworkId {
    NetworkId::from_u128(0xad0f_d6a1_d05e_40ea_bf63_c4f8_a75a_9d8c)
}

fn apps(names: u32) -> Vec<AppId> {
    let mut rng = fastrand::Rng::with_seed(42);
    let mut apps: Vec<AppId> = (0..names.div_ceil(PER_APP)).map(|_| AppId::from_u128(rng.u128(..))).collect();
    apps.sort_unstable();
    apps
}

fn types() -> Vec<(ContainerType, u32)> {
    let mut types: Vec<(ContainerType, u32)> = (1..TYPES)
        .map(|n| (format!("worker-{n}").parse().expect("a label"), if n == 1 { 2 } else { 3 }))
        .chain([(ContainerType::web(), 3)])
        .collect();
    types.sort_unstable_by_key(|(container_type, _)| *container_type);
    types
}

fn subnet() -> Subnet {
    "10.0.0.0/8".parse().expect("a prefix")
}

/// Makes the plan of a zone with so many names, as if the state had made it.
pub(crate) fn plan(names: u32) -> ZonePlan {
    let mut plan = ZonePlan::new(network(), subnet(), std::time::Duration::from_secs(TTL));
    let (types, mut ordinal) = (types(), 0);
    let mut next = || {
        ordinal += 1;
        plan.subnet.address(ordinal).expect("16 million are enough")
    };
    let apps = apps(names).into_iter().map(|app| {
        let types = types.iter().map(|(container_type, count)| TypeNames {
            app,
            container_type: *container_type,
            ports: Ports::default(),
            containers: (1..=*count).map(|index| (index, next())).collect(),
        });
        Arc::new(AppNames { app, types: types.collect() })
    });
    plan.apps = apps.collect();
    plan
}

/// The number of containers that wait to be made ready, one by one.
pub(crate) const WAITING: u32 = WAITING_APPS * PER_WAITING_APP;
const WAITING_APPS: u32 = 40;
const PER_WAITING_APP: u32 = 500;

fn waiting_app(index: u32) -> AppId {
    AppId::from_u128(u128::MAX - u128::from(index % WAITING_APPS))
}

/// Returns one of the containers that wait, and its slot, by a number below [`WAITING`].
pub(crate) fn waiting(index: u32) -> (ContainerId, Slot) {
    let slot = Slot::new(waiting_app(index), "late".parse().expect("a label"), index / WAITING_APPS + 1);
    (ContainerId::from_u128(u128::MAX - u128::from(index)), slot.expect("indexes from 1"))
}

/// Makes a state with the same names, and containers that wait.
pub(crate) fn state(names: u32) -> State {
    let mut policy = Policy::default();
    policy.subnet = subnet();
    let mut state = State::new(Region::with_policy(policy));
    let mut apply = |change| match state.apply(Timestamp::ZERO, change) {
        Ok(_) => {}
        Err(error) => panic!("{error}"),
    };
    let label = || "bench".parse().expect("a label");
    let (project, node) = (ProjectId::from_u128(1), NodeId::from_u128(1));
    let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
    let (underlay, tunnel) = (([192, 0, 2, 1], 51820).into(), [100, 64, 0, 1].into());
    apply(Change::AddNode(Node::new(node, label(), underlay, tunnel, PublicKey::new([1; 32]))));
    apply(Change::AddProject(Project::new(project, label())));
    apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, network(), terms)));
    let types = types();
    let formation: String = types.iter().map(|(container_type, count)| format!("{container_type}:{count} ")).collect();
    let mut id = 0;
    for app in apps(names) {
        let formation = formation.parse().expect("a formation");
        apply(Change::AddApp(App { formation, ..App::new(app, project, label()) }));
        for (container_type, count) in &types {
            for index in 1..=*count {
                id += 1;
                let container = ContainerId::from_u128(id);
                let slot = Slot::new(app, *container_type, index).expect("indexes from 1");
                apply(Change::Start { container, slot, node });
                apply(Change::Ready(container));
            }
        }
    }
    let formation: Formation = format!("late:{PER_WAITING_APP}").parse().expect("a formation");
    for index in 0..WAITING_APPS {
        apply(Change::AddApp(App { formation: formation.clone(), ..App::new(waiting_app(index), project, label()) }));
    }
    for index in 0..WAITING {
        let (container, slot) = waiting(index);
        apply(Change::Start { container, slot, node });
    }
    state
}

/// Writes what the servers read: a master file, `/etc/hosts` lines, unbound's and the queries of dnsperf.
pub(crate) fn write(plan: &ZonePlan, queries: &[String], directory: &Path) -> io::Result<()> {
    let domain = NetworkDomain(network());
    let file = |name: &str| fs::File::create(directory.join(name)).map(io::BufWriter::new);
    let (mut zone, mut hosts, mut unbound) = (file("zone")?, file("hosts")?, file("local-data")?);
    write!(zone, "$ORIGIN {domain}.\n$TTL {TTL}\n@ SOA ns h 1 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n")?;
    for (name, addresses) in plan.names() {
        let name = name.to_string();
        let owner = &name[..name.len() - NetworkDomain::LEN - 1];
        for address in addresses {
            writeln!(zone, "{owner} A {address}")?;
            writeln!(hosts, "{address} {name}")?;
            writeln!(unbound, "local-data: \"{name}. {TTL} A {address}\"")?;
        }
    }
    let mut lines = String::new();
    for query in queries {
        writeln!(lines, "{query}. A").expect("memory takes it");
    }
    fs::write(directory.join("queries"), lines)?;
    zone.flush()?;
    hosts.flush()?;
    unbound.flush()
}

/// Draws names to ask for: 79 % containers, 6 % types, 5 % apps, and 10 % that do not exist, half of them beyond a type's
/// containers and half of a type that is not declared.
pub(crate) fn queries(plan: &ZonePlan, count: usize) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(7);
    let unknown: ContainerType = "db".parse().expect("a label");
    let one = || {
        let app = &plan.apps[rng.usize(..plan.apps.len())];
        let of_type = &app.types[rng.usize(..app.types.len())];
        let container = |container_type, index| {
            Name::container(network(), &Slot::new(app.app, container_type, index).expect("indexes from 1"))
        };
        let name = match rng.u32(..100) {
            0..5 => container(of_type.container_type, rng.u32(1000..10_000)),
            5..10 => container(unknown, rng.u32(1..100)),
            10..15 => Name::app(network(), app.app),
            15..21 => Name::of_type(network(), app.app, of_type.container_type),
            _ => container(of_type.container_type, rng.u32(1..=of_type.containers.len() as u32)),
        };
        name.to_string()
    };
    std::iter::repeat_with(one).take(count).collect()
}

/// Returns a name of the zone that a master file has last, and its address.
pub(crate) fn last(plan: &ZonePlan) -> (String, Ipv4Addr) {
    let names = plan.apps.last().map(|app| plan.names_of(app.app)).unwrap_or_default();
    let (name, addresses) = names.last().expect("the zone has names");
    (name.to_string(), addresses[0])
}
