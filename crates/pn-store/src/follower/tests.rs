#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is all the same here")]

use core::time::Duration;

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, NetworkRequest, Node, NodePlan, Project, ProjectId, PublicKey,
    Region, Slot, Terms, Timestamp,
};
use tokio::time::{Instant, timeout};

use super::*;
use crate::{
    Faulty, Held, Key, MemoryStore, NodeStatus, RegistryError, Reporter, Store, StoreExt, Transaction, layout,
};

const TTL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);

fn node(n: u8) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Node::new(NodeId::from_u128(n.into()), "n".parse().unwrap(), underlay, tunnel, PublicKey::new([n; 32]))
}

fn container(n: u32) -> ContainerId {
    ContainerId::from_u128(n.into())
}

fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

fn registry(store: impl Store + 'static) -> Registry {
    Registry::new(Arc::new(store), Region::default())
}

/// Makes a network with an app of up to 100 containers.
async fn make_network(registry: &Registry, n: u128) {
    let (project, app) = (ProjectId::from_u128(n), AppId::from_u128(n));
    let text = || "x".parse().unwrap();
    let terms = Terms { accepted_by: text(), version: text(), accepted_at: Timestamp::ZERO };
    for change in [
        Change::AddProject(Project::new(project, text())),
        Change::EnablePrivateNetwork(NetworkRequest::new(project, network(n), terms)),
        Change::AddApp(App::new(app, project, text())),
        Change::Scale { app, formation: "web:100".parse().unwrap() },
    ] {
        registry.apply(change).await.unwrap();
    }
}

/// Starts a container of a network on a node, ready at once.
async fn start(registry: &Registry, network: u128, index: u32, on: u8) -> Revision {
    let slot = Slot::new(AppId::from_u128(network), ContainerType::web(), index).unwrap();
    let id = container(u32::try_from(network).unwrap() * 1000 + index);
    let node = NodeId::from_u128(on.into());
    registry.apply(Change::Start { container: id, slot, node }).await.unwrap();
    registry.apply(Change::Ready(id)).await.unwrap().revision()
}

async fn next(follower: &mut Follower) -> Followed {
    timeout(PATIENCE, follower.next()).await.expect("there is a word")
}

/// Follows until a plan is as it should be.
async fn plan(follower: &mut Follower, is_it: impl Fn(&NodePlan) -> bool) -> NodePlan {
    let mut last = None;
    let found = timeout(PATIENCE, async {
        loop {
            match follower.next().await {
                Followed::Plan(plan) if is_it(&plan) => return plan,
                word => last = Some(word),
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("the plan does not come; the last word was {last:#?}"))
}

/// Says how many endpoints and names a plan has.
fn counts(plan: &NodePlan) -> (usize, usize) {
    let networks = || plan.networks.values();
    let named = networks().flat_map(|network| network.zone.types()).map(|of_type| of_type.containers.len());
    (networks().map(|network| network.endpoints.len()).sum(), named.sum())
}

async fn is_planned_as_everything(registry: &Registry, plan: &NodePlan) {
    let state = registry.state().await.unwrap();
    let mut expected = state.node_plan(plan.node);
    expected.generation = plan.generation;
    assert_eq!(*plan, expected);
}

#[tokio::test(start_paused = true)]
async fn a_share_is_followed_and_equals_the_slice_of_the_whole() {
    let registry = registry(MemoryStore::new());
    let one = registry.join(node(1), TTL).await.unwrap();
    let _two = registry.join(node(2), TTL).await.unwrap();
    make_network(&registry, 1).await;
    start(&registry, 1, 1, 1).await;
    let mut follower = Follower::new(one);
    let first = plan(&mut follower, |plan| counts(plan) == (1, 1)).await;
    is_planned_as_everything(&registry, &first).await;

    start(&registry, 1, 2, 2).await;
    let second = plan(&mut follower, |plan| counts(plan) == (2, 2)).await;
    is_planned_as_everything(&registry, &second).await;
    assert!(second.generation > first.generation && second.peers.len() == 1);
    // A network that the node has no part in, and then it has.
    make_network(&registry, 2).await;
    start(&registry, 2, 1, 2).await;
    start(&registry, 2, 2, 1).await;
    let third = plan(&mut follower, |plan| counts(plan) == (4, 4)).await;
    is_planned_as_everything(&registry, &third).await;
    // And it leaves one again, with the peers that were only there.
    registry.apply(Change::Fail(container(1001))).await.unwrap();
    let fourth = plan(&mut follower, |plan| plan.networks.len() == 1).await;
    is_planned_as_everything(&registry, &fourth).await;
    registry.apply(Change::Scale { app: AppId::from_u128(2), formation: "web:1".parse().unwrap() }).await.unwrap();
    let fifth = plan(&mut follower, |plan| counts(plan) == (2, 1)).await;
    is_planned_as_everything(&registry, &fifth).await;
}

#[tokio::test(start_paused = true)]
async fn l6_a_dead_nodes_names_go_with_its_lease_and_come_back_with_it() {
    let registry = registry(MemoryStore::new());
    let (one, two) = (registry.join(node(1), TTL).await.unwrap(), registry.join(node(2), TTL).await.unwrap());
    make_network(&registry, 1).await;
    start(&registry, 1, 1, 1).await;
    start(&registry, 1, 2, 2).await;
    let mut follower = Follower::new(one);
    plan(&mut follower, |plan| counts(plan) == (2, 2)).await;
    let died = Instant::now();
    drop(two);
    let without = plan(&mut follower, |plan| counts(plan) == (2, 1)).await;
    let (gone, at) = (died.elapsed(), &without.networks[&network(1)]);
    assert!(gone <= TTL + Duration::from_secs(1), "gone after {gone:?}");
    assert!(at.is_named(&at.endpoints[0]) && !at.is_named(&at.endpoints[1]), "its way stays, its name does not");
    // What changes meanwhile is not taken for life.
    start(&registry, 1, 3, 2).await;
    plan(&mut follower, |plan| counts(plan) == (3, 1)).await;
    let _again = registry.join(node(2), TTL).await.unwrap();
    let back = plan(&mut follower, |plan| counts(plan) == (3, 3)).await;
    is_planned_as_everything(&registry, &back).await;
    // A node that leaves is gone at once, one that has never been there at first.
    _again.leave().await.unwrap();
    plan(&mut follower, |plan| counts(plan) == (3, 1)).await;
    drop(follower);
    let mut anew = Follower::new(registry.join(node(1), TTL).await.unwrap());
    plan(&mut anew, |plan| counts(plan) == (3, 1)).await;
}

/// Returns what is said until there is a plan, and the plan.
async fn words_until(follower: &mut Follower, is_it: impl Fn(&NodePlan) -> bool) -> (Vec<Followed>, NodePlan) {
    let mut words = Vec::new();
    loop {
        match next(follower).await {
            Followed::Plan(plan) if is_it(&plan) => return (words, plan),
            Followed::Closed => panic!("it has ended after {words:?}"),
            word => words.push(word),
        }
    }
}

/// A node whose lease ended has what it was told last until it is told more: nothing stops for it (L4). What went while it was away
/// is confirmed.
#[tokio::test(start_paused = true)]
async fn l6_a_node_whose_lease_ended_joins_again_and_is_told_what_it_missed() {
    let store = MemoryStore::new();
    let cut = Faulty::new(store.clone());
    let registry = registry(store);
    let session = self::registry(cut.clone()).join(node(1), TTL).await.unwrap();
    assert_eq!(session.registration(), 1);
    make_network(&registry, 1).await;
    start(&registry, 1, 1, 1).await;
    let mut follower = Follower::new(session);
    let before = plan(&mut follower, |plan| counts(plan) == (1, 1)).await;
    cut.cut_off();
    assert!(matches!(next(&mut follower).await, Followed::Lost(_)));
    tokio::time::sleep(2 * TTL).await;
    start(&registry, 1, 2, 1).await;
    registry.apply(Change::Fail(container(1001))).await.unwrap();
    cut.restore();
    let (words, after) = words_until(&mut follower, |_| true).await;
    assert_eq!(words, [Followed::Back, Followed::Confirmed(after.generation)]);
    assert_eq!(counts(&after), (1, 1));
    assert_eq!(after.host.as_ref().unwrap().registration, 2, "it has joined again");
    assert!(after.generation > before.generation);
}

/// A store that forgot the node is told of it anew, and what it forgot is not confirmed (L3).
#[tokio::test(start_paused = true)]
async fn l5_a_store_that_lost_everything_confirms_nothing_when_the_lease_ended() {
    let store = MemoryStore::new();
    let registry = registry(store.clone());
    let session = registry.join(node(1), TTL).await.unwrap();
    let lease = session.lease();
    make_network(&registry, 1).await;
    start(&registry, 1, 1, 1).await;
    let mut follower = Follower::new(session);
    plan(&mut follower, |plan| counts(plan) == (1, 1)).await;
    store.commit(Transaction::new().delete_prefix(Key::all())).await.unwrap();
    store.revoke(lease).await.unwrap();
    let (words, emptied) = words_until(&mut follower, |plan| plan.networks.is_empty() && plan.host.is_some()).await;
    let is_plan = |word: &Followed| matches!(word, Followed::Plan(_));
    assert!(words.iter().all(is_plan), "{words:?}");
    assert_eq!(emptied.host.as_ref().unwrap().registration, 1);
}

/// A store that went back to an earlier life of the node knows an older registration: nobody took the place.
#[tokio::test(start_paused = true)]
async fn l5_a_store_that_went_back_to_an_earlier_life_is_no_other_agent() {
    for is_alive in [true, false] {
        let store = MemoryStore::new();
        let registry = registry(store.clone());
        make_network(&registry, 1).await;
        drop(registry.join(node(1), TTL).await.unwrap());
        let id = NodeId::from_u128(1);
        let earlier = store.get(&[layout::node(id), layout::alive(id)]).await.unwrap().entries;
        let [Some(record), Some(alive)] = &earlier[..] else { panic!("it has joined") };
        let (record, alive) = (record.clone(), alive.clone());
        let session = registry.join(node(1), TTL).await.unwrap();
        assert_eq!(session.registration(), 2);
        start(&registry, 1, 1, 1).await;
        let mut follower = Follower::new(session);
        plan(&mut follower, |plan| counts(plan) == (1, 1)).await;
        let back = Transaction::new().put(record.key, record.value);
        let back = if is_alive { back.put(alive.key, alive.value) } else { back.delete(alive.key) };
        store.commit(back).await.unwrap();
        if !is_alive {
            store.revoke(follower.progress().lease()).await.unwrap();
        }
        let (words, _) =
            words_until(&mut follower, |plan| plan.host.as_ref().is_some_and(|host| host.registration == 3)).await;
        assert!(words.iter().all(|word| matches!(word, Followed::Plan(_))), "{words:?}");
    }
}

/// Whoever had the place while the node was away may have changed what is on the machine.
#[tokio::test(start_paused = true)]
async fn l6_a_node_whose_place_somebody_had_or_has_is_fenced() {
    for is_there_still in [false, true] {
        let store = MemoryStore::new();
        let cut = Faulty::new(store.clone());
        let registry = registry(store);
        make_network(&registry, 1).await;
        let session = self::registry(cut.clone()).join(node(1), TTL).await.unwrap();
        let mut follower = Follower::new(session);
        plan(&mut follower, |plan| plan.host.is_some()).await;
        cut.cut_off();
        tokio::time::sleep(2 * TTL).await;
        let mut other = node(1);
        other.public_key = PublicKey::new([9; 32]);
        let other = registry.join(other, TTL).await.unwrap();
        if !is_there_still {
            other.leave().await.unwrap();
        }
        cut.restore();
        assert!(matches!(next(&mut follower).await, Followed::Lost(_)));
        let Followed::Fenced(reason) = next(&mut follower).await else { panic!("somebody had the place") };
        if is_there_still {
            assert!(reason.contains("another agent"), "{reason}");
            assert_eq!(next(&mut follower).await, Followed::Closed);
        } else {
            assert!(reason.contains("meanwhile"), "{reason}");
            let (words, after) = words_until(&mut follower, |_| true).await;
            assert_eq!(words, [Followed::Back], "what went is not confirmed");
            let host = after.host.unwrap();
            assert_eq!((host.registration, host.public_key), (3, node(1).public_key));
        }
    }
}

/// What became of a node since it joined stays when it joins again: an offered key, and one that took the place of the first.
#[tokio::test(start_paused = true)]
async fn k3_a_node_that_joins_again_keeps_its_new_keys() {
    let store = MemoryStore::new();
    let registry = registry(store.clone());
    let (id, next_key) = (NodeId::from_u128(1), PublicKey::new([101; 32]));
    for is_promoted in [false, true] {
        let session = registry.join(node(1), TTL).await.unwrap();
        let lease = session.lease();
        let mut follower = Follower::new(session);
        registry.apply(Change::OfferKey { node: id, public_key: next_key }).await.unwrap();
        if is_promoted {
            registry.apply(Change::PromoteKey(id)).await.unwrap();
        }
        let before = registry.state().await.unwrap().node(id).unwrap().clone();
        store.revoke(lease).await.unwrap();
        let again =
            plan(&mut follower, |plan| plan.host.as_ref().is_some_and(|host| host.registration > before.registration));
        let mut after = Node::clone(again.await.host.as_ref().unwrap());
        after.registration = before.registration;
        assert_eq!(after, before);
    }
}

#[tokio::test(start_paused = true)]
async fn l6_of_two_agents_with_one_name_the_second_is_refused_or_takes_over() {
    let registry = registry(MemoryStore::new());
    let session = registry.join(node(1), TTL).await.unwrap();
    let mut first = Follower::new(session);
    plan(&mut first, |plan| plan.host.is_some()).await;
    let mut other = node(1);
    other.public_key = PublicKey::new([9; 32]);
    let error = registry.join(other.clone(), TTL).await.unwrap_err();
    assert!(matches!(error, RegistryError::NodeTaken { .. }), "{error}");
    // The same key is the same node, started again: the process before is fenced, if it is there at all.
    let second = registry.join(node(1), TTL).await.unwrap();
    assert_eq!(second.registration(), 2);
    loop {
        match next(&mut first).await {
            Followed::Plan(_) => (),
            Followed::Fenced(reason) => break assert!(reason.contains("registration 2"), "{reason}"),
            word => panic!("{word:?}"),
        }
    }
    assert_eq!(next(&mut first).await, Followed::Closed);
    // Nobody is there when the lease has ended, so the name is free.
    drop((first, second));
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    assert_eq!(registry.join(other, TTL).await.unwrap().registration(), 3);
}

#[tokio::test(start_paused = true)]
async fn l4_a_lost_store_is_said_once_and_is_no_empty_plan() {
    let store = MemoryStore::new();
    let cut = Faulty::new(store.clone());
    let registry = registry(store);
    make_network(&registry, 1).await;
    let session = self::registry(cut.clone()).join(node(1), Duration::from_secs(600)).await.unwrap();
    start(&registry, 1, 1, 1).await;
    let mut follower = Follower::new(session);
    plan(&mut follower, |plan| counts(plan) == (1, 1)).await;
    cut.cut_off();
    let Followed::Lost(reason) = next(&mut follower).await else { panic!("the store is lost") };
    assert!(reason.contains("cannot be reached"), "{reason}");
    start(&registry, 1, 2, 1).await;
    assert!(timeout(Duration::from_secs(20), follower.next()).await.is_err(), "it is said once");
    cut.restore();
    assert_eq!(next(&mut follower).await, Followed::Back);
    plan(&mut follower, |plan| counts(plan) == (2, 2)).await;
    // A watch that ends loses nothing, and is nothing to talk about.
    cut.close_watches();
    start(&registry, 1, 3, 1).await;
    let Followed::Plan(_) = next(&mut follower).await else { panic!("the store is there") };
}

#[tokio::test(start_paused = true)]
async fn l1_history_that_is_gone_is_read_anew() {
    let store = MemoryStore::new();
    let cut = Faulty::new(store.clone());
    let registry = registry(store.clone());
    make_network(&registry, 1).await;
    let session = self::registry(cut.clone()).join(node(1), Duration::from_secs(600)).await.unwrap();
    start(&registry, 1, 1, 1).await;
    start(&registry, 1, 2, 1).await;
    let mut follower = Follower::new(session);
    plan(&mut follower, |plan| counts(plan) == (2, 2)).await;
    cut.cut_off();
    assert!(matches!(next(&mut follower).await, Followed::Lost(_)));
    registry.apply(Change::Fail(container(1001))).await.unwrap();
    let last = start(&registry, 1, 3, 1).await;
    store.compact(last.next()).await.unwrap();
    cut.restore();
    let after = plan(&mut follower, |plan| counts(plan) == (2, 2)).await;
    is_planned_as_everything(&registry, &after).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_leaves_the_last_plan_standing() {
    let store = MemoryStore::new();
    let registry = registry(store.clone());
    make_network(&registry, 1).await;
    let mut follower = Follower::new(registry.join(node(1), TTL).await.unwrap());
    start(&registry, 1, 1, 1).await;
    plan(&mut follower, |plan| counts(plan) == (1, 1)).await;
    let key: Key = format!("project/{}/network", ProjectId::from_u128(1)).parse().unwrap();
    let (_, before) = store.get_one(&key).await.unwrap();
    store.commit(Transaction::new().put(key.clone(), r#"{"version":99}"#)).await.unwrap();
    let Followed::Lost(reason) = next(&mut follower).await else { panic!("it cannot be read") };
    assert!(reason.contains("a document of version 99: this release reads versions 1 to 2"), "{reason}");
    store.commit(Transaction::new().put(key, before.unwrap().value)).await.unwrap();
    assert_eq!(next(&mut follower).await, Followed::Back);
    plan(&mut follower, |plan| counts(plan) == (1, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn l3_everything_deleted_is_one_plan_and_no_death() {
    let store = MemoryStore::new();
    let registry = registry(store.clone());
    make_network(&registry, 1).await;
    let sessions = [registry.join(node(1), TTL).await.unwrap(), registry.join(node(2), TTL).await.unwrap()];
    start(&registry, 1, 1, 1).await;
    start(&registry, 1, 2, 2).await;
    let mut backup = Vec::new();
    registry.backup(&mut backup).await.unwrap();
    let [mut one, mut two] = sessions.map(Follower::new);
    let before = plan(&mut one, |plan| counts(plan) == (2, 2)).await;
    plan(&mut two, |plan| counts(plan) == (2, 2)).await;
    store.commit(Transaction::new().delete_prefix(Key::all())).await.unwrap();
    let nothing = plan(&mut one, |plan| plan.networks.is_empty()).await;
    plan(&mut two, |plan| plan.networks.is_empty()).await;
    let summary = registry.restore(&mut &backup[..]).await.unwrap();
    assert_eq!(summary.written, summary.records);
    let after = plan(&mut one, |plan| counts(plan) == (2, 2)).await;
    assert!(after.generation > nothing.generation && nothing.generation > before.generation);
    assert_eq!(after.networks, before.networks, "as it was");
    assert_eq!(after.peers, before.peers);
    plan(&mut two, |plan| counts(plan) == (2, 2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_is_told_once() {
    let registry = registry(MemoryStore::new());
    let mut follower = Follower::new(registry.join(node(1), TTL).await.unwrap());
    plan(&mut follower, |_| true).await;
    registry.confirm(NodeId::from_u128(1), Generation::new(7)).await.unwrap();
    assert_eq!(next(&mut follower).await, Followed::Confirmed(Generation::new(7)));
    assert!(timeout(Duration::from_secs(20), follower.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn d14_whoever_wrote_can_wait_until_it_is_applied() {
    let registry = registry(MemoryStore::new());
    make_network(&registry, 1).await;
    make_network(&registry, 2).await;
    let mut agents = Vec::new();
    for n in 1..=2 {
        let follower = Follower::new(registry.join(node(n), TTL).await.unwrap());
        agents.push((Reporter::new(follower.progress()), follower));
    }
    // An agent that applies every plan after a while.
    let agents = agents.into_iter().map(|(mut reporter, mut follower)| {
        tokio::spawn(async move {
            while let Followed::Plan(plan) = follower.next().await {
                tokio::time::sleep(Duration::from_millis(70)).await;
                reporter.report(NodeStatus::new(plan.generation, "test", "none"), Some(&plan)).await.unwrap();
            }
        })
    });
    let agents: Vec<_> = agents.collect();
    for n in 1..=5 {
        let revision = start(&registry, 1, n, 1 + u8::try_from(n % 2).unwrap()).await;
        start(&registry, 2, n, 1).await;
        let begun = Instant::now();
        registry.synced(revision, network(1), PATIENCE).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    let statuses = registry.statuses().await.unwrap();
    assert!(statuses.len() == 2 && statuses.values().all(|said| said.is_alive && said.status.is_some()));
    agents[0].abort();
    let revision = start(&registry, 1, 6, 1).await;
    let error = registry.synced(revision, network(1), Duration::from_secs(1)).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::TimedOut { what, .. } if what.contains("nd-00000000-0000-0000-0000-000000000001"))
    );
    // It is dead soon, and nobody waits for the dead.
    registry.synced(revision, network(1), PATIENCE).await.unwrap();
    agents[1].abort();
}

/// Who waits for one network does not wait for another that fails on the node or is held there, and is not told that this one is done.
#[tokio::test(start_paused = true)]
async fn d14_networks_are_waited_for_one_by_one() {
    let registry = registry(MemoryStore::new());
    make_network(&registry, 1).await;
    make_network(&registry, 2).await;
    let mut follower = Follower::new(registry.join(node(1), TTL).await.unwrap());
    let mut reporter = Reporter::new(follower.progress());
    let revisions = [start(&registry, 1, 1, 1).await, start(&registry, 2, 1, 1).await];
    let all = plan(&mut follower, |plan| counts(plan) == (2, 2)).await;
    let before = Generation::new(all.generation.get() - 1);
    let synced = async |n: usize| registry.synced(revisions[n - 1], network(n as u128), Duration::from_secs(1)).await;
    let is_synced = async |n: usize| synced(n).await.is_ok();
    // Network 1 is behind, then network 2 is ahead.
    for (applied, apart) in [(all.generation, (network(1), before)), (before, (network(2), all.generation))] {
        let mut status = NodeStatus::new(applied, "test", "none");
        status.apart = [apart].into();
        reporter.report(status, None).await.unwrap();
        assert_eq!([is_synced(1).await, is_synced(2).await], [false, true]);
    }
    // Whoever waited in vain is told why.
    let mut status = NodeStatus::new(before, "test", "none");
    status.held = Some(Held { generation: all.generation, reason: "all would go".to_owned() });
    reporter.report(status.clone(), None).await.unwrap();
    let why = async || synced(1).await.unwrap_err().to_string();
    assert!(
        why().await.contains(&format!("generation {} is confirmed: all would go", all.generation)),
        "{}",
        why().await
    );
    status.failures.push("endpoint 10.240.0.1: no namespace".to_owned());
    reporter.report(status, None).await.unwrap();
    assert!(
        why().await.contains("nd-00000000-0000-0000-0000-000000000001 (it says \"endpoint 10.240.0.1: no namespace\")")
    );
    reporter.report(NodeStatus::new(all.generation, "test", "none"), None).await.unwrap();
    assert_eq!([is_synced(1).await, is_synced(2).await], [true; 2]);
}

/// What is kept grows with the share: 200 networks of others do not show in it.
#[tokio::test(start_paused = true)]
async fn memory_does_not_grow_with_the_region() {
    let registry = registry(MemoryStore::new());
    make_network(&registry, 1).await;
    let mut follower = Follower::new(registry.join(node(1), TTL).await.unwrap());
    let _other = registry.join(node(2), TTL).await.unwrap();
    start(&registry, 1, 1, 1).await;
    for n in 2..=201 {
        make_network(&registry, n).await;
        start(&registry, n, 1, 2).await;
    }
    start(&registry, 1, 2, 1).await;
    let of_its_own = |plan: &NodePlan| plan.networks.len() <= 1 && plan.peers.is_empty();
    plan(&mut follower, |plan| {
        assert!(of_its_own(plan));
        counts(plan) == (2, 2)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn l5_what_nodes_have_rebuilds_what_the_store_lost() {
    let store = MemoryStore::new();
    let registry = registry(store.clone());
    for n in 1..=3 {
        make_network(&registry, n).await;
    }
    let mut agents = Vec::new();
    for n in 1..=2 {
        let mut follower = Follower::new(registry.join(node(n), TTL).await.unwrap());
        for network in 1..=2 {
            start(&registry, network, n.into(), n).await;
        }
        let mut reporter = Reporter::new(follower.progress());
        agents.push(tokio::spawn(async move {
            let mut kept: Option<NodePlan> = None;
            loop {
                match timeout(Duration::from_millis(300), follower.next()).await {
                    // What would remove everything is held.
                    Ok(Followed::Plan(plan)) if kept.is_none() || !plan.networks.is_empty() => kept = Some(plan),
                    Ok(_) => (),
                    Err(_) => {
                        let kept = kept.as_ref().unwrap();
                        reporter.report(NodeStatus::new(kept.generation, "test", "none"), Some(kept)).await.unwrap();
                    }
                }
            }
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for n in [1, 2].map(NodeId::from_u128) {
        let (planned, applied) =
            (registry.node_plan(n).await.unwrap(), registry.applied_plan(n, PATIENCE).await.unwrap());
        assert_eq!(planned.changes_since(&applied.unwrap()), []);
    }
    assert_eq!(registry.applied_plan(NodeId::from_u128(3), Duration::from_secs(1)).await.unwrap(), None);
    let before = registry.state().await.unwrap();
    let keep = layout::projects();
    store.commit(Transaction::new().delete_prefix(keep.clone())).await.unwrap();
    for prefix in ["node/", "app/", "container/", "network/", "head/", "claim/", "member/", "next/"] {
        store.commit(Transaction::new().delete_prefix(prefix.parse().unwrap())).await.unwrap();
    }
    let rebuild = registry.recall(PATIENCE).await.unwrap();
    assert_eq!((rebuild.answered.len(), rebuild.silent.len()), (2, 0));
    let (nodes, containers) = (2, 4);
    assert_eq!(rebuild.missing.len(), nodes + 2 * 3 + containers, "{:#?}", rebuild.missing);
    registry.rebuild(rebuild).await.unwrap();
    let after = registry.state().await.unwrap();
    for n in 1..=2 {
        assert!(before.containers(network(n)).eq(after.containers(network(n))));
        assert_eq!(before.network(network(n)).unwrap().vni, after.network(network(n)).unwrap().vni);
        let (was, is) = (before.node_plan(NodeId::from_u128(n)), after.node_plan(NodeId::from_u128(n)));
        assert_eq!((was.peers, was.host), (is.peers, is.host));
    }
    assert_eq!(after.app(AppId::from_u128(1)).unwrap().label.as_str(), format!("recovered-{}", AppId::from_u128(1)));
    // Life goes on: nothing is given twice.
    registry.apply(Change::Scale { app: AppId::from_u128(1), formation: "web:3".parse().unwrap() }).await.unwrap();
    start(&registry, 1, 1 + 2, 1).await;
    agents.iter().for_each(JoinHandle::abort);
}
