#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is all the same here")]

pub(crate) mod staged;

use core::time::Duration;

use pn_core::{
    App, AppId, Availability, ContainerId, ContainerType, Families, Hosting, NetworkRequest, Node, NodeId, Phase,
    Policy, Project, PublicKey, Slot, Subnet, Terms, Timestamp, Vni,
};
use proptest::prelude::*;

use self::staged::{Stage, Staged};
use super::*;
use crate::{Listing, ManualClock, MemoryStore, Page, StoreExt as _};

pub(crate) fn project(n: u8) -> ProjectId {
    ProjectId::from_u128(n.into())
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::from_u128(n.into())
}

fn terms() -> Terms {
    Terms { accepted_by: "ada".parse().unwrap(), version: "1".parse().unwrap(), accepted_at: Timestamp::ZERO }
}

/// Few numbers, so that they run out.
fn region() -> Region {
    let mut policy = Policy::default();
    policy.subnet = "10.240.0.0/29".parse::<Subnet>().unwrap();
    policy.last_vni = Vni::new(3).unwrap();
    policy.vni_rest = Duration::from_secs(200);
    Region::with_policy(policy)
}

fn some_node(a: u8, b: u8, c: u8) -> Node {
    let underlay = match b % 4 {
        0 => "[2001:db8::1]:51820".parse().unwrap(),
        b => ([192, 0, 2, 10 * a + b], 51820).into(),
    };
    let key = PublicKey::new([10 * a + c % 3; 32]);
    let mut node = Node::new(node(a), "n".parse().unwrap(), underlay, [100, 64, 0, a].into(), key);
    node.underlay_mtu = if c.is_multiple_of(5) { 1300 } else { 1500 };
    node.registration = u64::from(c % 4);
    node
}

/// Makes some change, legal or not, from a few octets.
fn change((kind, a, b, c): (u8, u8, u8, u8)) -> Change {
    let (app, container) = (AppId::from_u128(u128::from(a % 5)), ContainerId::from_u128(u128::from(b % 24)));
    let (small, types) = (a % 4, ["web", "Worker", "worker", "job"]);
    let of_type: ContainerType = types[usize::from(c % 4)].parse().unwrap();
    match kind % 32 {
        0 => Change::AddProject(Project::new(project(small), "p".parse().unwrap())),
        1 => Change::RemoveProject(project(small)),
        2 | 3 => {
            let network = NetworkId::from_u128(u128::from(b % 5));
            let mut request = NetworkRequest::new(project(small), network, terms());
            request.families = if c % 3 == 0 { Families::DualStack } else { Families::Ipv4 };
            Change::EnablePrivateNetwork(request)
        }
        4 => Change::DisablePrivateNetwork(project(small)),
        5 | 6 => {
            let mut app = App::new(app, project(b % 4), "a".parse().unwrap());
            app.hosting = if c % 8 == 0 { Hosting::HealthData } else { Hosting::Ordinary };
            Change::AddApp(app)
        }
        7 => Change::RemoveApp(app),
        8 => Change::MoveApp { app, project: project(b % 4) },
        9 => Change::SetHosting { app, hosting: if b % 2 == 0 { Hosting::HealthData } else { Hosting::Ordinary } },
        10..=12 => Change::Scale { app, formation: format!("{of_type}:{}", b % 6).parse().unwrap() },
        13 => Change::Undeclare { app, container_type: of_type },
        14 => Change::AddNode(some_node(small, b, c)),
        15 => Change::UpdateNode(some_node(small, b, c)),
        16 => Change::RemoveNode(node(small)),
        17 => {
            let availability = if b % 3 == 0 { Availability::Draining } else { Availability::Open };
            Change::SetAvailability { node: node(small), availability }
        }
        18 => Change::OfferKey { node: node(small), public_key: PublicKey::new([10 * (b % 4) + c % 3; 32]) },
        19 => Change::PromoteKey(node(small)),
        20..=24 => {
            let slot = Slot::new(app, of_type, u32::from(c / 4 % 5) + 1).unwrap();
            Change::Start { container, slot, node: node(b / 24 % 4) }
        }
        25 => {
            let replaces = ContainerId::from_u128(u128::from(a % 24));
            Change::Replace { container, replaces, node: node(c % 4) }
        }
        26 | 27 => Change::Ready(container),
        28 => Change::Stop(container),
        29 | 30 => Change::Remove(container),
        _ => Change::Fail(container),
    }
}

/// What most changes need to be legal.
fn begin() -> Vec<Change> {
    let mut changes = Vec::new();
    for n in 0..3 {
        changes.push(Change::AddProject(Project::new(project(n), "p".parse().unwrap())));
        changes.push(Change::AddNode(some_node(n, 1, n)));
        let network = NetworkId::from_u128(n.into());
        changes.push(Change::EnablePrivateNetwork(NetworkRequest::new(project(n), network, terms())));
        let app = AppId::from_u128(n.into());
        changes.push(Change::AddApp(App::new(app, project(n), "a".parse().unwrap())));
        changes.push(Change::Scale { app, formation: "web:3 worker:3".parse().unwrap() });
    }
    changes
}

/// Changes of all kinds, or those that make VNIs or addresses scarce.
fn steps() -> impl Strategy<Value = (bool, Vec<(u64, Change, bool)>)> {
    let all = any::<(u8, u8, u8, u8)>().prop_map(change);
    let vnis = (prop::sample::select(vec![0, 1, 2, 2, 2, 4, 4, 4, 5, 7]), 0u8..4, 0u8..5, 1u8..2);
    let vnis = vnis.prop_map(change);
    let containers = (17u8..32, 0u8..3, 0u8..10, 0u8..20).prop_map(|(kind, a, b, c)| match change((kind, a, b, c)) {
        Change::Start { container, slot, .. } => Change::Start { container, slot, node: node(c % 3) },
        change => change,
    });
    let steps = |changes, seconds| prop::collection::vec((0u64..seconds, changes, any::<bool>()), 0..100);
    prop_oneof![
        (Just(true), steps(all.boxed(), 40)),
        (Just(false), steps(vnis.boxed(), 60)),
        (Just(true), steps(containers.boxed(), 20)),
    ]
}

fn cases() -> u32 {
    std::env::var("PN_MACHINE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(96)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Two registries, one after the other, with what each remembers of what the other has changed since.
    #[test]
    fn a_registry_equals_one_big_state((is_begun, steps) in steps()) {
        runtime().block_on(async {
            let clock = Arc::new(ManualClock::new(Timestamp::ZERO, 1));
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let registry = || Registry::new(Arc::clone(&store), region()).with_clock(clock.clone());
            let registries = [registry(), registry()];
            let (mut state, mut seconds) = (State::new(region()), 0);
            let begin = begin().into_iter().filter(|_| is_begun).map(|change| (1, change, true));
            for (pause, change, one) in begin.chain(steps) {
                seconds += pause;
                let now = Timestamp::from_millis(seconds * 1000);
                clock.set(now);
                let expected = state.apply(now, change.clone()).map(drop);
                let given = registries[usize::from(one)].apply(change.clone()).await;
                let given = given.map(drop).map_err(|error| match error {
                    RegistryError::Refused(refused) => refused,
                    error => panic!("{change:?}: {error:?}"),
                });
                prop_assert_eq!(given, expected, "{:?}", change);
                let stored = registry().state().await.unwrap();
                prop_assert_eq!(stored.records(), state.records(), "after {:?}", change);
            }
            // Nothing is left of what is no more.
            let (_, entries) = store.list_all(&Key::all(), None).await.unwrap();
            let image = layout::image(&state.records());
            let keys: Vec<&Key> =
                entries.iter().map(|entry| &entry.key).filter(|key| !key.starts_with(&layout::heads())).collect();
            prop_assert_eq!(keys, image.keys().collect::<Vec<_>>());
            let heads = entries.iter().filter(|entry| entry.key.starts_with(&layout::heads())).count();
            prop_assert_eq!(heads, state.projects().len());
            Ok(())
        })?;
    }
}

fn start(container: u32, app: u128, index: u32, on: u8) -> Change {
    let slot = Slot::new(AppId::from_u128(app), ContainerType::web(), index).unwrap();
    Change::Start { container: ContainerId::from_u128(container.into()), slot, node: node(on) }
}

/// A registry over an empty store, with nodes 1 and 2 and one network with an app of 300 containers at most.
async fn begun() -> (MemoryStore, Registry) {
    let store = MemoryStore::new();
    let registry = Registry::new(Arc::new(store.clone()), Region::default());
    make(&registry, 1).await;
    (store, registry)
}

async fn make(registry: &Registry, n: u8) {
    let app = AppId::from_u128(n.into());
    for change in [
        Change::AddProject(Project::new(project(n), "p".parse().unwrap())),
        Change::EnablePrivateNetwork(NetworkRequest::new(project(n), NetworkId::from_u128(n.into()), terms())),
        Change::AddApp(App::new(app, project(n), "a".parse().unwrap())),
        Change::Scale { app, formation: "web:300".parse().unwrap() },
    ] {
        registry.apply(change).await.unwrap();
    }
    for n in 1..=2 {
        drop(registry.apply(Change::AddNode(some_node(n, 1, 1))).await);
    }
}

#[tokio::test]
async fn scaling_down_by_more_than_a_transaction_holds_is_done_in_steps() {
    let (_, registry) = begun().await;
    let app = AppId::from_u128(1);
    for n in 1..=250 {
        registry.apply(start(n, 1, n, 1)).await.unwrap();
    }
    registry.apply(Change::Scale { app, formation: "web:3".parse().unwrap() }).await.unwrap();
    let state = registry.state().await.unwrap();
    let live = state.containers(NetworkId::from_u128(1)).filter(Container::is_live);
    assert_eq!(live.count(), 3);
    assert_eq!(state.app(app).unwrap().formation.to_string(), "web:3");
}

#[tokio::test]
async fn a_network_is_taken_away_whole_however_many_addresses_rest() {
    let (store, registry) = begun().await;
    for n in 1..=250 {
        registry.apply(start(n, 1, n, 1)).await.unwrap();
    }
    for n in 1..=250 {
        registry.apply(Change::Fail(ContainerId::from_u128(n))).await.unwrap();
    }
    registry.apply(Change::RemoveApp(AppId::from_u128(1))).await.unwrap();
    registry.apply(Change::DisablePrivateNetwork(project(1))).await.unwrap();
    registry.apply(Change::RemoveProject(project(1))).await.unwrap();
    let (_, left) = store.list_all(&layout::projects(), None).await.unwrap();
    assert_eq!(left, []);
}

#[tokio::test]
async fn a_node_in_too_many_networks_keeps_its_mtu() {
    let (_, registry) = begun().await;
    for n in 2..=60 {
        make(&registry, n).await;
    }
    let mut small = some_node(1, 1, 1);
    small.underlay_mtu = 1400;
    for n in 1..=50 {
        registry.apply(start(n, n.into(), 1, 1)).await.unwrap();
        registry.apply(start(100 + n, n.into(), 2, 2)).await.unwrap();
    }
    registry.apply(Change::UpdateNode(small.clone())).await.unwrap();
    registry.apply(start(51, 51, 1, 1)).await.unwrap();
    small.underlay_mtu = 1500;
    let error = registry.apply(Change::UpdateNode(small.clone())).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooManyNetworks { networks: 51, most: 50, .. }), "{error}");
    // What networks do not ask about may change.
    small.underlay_mtu = 1400;
    small.registration = 9;
    registry.apply(Change::UpdateNode(small)).await.unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_named_and_nothing_written() {
    for (key, value, expected) in [
        ("project/{}/network", "{\"version\":3}", "a document of version 3: this release reads versions 1 to 2"),
        ("project/{}/network", "\u{1}", "not a document"),
        ("head/{}", "{}", "not a head"),
        ("head/{}", "{\"version\":2,\"next\":1,\"recent\":[]}", "a head of version 2: this release reads version 1"),
        ("app/ap-00000000-0000-0000-0000-000000000001", "me", "\"me\" is not"),
    ] {
        let (store, _) = begun().await;
        let key: Key = key.replace("{}", &project(1).to_string()).parse().unwrap();
        store.commit(Transaction::new().put(key.clone(), value)).await.unwrap();
        let before = store.list_all(&Key::all(), None).await.unwrap();
        let registry = Registry::new(Arc::new(store.clone()), Region::default());
        let error = registry.apply(start(1, 1, 1, 1)).await.unwrap_err();
        let RegistryError::Record { key: named, source } = &error else { panic!("{error:?}") };
        assert!(*named == key && source.to_string().contains(expected), "{error}: {source}");
        assert_eq!(store.list_all(&Key::all(), None).await.unwrap(), before);
    }
}

#[tokio::test]
async fn what_has_drained_is_removed_where_it_is() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1), 1));
    let (_, registry) = begun().await;
    let registry = registry.with_clock(clock.clone());
    for n in 1..=4 {
        registry.apply(start(n, 1, n, 1 + (n % 2) as u8)).await.unwrap();
        registry.apply(Change::Stop(ContainerId::from_u128(n.into()))).await.unwrap();
    }
    assert_eq!(registry.remove_drained(project(1), node(1)).await.unwrap(), 0);
    clock.set(Timestamp::from_millis(5001));
    assert_eq!(registry.remove_drained(project(1), node(1)).await.unwrap(), 2);
    assert_eq!(registry.state().await.unwrap().containers(NetworkId::from_u128(1)).count(), 2);
}

/// A client that takes no more than so many octets at once, as that of etcd does.
#[derive(Debug)]
pub(crate) struct Narrow;

impl Stage for Narrow {
    fn page(&self, page: &Page) -> Result<(), StoreError> {
        const MOST: usize = 4 << 20;
        let octets: usize = page.entries.iter().map(|entry| entry.key.as_str().len() + entry.value.len()).sum();
        match octets <= MOST {
            true => Ok(()),
            false => Err(StoreError::new(StoreErrorKind::TooLarge, "list", format!("{octets} octets"))),
        }
    }
}

#[tokio::test]
async fn what_nodes_say_and_answer_is_no_part_of_a_state() {
    let (store, registry) = begun().await;
    let (state, mut backup) = (registry.state().await.unwrap(), Vec::new());
    registry.backup(&mut backup).await.unwrap();
    for n in 0..100 {
        for family in ["seen/a/", "status/", "applied/a/", "confirm/", "recall/"] {
            let key: Key = format!("{family}{n:03}").parse().unwrap();
            store.commit(Transaction::new().put(key, vec![b'x'; 50_000])).await.unwrap();
        }
    }
    let registry = Registry::new(Staged::new(store, Narrow), Region::default());
    let read = registry.state().await.unwrap();
    assert_eq!(read.records(), state.records());
    assert!(read.generation() > state.generation(), "it is as of the store's own revision");
    assert_eq!(registry.backup(&mut Vec::new()).await.unwrap().records, state.records().len() as u64);
    assert_eq!(registry.restore(&mut &*backup).await.unwrap().written, 0);
    assert_eq!(registry.recall(Duration::ZERO).await.unwrap().missing, []);
}

#[tokio::test]
async fn a_state_is_read_as_of_one_revision_whoever_writes_meanwhile() {
    /// Adds a project before each page.
    #[derive(Debug)]
    struct Writer;

    #[async_trait::async_trait]
    impl Stage for Writer {
        async fn before_page(&self, store: &MemoryStore, _: &Listing) {
            let other = Registry::new(Arc::new(store.clone()), Region::default());
            let n = u8::try_from(other.state().await.unwrap().projects().count()).unwrap() + 1;
            other.apply(Change::AddProject(Project::new(project(n), "p".parse().unwrap()))).await.unwrap();
        }
    }

    let (store, registry) = begun().await;
    let other = Registry::new(Staged::new(store, Writer), Region::default());
    assert_eq!(other.state().await.unwrap().projects().count(), 2, "as of when the first page was read");
    assert!(registry.state().await.unwrap().projects().count() > 2, "others wrote while it was read");
}

#[tokio::test]
async fn history_that_is_forgotten_between_two_pages_is_read_anew() {
    /// Forgets history before a page that is not the first, so many times.
    #[derive(Debug)]
    struct Compacting(std::sync::atomic::AtomicU32);

    #[async_trait::async_trait]
    impl Stage for Compacting {
        async fn before_page(&self, store: &MemoryStore, listing: &Listing) {
            use std::sync::atomic::Ordering::Relaxed;
            let is_first = listing.at.is_none();
            if !is_first && self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                for _ in 0..2 {
                    store.commit(Transaction::new().put("other".parse().unwrap(), "")).await.unwrap();
                }
                store.compact(store.get(&[]).await.unwrap().revision).await.unwrap();
            }
        }
    }

    let (store, registry) = begun().await;
    for n in 1..=250 {
        registry.apply(start(n, 1, n, 1)).await.unwrap();
    }
    let all = Key::all();
    for (times, is_read) in [(1, true), (3, true), (4, false)] {
        let staged = || Staged::new(store.clone(), Compacting(times.into()));
        let (_, entries) = store.list_all(&all, None).await.unwrap();
        assert!(entries.len() > Listing::LIMIT.get(), "there are two pages");
        match staged().list_all(&all, None).await {
            Ok(read) => assert!(is_read && read.1.len() >= entries.len()),
            Err(error) => assert!(!is_read && error.kind() == StoreErrorKind::Compacted, "{error}"),
        }
        let read = Registry::new(staged(), Region::default()).state().await;
        assert_eq!(read.is_ok(), is_read);
    }
    // Whoever wants one revision gets that one or none.
    let (then, _) = store.get_one(&all).await.unwrap();
    let error = Staged::new(store, Compacting(1.into())).list_all(&all, Some(then)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Compacted);
}

#[tokio::test]
async fn what_was_read_before_the_store_went_back_is_not_believed() {
    /// A store as it was when a snapshot was taken.
    async fn snapshot() -> MemoryStore {
        let store = MemoryStore::new();
        let clock = Arc::new(ManualClock::new(Timestamp::ZERO, 1));
        make(&Registry::new(Arc::new(store.clone()), Region::default()).with_clock(clock), 1).await;
        store
    }

    let store = Staged::new(snapshot().await, ());
    let new = || Registry::new(store.clone(), Region::default());
    let old = new();
    let one = old.apply(start(1, 1, 1, 1)).await.unwrap();
    store.replace(snapshot().await);
    let two = new().apply(start(2, 1, 2, 1)).await.unwrap();
    let (of_one, of_two) = (one.container(ContainerId::from_u128(1)), two.container(ContainerId::from_u128(2)));
    assert_eq!((one.revision(), of_one.unwrap().address), (two.revision(), of_two.as_ref().unwrap().address));
    let ready = Change::Ready(ContainerId::from_u128(1));
    let refused = old.apply(ready).await.expect_err("container 1 is no more");
    assert!(matches!(refused, RegistryError::Refused(pn_core::ApplyError::UnknownContainer { .. })), "{refused:?}");
    let state = old.state().await.unwrap();
    assert_eq!(state.containers(NetworkId::from_u128(1)).collect::<Vec<_>>(), [of_two.unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn what_was_made_is_known_however_much_others_wrote_while_the_answer_was_lost() {
    /// Others start some containers when a transaction was made, or is about to be, and its answer is lost.
    #[derive(Debug, Default)]
    struct Busy(std::sync::Mutex<[Option<std::ops::Range<u32>>; 2]>);

    impl Busy {
        async fn start(&self, which: usize, store: &MemoryStore) -> Result<(), StoreError> {
            let Some(others) = self.0.lock().unwrap()[which].take() else { return Ok(()) };
            let other = Registry::new(Arc::new(store.clone()), Region::default());
            for n in others {
                other.apply(start(n, 1, n, 1)).await.unwrap();
            }
            Err(StoreError::new(StoreErrorKind::Unavailable, "commit", "the answer is lost"))
        }
    }

    #[async_trait::async_trait]
    impl Stage for Busy {
        async fn committing(&self, store: &MemoryStore) -> Result<(), StoreError> {
            self.start(0, store).await
        }

        async fn committed(&self, store: &MemoryStore) -> Result<(), StoreError> {
            self.start(1, store).await
        }
    }

    let (store, other) = begun().await;
    other.apply(Change::AddProject(Project::new(project(2), "p".parse().unwrap()))).await.unwrap();
    let staged = Staged::new(store, Busy::default());
    let registry = Registry::new(staged.clone(), Region::default());
    let (added, first) = (AppId::from_u128(7), ContainerId::from_u128(1));
    let replace = Change::Replace { container: ContainerId::from_u128(2), replaces: first, node: node(2) };
    for (n, change) in (1..).zip([
        start(1, 1, 1, 1),
        Change::Ready(first),
        replace.clone(),
        Change::AddApp(App::new(added, project(1), "a".parse().unwrap())),
        Change::RemoveApp(added),
        Change::RemoveProject(project(2)),
        Change::AddProject(Project::new(project(3), "p".parse().unwrap())),
        Change::EnablePrivateNetwork(NetworkRequest::new(project(3), NetworkId::from_u128(3), terms())),
        Change::AddNode(some_node(3, 1, 1)),
        Change::RemoveNode(node(3)),
    ]) {
        staged.stage.0.lock().unwrap()[1] = Some(20 * n..20 * n + 17);
        registry.apply(change.clone()).await.unwrap_or_else(|error| panic!("{change:?} was made: {error:?}"));
    }
    // What was not made, and is another's by now, is refused.
    for (n, change) in [(220, start(500, 1, 220, 1)), (240, start(240, 1, 240, 2))] {
        staged.stage.0.lock().unwrap()[0] = Some(n..n + 17);
        registry.apply(change.clone()).await.map(drop).expect_err("others were faster");
    }
    let state = registry.state().await.unwrap();
    assert_eq!(state.containers(NetworkId::from_u128(1)).count(), 2 + 12 * 17);
    assert_eq!(state.projects().map(|project| project.id).collect::<Vec<_>>(), [project(1), project(3)]);
}

#[tokio::test(start_paused = true)]
async fn what_a_clock_that_is_ahead_stopped_is_removed_when_it_was_seen_to_drain_long_enough() {
    const AHEAD: u64 = 3_600_000;
    let (store, _) = begun().await;
    let at = |millis| {
        let clock = ManualClock::new(Timestamp::from_millis(millis), millis);
        Registry::new(Arc::new(store.clone()), Region::default()).with_clock(Arc::new(clock))
    };
    let (right, ahead) = (at(1_000_000), at(1_000_000 + AHEAD));
    for n in 1..=3 {
        right.apply(start(n, 1, n, 1)).await.unwrap();
    }
    let removed = |registry: &Registry| {
        let registry = registry.clone();
        async move { registry.remove_drained(project(1), node(1)).await.unwrap() }
    };
    ahead.apply(Change::Stop(ContainerId::from_u128(1))).await.unwrap();
    assert_eq!(removed(&right).await, 0, "nobody knows since when it drains");
    tokio::time::advance(Duration::from_millis(2000)).await;
    ahead.apply(Change::Stop(ContainerId::from_u128(2))).await.unwrap();
    assert_eq!(removed(&right).await, 0);
    tokio::time::advance(Duration::from_millis(2999)).await;
    assert_eq!((removed(&right).await, removed(&at(1_004_999)).await), (0, 0));
    tokio::time::advance(Duration::from_millis(1)).await;
    // Another process has to see it for as long.
    assert_eq!((removed(&at(1_005_000)).await, removed(&right).await), (0, 1));
    assert_eq!(removed(&right).await, 0, "the second was seen later");
    tokio::time::advance(Duration::from_millis(2000)).await;
    assert_eq!(removed(&right).await, 1);
    // The clock of the project is as far ahead as it was, and not farther.
    right.apply(Change::Stop(ContainerId::from_u128(3))).await.unwrap();
    let phase = right.state().await.unwrap().container(ContainerId::from_u128(3)).unwrap().phase;
    let Phase::Draining { since } = phase else { panic!("{phase:?}") };
    assert!(since.as_millis() <= 1_000_000 + AHEAD + 7000, "{since}");
    // The right time is there at last: it drains no longer than it has to.
    assert_eq!(removed(&at(since.as_millis() + 5000)).await, 1);
    assert_eq!(right.state().await.unwrap().containers(NetworkId::from_u128(1)).count(), 0);
}
