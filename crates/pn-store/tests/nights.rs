//! What becomes of a data plane when its store has the worst night: real etcds that forget, go back or stop, and real agents.
#![cfg(feature = "etcd")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that fails says why, and one that is ignored that it is"
)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pn_core::{NodeId, OverlayBackend as _, Region};
use pn_overlay::{Agent, AgentHandle, AgentOptions, MemoryOverlay};
use pn_store::{Follower, NodeStatus, Registry, Reporter, connect};
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::common::{Etcd, make_network, node, start};

const TTL: Duration = Duration::from_secs(3);

async fn open(etcd: &Etcd) -> Registry {
    Registry::new(connect(&etcd.url("p")).await.unwrap(), Region::default())
}

fn id(n: u8) -> NodeId {
    NodeId::from_u128(n.into())
}

/// A node with an agent, and how few endpoints its data plane ever had since it was to keep them.
struct Machine {
    overlay: Arc<MemoryOverlay>,
    handle: AgentHandle,
    tasks: JoinSet<()>,
}

impl Machine {
    async fn join(registry: &Registry, n: u8) -> Self {
        let follower = Follower::new(registry.join(node(n), TTL).await.unwrap());
        let mut reporter = Reporter::new(follower.progress());
        let overlay = Arc::new(MemoryOverlay::new());
        let (agent, handle) = Agent::new(id(n), overlay.clone(), Vec::new(), AgentOptions::new(1));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(agent.run(follower).await) });
        let reported = handle.clone();
        tasks.spawn(async move {
            loop {
                let plan = reported.realised();
                let status = NodeStatus::new(reported.status().announced.unwrap_or_default(), "memory", "none");
                drop(reporter.report(status, plan.as_ref()).await);
                sleep(Duration::from_millis(100)).await;
            }
        });
        Self { overlay, handle, tasks }
    }

    async fn endpoints(&self) -> usize {
        let observed = self.overlay.observe().await.unwrap();
        observed.networks.values().map(|network| network.endpoints.len()).sum()
    }

    async fn until_it_has(&self, endpoints: usize) {
        let begun = Instant::now();
        while self.endpoints().await != endpoints {
            assert!(begun.elapsed() < Duration::from_secs(20), "{} endpoints", self.endpoints().await);
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Begins to look at the data plane all the time, for the fewest endpoints that it has.
    fn watch(&mut self) -> tokio::sync::watch::Receiver<usize> {
        let (fewest, seen) = tokio::sync::watch::channel(usize::MAX);
        let overlay = self.overlay.clone();
        self.tasks.spawn(async move {
            loop {
                let observed = overlay.observe().await.unwrap();
                let count = observed.networks.values().map(|network| network.endpoints.len()).sum::<usize>();
                fewest.send_if_modified(|fewest| core::mem::replace(fewest, count.min(*fewest)) > count);
                sleep(Duration::from_millis(1)).await;
            }
        });
        seen
    }
}

async fn registration(registry: &Registry, n: u8) -> Option<u64> {
    Some(registry.state().await.ok()?.node(id(n))?.registration)
}

async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: it does not come");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The quiet that nights are for: a node where nothing happens asks its store nothing, and keeps its lease without a failed call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_node_costs_its_etcd_nothing_but_the_lease() {
    let Some(etcd) = Etcd::start().await else { return };
    let registry = open(&etcd).await;
    let machine = Machine::join(&registry, 1).await;
    make_network(&registry).await;
    start(&registry, 1, 1).await;
    machine.until_it_has(1).await;
    sleep(Duration::from_millis(500)).await;
    // What etcd counts: calls that were answered, by service, method and code.
    let calls = |of: &str| {
        let metrics = etcd.metrics();
        let lines = metrics.lines().filter(|line| line.starts_with("grpc_server_handled_total{") && line.contains(of));
        lines
            .filter_map(|line| Some((line.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?)))
            .collect::<Vec<(_, f64)>>()
    };
    let before = calls("etcdserverpb.KV");
    sleep(TTL).await;
    assert_eq!(calls("etcdserverpb.KV"), before);
    let kept = calls("LeaseKeepAlive").into_iter().filter(|(_, count)| *count > 0.0).collect::<Vec<_>>();
    assert!(kept.len() == 1 && kept[0].0.contains("grpc_code=\"OK\"") && kept[0].1 >= 3.0, "{kept:?}");
    // It hears whoever asks all the same.
    assert!(registry.applied_plan(id(1), Duration::from_secs(5)).await.unwrap().is_some());
}

/// Its disk is lost: what ran goes on, and can be asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_an_etcd_that_lost_everything_takes_nothing_down_and_is_rebuilt() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let registry = open(&etcd).await;
    let mut machine = Machine::join(&registry, 1).await;
    make_network(&registry).await;
    for n in 1..=10 {
        start(&registry, n, 1).await;
    }
    machine.until_it_has(10).await;
    let fewest = machine.watch();
    etcd.kill();
    std::fs::remove_dir_all(etcd.dir.path().join("data")).unwrap();
    etcd.restart().await;
    until("it has joined an empty store", async || registration(&registry, 1).await == Some(1)).await;
    until("what goes is held", async || !machine.handle.status().held.is_empty()).await;
    let found = registry.recall(Duration::from_secs(10)).await.unwrap();
    assert_eq!(found.answered.len(), 1);
    let containers = found.missing.iter().filter(|record| matches!(record, pn_core::Record::Container(_)));
    assert_eq!(containers.count(), 10, "{:?}", found.missing);
    assert_eq!(*fewest.borrow(), 10);
}

/// A snapshot is restored that is older than what runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_an_etcd_that_went_back_takes_nothing_down_and_is_confirmed() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let registry = open(&etcd).await;
    make_network(&registry).await;
    let snapshot = etcd.save();
    let mut machine = Machine::join(&registry, 1).await;
    for n in 1..=10 {
        start(&registry, n, 1).await;
    }
    // A confirmation before, at a revision that the restored store has yet to come to.
    registry.confirm(id(1), pn_core::Generation::new(1)).await.unwrap();
    machine.until_it_has(10).await;
    let fewest = machine.watch();
    etcd.go_back_to(&snapshot).await;
    until("what goes is held", async || !machine.handle.status().held.is_empty()).await;
    assert_eq!(registration(&registry, 1).await, Some(1), "it is there again");
    assert_eq!(*fewest.borrow(), 10);
    // It is what somebody wants.
    let held = machine.handle.status().held.values().map(|held| held.generation).max().unwrap();
    registry.confirm(id(1), held).await.unwrap();
    machine.until_it_has(0).await;
}

/// It stands still for longer than leases live, as a machine that is moved does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_an_etcd_that_stood_still_takes_nothing_down() {
    let Some(etcd) = Etcd::start().await else { return };
    let registry = open(&etcd).await;
    make_network(&registry).await;
    let mut machines = Vec::new();
    for n in 1..=3 {
        machines.push(Machine::join(&open(&etcd).await, n).await);
    }
    for n in 1..=12 {
        start(&registry, n, 1 + u8::try_from(n % 3).unwrap()).await;
    }
    let mut fewest = Vec::new();
    for machine in &mut machines {
        machine.until_it_has(12).await;
        fewest.push(machine.watch());
    }
    etcd.signal("STOP");
    sleep(3 * TTL).await;
    etcd.signal("CONT");
    for n in 1..=3 {
        until("it has joined again", async || registration(&registry, n).await == Some(2)).await;
    }
    start(&registry, 13, 1).await;
    for (machine, fewest) in machines.iter().zip(fewest) {
        machine.until_it_has(13).await;
        assert!(machine.handle.status().is_settled(), "{:?}", machine.handle.status());
        assert_eq!(*fewest.borrow(), 12);
    }
}
