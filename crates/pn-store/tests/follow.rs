//! Following over the stores that processes share.
#![cfg(any(feature = "sqlite", feature = "etcd"))]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that fails says why, and figures are for people")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pn_core::{Followed, NetworkId, NodePlan, PlanSource, Region};
use pn_store::{Follower, NodeStatus, Registry, Reporter, Store};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::common::{make_network, node, start};

const PATIENCE: Duration = Duration::from_secs(60);

fn registry(store: Arc<dyn Store>) -> Registry {
    Registry::new(store, Region::default())
}

fn names(plan: &NodePlan) -> usize {
    let types = plan.networks.values().flat_map(|network| network.zone.types());
    types.map(|of_type| of_type.containers.len()).sum()
}

async fn next(follower: &mut Follower) -> Followed {
    timeout(PATIENCE, follower.next()).await.expect("there is a word")
}

async fn plan(follower: &mut Follower, is_it: impl Fn(&NodePlan) -> bool) -> NodePlan {
    loop {
        if let Followed::Plan(plan) = next(follower).await
            && is_it(&plan)
        {
            return plan;
        }
    }
}

/// An agent that applies every plan at once.
async fn agent(registry: Registry, n: u8) -> JoinHandle<()> {
    let mut follower = Follower::new(registry.join(node(n), Duration::from_secs(10)).await.unwrap());
    tokio::spawn(async move {
        let mut reporter = Reporter::new(follower.progress());
        while let Followed::Plan(plan) = follower.next().await {
            reporter.report(NodeStatus::new(plan.generation, "test", "none"), Some(&plan)).await.unwrap();
        }
    })
}

/// Two agents and a writer, each with a store of its own: what was written is soon applied everywhere.
async fn written_is_applied(stores: [Arc<dyn Store>; 3]) {
    let [one, two, writer] = stores.map(registry);
    let agents = [agent(one, 1).await, agent(two, 2).await];
    make_network(&writer).await;
    let mut taken = Vec::new();
    for n in 1..=30 {
        let begun = Instant::now();
        let revision = start(&writer, n, 1 + (n % 2) as u8).await;
        writer.synced(revision, NetworkId::from_u128(1), PATIENCE).await.unwrap();
        taken.push(begun.elapsed());
    }
    taken.sort_unstable();
    println!("start, ready and applied by two agents: median {:?}, most {:?}", taken[15], taken[29]);
    let statuses = writer.statuses().await.unwrap();
    assert!(statuses.len() == 2 && statuses.values().all(|reported| reported.is_alive));
    agents.iter().for_each(JoinHandle::abort);
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("state.db").display());
    let open = async || pn_store::connect(&url).await.unwrap();
    written_is_applied([open().await, open().await, open().await]).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_etcd() {
    let Some(etcd) = common::Etcd::start().await else { return };
    let open = async || pn_store::connect(&etcd.url("region")).await.unwrap();
    written_is_applied([open().await, open().await, open().await]).await;
}

/// L1, L4: an etcd that is gone for longer than leases live, and comes back.
#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_stops_is_said_to_be_lost_and_then_caught_up_with() {
    let Some(mut etcd) = common::Etcd::start().await else { return };
    let writer = registry(pn_store::connect(&etcd.url("region")).await.unwrap());
    let agents = registry(pn_store::connect(&etcd.url("region")).await.unwrap());
    make_network(&writer).await;
    let mut one = Follower::new(agents.join(node(1), Duration::from_secs(3)).await.unwrap());
    let _two = Follower::new(agents.join(node(2), Duration::from_secs(3)).await.unwrap());
    start(&writer, 1, 1).await;
    start(&writer, 2, 2).await;
    let before = plan(&mut one, |plan| names(plan) == 2).await;
    etcd.kill();
    let stopped = Instant::now();
    let Followed::Lost(reason) = next(&mut one).await else { panic!("it is lost") };
    println!("said to be lost after {:?}: {reason}", stopped.elapsed());
    tokio::time::sleep(Duration::from_secs(4)).await;
    etcd.restart().await;
    let restarted = Instant::now();
    assert_eq!(next(&mut one).await, Followed::Back);
    let Followed::Plan(after) = next(&mut one).await else { panic!("leases were extended: nobody is fenced") };
    assert_eq!((names(&after), &after.networks), (2, &before.networks), "and nobody is dead");
    println!("caught up after {:?}", restarted.elapsed());
    start(&writer, 3, 2).await;
    plan(&mut one, |plan| names(plan) == 3).await;

    // Everything is deleted under living agents, and put back.
    let mut backup = Vec::new();
    writer.backup(&mut backup).await.unwrap();
    etcd.ctl(&["del", "--prefix", ""]);
    plan(&mut one, |plan| plan.networks.is_empty()).await;
    writer.restore(&mut &backup[..]).await.unwrap();
    let restored = plan(&mut one, |plan| names(plan) == 3).await;
    assert_eq!(restored.peers.len(), 1);

    // An agent that was away while history was compacted.
    let revision = start(&writer, 4, 1).await;
    etcd.ctl(&["compact", &revision.to_string()]);
    plan(&mut one, |plan| names(plan) == 4).await;
}
