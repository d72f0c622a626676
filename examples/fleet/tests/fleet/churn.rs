//! Containers that come and go.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use pn_core::{AppId, Change, ContainerId, NodeId, Region, Slot};
use pn_fleet::interface::{self, Progress};
use pn_store::Registry;

use crate::machines::{Container, Machine, PATIENCE, is_root, wait_for};
use crate::platform::{self, Platform};

/// Who starts containers on a node and takes them away again, always in the same slot and namespace.
#[derive(Debug)]
pub(crate) struct Churn {
    store: String,
    machine: Machine,
    node: NodeId,
    app: AppId,
    index: u32,
    namespace: Container,
}

impl Churn {
    /// Makes one for a machine, numbered from 1, and a slot of `my-app-backend`.
    pub(crate) fn new(platform: &mut Platform, node: usize, index: u32) -> Self {
        let namespace = platform.fleet.container(&format!("churn{node}"));
        let (machine, store) = (platform.machines[0].clone(), platform.store.clone());
        let (node, app) = (platform.node(node).parse().unwrap(), platform.app("my-app").parse().unwrap());
        Self { store, machine, node, app, index, namespace }
    }

    /// Goes on until it is told to stop, and returns how many came and went.
    pub(crate) fn until(&self, stop: &AtomicBool) -> u32 {
        let mut count = 0;
        self.run(|n| {
            count = n;
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        count
    }

    /// Goes on until `so_far`, which is told how many came and went, says that it is enough.
    pub(crate) fn run(&self, mut so_far: impl FnMut(u32) -> ControlFlow<()> + Send) {
        self.machine.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let store = runtime.block_on(pn_store::connect(&self.store)).unwrap();
            let registry = Registry::new(store, Region::default());
            let mut count = 0;
            while so_far(count).is_continue() {
                runtime.block_on(self.cycle(&registry, count));
                wait_for("the interface is gone", || {
                    if self.namespace.has_interface() { Err("pn0 is there".to_owned()) } else { Ok(()) }
                });
                count += 1;
            }
        });
    }

    async fn cycle(&self, registry: &Registry, n: u32) {
        let (store, node) = (&**registry.store(), self.node);
        let container = ContainerId::from_u128(node.as_u128() ^ u128::from(n));
        let slot = Slot::new(self.app, "my-app-backend".parse().unwrap(), self.index).unwrap();
        interface::want(store, node, container, Path::new(&self.namespace.path())).await.unwrap();
        registry.apply(Change::Start { container, slot, node }).await.unwrap();
        let settled = interface::settled(store, node, container, PATIENCE).await.unwrap();
        assert!(matches!(settled, Some(Progress::Ready { .. })), "{settled:?}");
        // Its name goes first, as `pn fail` does.
        let stopped = registry.apply(Change::Stop(container)).await.unwrap();
        let network = stopped.network_of_container(container).unwrap();
        registry.synced(stopped.revision(), network, PATIENCE).await.unwrap();
        registry.apply(Change::Fail(container)).await.unwrap();
        interface::forget(store, node, container).await.unwrap();
    }
}

/// As many as `PN_CYCLES` says, or enough to notice what stays of each.
#[test]
fn containers_that_come_and_go_leave_nothing() {
    come_and_go("userspace", 100);
}

#[test]
fn containers_of_the_kernel_that_come_and_go_leave_nothing() {
    come_and_go("linux", 50);
}

fn come_and_go(backend: &str, cycles: u32) {
    if !is_root() {
        return;
    }
    let cycles: u32 = std::env::var("PN_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(cycles);
    let mut platform = Platform::with_sqlite();
    platform.stop_agent(0);
    platform.start_agent(0, &["--backend", backend]);
    platform.wait_until_joined();
    platform.shop();
    let churn = Churn::new(&mut platform, 1, 1);
    let agent = platform.agents[0].as_ref().unwrap().0.id();
    let node = platform.node(1);
    let has = || {
        let count = |what| std::fs::read_dir(format!("/proc/{agent}/{what}")).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let memory: usize = memory.trim().trim_end_matches(" kB").parse().unwrap();
        Has {
            descriptors: count("fd"),
            threads: count("task"),
            namespaces: platform.fleet.there(),
            kept: platform::kept(&node),
            memory,
        }
    };
    let mut before = None;
    churn.run(|n| {
        if n == WARM {
            // What was let go of is let go of within a second.
            before = Some(wait_for("no container is kept", || match has() {
                has if has.kept.iter().any(|name| name.starts_with("ct-")) => Err(format!("{has:?}")),
                has => Ok(has),
            }));
        }
        if cycles >= 1000 && n.is_multiple_of(1000) {
            println!("{n} cycles: {:?}", has());
        }
        if n < WARM + cycles { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let before = before.unwrap();
    // Threads of the runtime come and go.
    wait_for("descriptors, threads, namespaces and what is kept are what they were", || {
        let after = has();
        let is_same = after.descriptors <= before.descriptors
            && after.threads <= before.threads + 2
            && (after.namespaces, &after.kept) == (before.namespaces, &before.kept);
        if is_same { Ok(()) } else { Err(format!("{after:?} after {before:?}")) }
    });
    let after = has();
    println!("{cycles} cycles with {backend}: {before:?} and then {after:?}");
    assert!(after.memory < before.memory + 8_192, "{after:?} after {before:?}");
}

/// What there is because of an agent.
#[derive(Debug)]
struct Has {
    descriptors: usize,
    threads: usize,
    namespaces: usize,
    /// What is in its directory.
    kept: BTreeSet<String>,
    /// In kB.
    memory: usize,
}

/// How many cycles come first, until what is kept for later is there.
const WARM: u32 = 20;
