//! Writers that race for the same things, over each store; each has a registry of its own, as if it were a process.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that fails says why, and figures are for people")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pn_core::{
    App, AppId, ApplyError, Change, ContainerId, ContainerType, NetworkId, NetworkRequest, Node, NodeId, Policy,
    Project, ProjectId, PublicKey, Region, Slot, Terms, Timestamp, Vni,
};
use pn_store::{
    Fault, Faulty, Key, Lease, LeaseId, Listing, MemoryStore, Outcome, Page, Reading, Registry, RegistryError,
    Revision, Store, StoreError, Transaction, Watch,
};

fn region(last_vni: u32, subnet: &str) -> Region {
    let mut policy = Policy::default();
    policy.last_vni = Vni::new(last_vni).unwrap();
    policy.subnet = subnet.parse().unwrap();
    Region::with_policy(policy)
}

fn terms() -> Terms {
    Terms { accepted_by: "x".parse().unwrap(), version: "1".parse().unwrap(), accepted_at: Timestamp::ZERO }
}

fn node(n: u8) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Node::new(NodeId::from_u128(n.into()), "n".parse().unwrap(), underlay, tunnel, PublicKey::new([n; 32]))
}

fn enable(n: u128) -> Change {
    Change::EnablePrivateNetwork(NetworkRequest::new(ProjectId::from_u128(n), NetworkId::from_u128(n), terms()))
}

fn start(container: u128, app: u128, index: u32) -> Change {
    let slot = Slot::new(AppId::from_u128(app), ContainerType::web(), index).unwrap();
    Change::Start { container: ContainerId::from_u128(container), slot, node: NodeId::from_u128(1) }
}

async fn make_network(registry: &Registry, n: u128) {
    let (project, app) = (ProjectId::from_u128(n), AppId::from_u128(n));
    for change in [
        Change::AddProject(Project::new(project, "x".parse().unwrap())),
        enable(n),
        Change::AddApp(App::new(app, project, "x".parse().unwrap())),
        Change::Scale { app, formation: "web:100".parse().unwrap() },
    ] {
        registry.apply(change).await.unwrap();
    }
}

/// Has as many writers as there are stores make changes, and returns what became of each.
async fn race(
    stores: &[Arc<dyn Store>],
    region: &Region,
    changes: impl Fn(usize) -> Vec<Change>,
) -> Vec<Vec<Result<(), ApplyError>>> {
    let writers = stores.iter().enumerate().map(|(n, store)| {
        let (registry, changes) = (Registry::new(Arc::clone(store), region.clone()), changes(n));
        tokio::spawn(async move {
            let mut became = Vec::new();
            for change in changes {
                became.push(match registry.apply(change).await {
                    Ok(_) => Ok(()),
                    Err(RegistryError::Refused(refused)) => Err(refused),
                    Err(error) => panic!("{error:?}"),
                });
            }
            became
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut became = Vec::new();
    for writer in writers {
        became.push(writer.await.unwrap());
    }
    became
}

fn won(became: &[Vec<Result<(), ApplyError>>]) -> usize {
    became.iter().flatten().filter(|result| result.is_ok()).count()
}

/// Everything that is raced for, on one store after the other; each needs four stores' worth of place.
async fn races(stores: impl Fn(&str) -> Vec<Arc<dyn Store>>) {
    let all = stores("slots");
    let region_a = region(Vni::MAX, "10.240.0.0/22");
    let registry = Registry::new(Arc::clone(&all[0]), region_a.clone());
    registry.apply(Change::AddNode(node(1))).await.unwrap();
    make_network(&registry, 1).await;
    const SLOTS: u32 = 12;
    let became = race(&all, &region_a, |writer| {
        (1..=SLOTS).map(|index| start(1000 * (writer as u128 + 1) + u128::from(index), 1, index)).collect()
    })
    .await;
    assert_eq!(won(&became), SLOTS as usize, "each slot once");
    let refused = became.iter().flatten().filter_map(|result| result.as_ref().err());
    assert!(
        refused.clone().all(|refused| matches!(refused, ApplyError::SlotTaken { .. })),
        "{:?}",
        refused.collect::<Vec<_>>()
    );
    let state = registry.state().await.unwrap();
    let addresses: BTreeSet<_> = state.containers(NetworkId::from_u128(1)).map(|container| container.address).collect();
    assert_eq!(addresses.len(), SLOTS as usize, "no address twice");

    let all = stores("addresses");
    let region_b = region(Vni::MAX, "10.240.0.0/29");
    let registry = Registry::new(Arc::clone(&all[0]), region_b.clone());
    registry.apply(Change::AddNode(node(1))).await.unwrap();
    make_network(&registry, 1).await;
    let became = race(&all, &region_b, |writer| {
        (1..=2).map(|n| start(100 + 2 * writer as u128 + n, 1, 2 * writer as u32 + n as u32)).collect()
    })
    .await;
    assert_eq!(won(&became), 6.min(2 * all.len()), "as many as there are addresses");
    let refused = became.iter().flatten().filter_map(|result| result.as_ref().err());
    assert!(
        refused.clone().all(|refused| matches!(refused, ApplyError::AddressesInUse { .. })),
        "{:?}",
        refused.collect::<Vec<_>>()
    );

    let all = stores("vnis");
    let region_c = region(3, "10.240.0.0/22");
    let registry = Registry::new(Arc::clone(&all[0]), region_c.clone());
    for n in 0..all.len() as u128 {
        registry.apply(Change::AddProject(Project::new(ProjectId::from_u128(n), "x".parse().unwrap()))).await.unwrap();
    }
    let became = race(&all, &region_c, |writer| vec![enable(writer as u128)]).await;
    assert_eq!(won(&became), 3.min(all.len()), "as many as there are VNIs");
    let refused = became.iter().flatten().filter_map(|result| result.as_ref().err());
    assert!(
        refused.clone().all(|refused| matches!(refused, ApplyError::VnisInUse { .. })),
        "{:?}",
        refused.collect::<Vec<_>>()
    );

    // A node's addresses and keys are somebody's alone, too.
    let became = race(&all, &region_c, |writer| {
        let mut node = node(writer as u8 + 1);
        node.public_key = PublicKey::new([1; 32]);
        vec![Change::AddNode(node)]
    })
    .await;
    assert_eq!(won(&became), 1, "a key belongs to one node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory() {
    races(|_| {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        vec![store; 8]
    })
    .await;
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_sqlite_with_a_connection_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = std::collections::BTreeMap::new();
    for part in ["slots", "addresses", "vnis"] {
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        for _ in 0..4 {
            stores.push(Arc::new(pn_store::SqliteStore::open(dir.path().join(part)).await.unwrap()));
        }
        places.insert(part.to_owned(), stores);
    }
    races(|part| places[part].clone()).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_etcd_with_a_connection_each() {
    let Some(etcd) = common::Etcd::start().await else { return };
    let mut places = std::collections::BTreeMap::new();
    for part in ["slots", "addresses", "vnis"] {
        let mut stores = Vec::new();
        for _ in 0..8 {
            stores.push(pn_store::connect(&etcd.url(part)).await.unwrap());
        }
        places.insert(part.to_owned(), stores);
    }
    races(|part| places[part].clone()).await;
}

/// Answers that are lost, before and after the store did what it was asked: each start happens once, and is known to.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_starts_nothing_twice() {
    use Fault::{After, Before, Delay, None};
    let store = Faulty::new(MemoryStore::new());
    let region = region(Vni::MAX, "10.240.0.0/22");
    let registry = Registry::new(Arc::new(store.clone()), region.clone());
    store.queue([After]);
    registry.apply(Change::AddNode(node(1))).await.expect("it was made, and that can be seen");
    make_network(&registry, 1).await;
    let faults =
        [&[After][..], &[Before], &[After, After], &[Before, After], &[Delay(Duration::from_millis(30)), None]];
    for (n, faults) in (1..).zip(faults) {
        store.queue(faults.iter().copied());
        let applied = registry.apply(start(n.into(), 1, n)).await.unwrap();
        assert!(applied.container(ContainerId::from_u128(n.into())).is_some());
        let ready = Change::Ready(ContainerId::from_u128(n.into()));
        store.queue([After]);
        registry.apply(ready).await.unwrap();
    }
    let state = registry.state().await.unwrap();
    let containers: Vec<_> = state.containers(NetworkId::from_u128(1)).collect();
    assert_eq!(containers.len(), 5);
    for change in [
        Change::OfferKey { node: NodeId::from_u128(1), public_key: PublicKey::new([7; 32]) },
        Change::PromoteKey(NodeId::from_u128(1)),
    ] {
        store.queue([After]);
        registry.apply(change).await.expect("it was made, and that can be seen");
    }
    // A store that stays away is said so, and what is retryable.
    store.cut_off();
    let error = registry.with_patience(Duration::from_secs(2)).apply(start(90, 1, 90)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Store(_)) && error.is_retryable());
}

/// While one answer is lost, another writer goes on: what was made is still found.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_after_others_wrote() {
    let memory = MemoryStore::new();
    let store = Faulty::new(memory.clone());
    let region = region(Vni::MAX, "10.240.0.0/22");
    let other = Registry::new(Arc::new(memory), region.clone());
    other.apply(Change::AddNode(node(1))).await.unwrap();
    make_network(&other, 1).await;
    let registry = Registry::new(Arc::new(store.clone()), region);
    store.queue([Fault::After]);
    let (applied, others) = tokio::join!(registry.apply(start(1, 1, 1)), async {
        for n in 2..10 {
            other.apply(start(n, 1, n as u32)).await.unwrap();
        }
        // What was just started stops before the first writer looks again.
        drop(other.apply(Change::Fail(ContainerId::from_u128(1))).await);
    });
    let () = others;
    applied.expect("it was made");
    assert_eq!(other.state().await.unwrap().containers(NetworkId::from_u128(1)).count(), 8);
}

/// Others take every VNI while one writer is about to commit: the turn has come round to the number that it chose.
#[tokio::test(start_paused = true)]
async fn a_writer_that_was_overtaken_by_a_whole_round_takes_no_vni_twice() {
    let memory = MemoryStore::new();
    let store = Faulty::new(memory.clone());
    let region = region(3, "10.240.0.0/22");
    let others = Registry::new(Arc::new(memory), region.clone());
    for n in 1..=4 {
        let project = Project::new(ProjectId::from_u128(n), "x".parse().unwrap());
        others.apply(Change::AddProject(project)).await.unwrap();
    }
    let slow = Registry::new(Arc::new(store.clone()), region);
    store.queue([Fault::Delay(Duration::from_millis(30))]);
    let (late, ()) = tokio::join!(slow.apply(enable(4)), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        for n in 1..=3 {
            others.apply(enable(n)).await.unwrap();
        }
    });
    let refused = late.expect_err("all three are taken");
    assert!(matches!(refused, RegistryError::Refused(ApplyError::VnisInUse { .. })), "{refused:?}");
    assert_eq!(others.state().await.unwrap().networks().count(), 3);
}

/// Counts what is asked of a store.
#[derive(Debug, Clone)]
struct Counted {
    store: MemoryStore,
    asked: Arc<[AtomicU32; 4]>,
}

impl Counted {
    fn take(&self) -> [u32; 4] {
        [0, 1, 2, 3].map(|n| self.asked[n].swap(0, Ordering::Relaxed))
    }
}

#[async_trait]
impl Store for Counted {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        self.asked[0].fetch_add(1, Ordering::Relaxed);
        self.store.get(keys).await
    }
    async fn list(&self, listing: &Listing) -> Result<Page, StoreError> {
        self.asked[1].fetch_add(1, Ordering::Relaxed);
        self.store.list(listing).await
    }
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.asked[2].fetch_add(1, Ordering::Relaxed);
        let outcome = self.store.commit(transaction).await?;
        self.asked[3].fetch_add(u32::from(outcome == Outcome::Refused), Ordering::Relaxed);
        Ok(outcome)
    }
    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store.watch(prefix, from).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}

/// What a start asks of the store is the same in a region of one network and in one of many, and starts in different networks do
/// not stand in each other's way.
#[tokio::test]
async fn a_start_costs_the_same_however_large_the_region_is() {
    let store = Counted { store: MemoryStore::new(), asked: Arc::default() };
    let region = region(Vni::MAX, "10.240.0.0/22");
    let registry = Registry::new(Arc::new(store.clone()), region.clone());
    registry.apply(Change::AddNode(node(1))).await.unwrap();
    make_network(&registry, 1).await;
    let mut costs = Vec::new();
    for networks in 2..=200 {
        if networks % 99 == 2 {
            store.take();
            // A process that has just begun, and one that knows the network.
            let fresh = Registry::new(Arc::new(store.clone()), region.clone());
            for n in 0..2 {
                fresh
                    .apply(start(10 * networks + n, 1, u32::try_from(networks).unwrap() % 50 * 2 + n as u32 + 1))
                    .await
                    .ok();
                costs.push(store.take());
            }
        }
        make_network(&registry, networks).await;
    }
    println!("gets, lists, commits and refusals of a first and a second start: {costs:?}");
    assert!(costs.chunks(2).all(|cost| cost == &costs[..2]), "{costs:?}");

    store.take();
    let starts = (2..=100).map(|n| {
        let registry = Registry::new(Arc::new(store.clone()), region.clone());
        async move { registry.apply(start(100_000 + n, n, 1)).await.unwrap() }
    });
    let starts: Vec<_> = starts.map(tokio::spawn).collect();
    for start in starts {
        start.await.unwrap();
    }
    let [_, _, commits, refused] = store.take();
    assert_eq!((commits, refused), (99, 0), "nobody stood in anybody's way");
}
