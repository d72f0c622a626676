use std::sync::Arc;

use pn_core::{Change, Node, PlanSource as _, PublicKey, Region};

use super::*;
use crate::registry::tests::Narrow;
use crate::registry::tests::staged::Staged;
use crate::{Fault, Faulty, Follower, MemoryStore, Store};

fn node(n: u8) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Node::new(NodeId::from_u128(n.into()), "n".parse().unwrap(), underlay, tunnel, PublicKey::new([n; 32]))
}

fn registry(store: Arc<dyn Store>) -> Registry {
    Registry::new(store, Region::default())
}

/// A reporter of a node, and the follower that it is of.
async fn reporter(registry: &Registry, n: u8) -> (Follower, Reporter) {
    let follower = Follower::new(registry.join(node(n), Duration::from_secs(60)).await.unwrap());
    let reporter = Reporter::new(follower.progress());
    (follower, reporter)
}

fn status() -> NodeStatus {
    NodeStatus::new(Generation::new(1), "test", "none")
}

#[tokio::test]
async fn nodes_in_trouble_leave_the_statuses_small_enough_to_be_read() {
    let registry = registry(Staged::new(MemoryStore::new(), Narrow));
    let mut status = status();
    status.failures = (0..1000).map(|n| format!("{n}: {}", "no space ".repeat(30))).collect();
    status.failures[1] = "é".repeat(1000);
    status.held = Some(Held { generation: Generation::new(2), reason: "x".repeat(100_000) });
    let mut followers = Vec::new();
    for n in 1..=200 {
        let (follower, mut reporter) = reporter(&registry, n).await;
        reporter.report(status.clone(), None).await.unwrap();
        followers.push(follower);
    }
    let statuses = registry.statuses().await.unwrap();
    assert_eq!(statuses.len(), 200);
    for reported in statuses.into_values() {
        let NodeStatus { failures, held, .. } = reported.status.unwrap();
        assert_eq!((failures.len(), &*failures[50]), (51, "and 950 more"));
        assert_eq!(failures[0], status.failures[0], "what is short is whole");
        assert!(failures.iter().all(|line| line.len() <= Reporter::LINE));
        assert_eq!(failures[1], format!("{}…", "é".repeat(148)), "a character is not cut");
        assert_eq!(held.unwrap().reason.len(), Reporter::REASON);
    }
    registry.state().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_larger_than_a_message_is_read_whole() {
    let registry = registry(Staged::new(MemoryStore::new(), Narrow));
    let line = Record::Node(node(1)).to_json();
    let lines = vec![line; 200].join("\n");
    let keys = (5 << 20) / lines.len();
    let put = |name: &str, value: &str| {
        let key = format!("{}{name}", layout::seen(node(1).id)).parse().unwrap();
        registry.store().commit(Transaction::new().put(key, value))
    };
    for n in 0..keys {
        put(&format!("{n:06}"), &lines).await.unwrap();
    }
    put("done", "7 9").await.unwrap();
    let answer = registry.answer(node(1).id, Revision::new(7)).await.unwrap().unwrap();
    assert_eq!((answer.generation, answer.records.len()), (Generation::new(9), 200 * keys));
}

#[tokio::test]
async fn a_question_is_answered_once_and_anew_where_the_store_went_back() {
    /// A store that has seen so many changes.
    async fn after(changes: u32) -> MemoryStore {
        let store = MemoryStore::new();
        registry(Arc::new(store.clone())).apply(Change::AddNode(node(1))).await.unwrap();
        for n in 0..changes {
            store.commit(Transaction::new().put("x".parse().unwrap(), n.to_string())).await.unwrap();
        }
        store
    }

    let staged = Staged::new(after(100).await, ());
    let registry = registry(staged.clone());
    let (follower, mut reporter) = reporter(&registry, 1).await;
    let (id, plan) = (node(1).id, NodePlan::empty(node(1).id, Generation::new(1)));
    let earlier = registry.ask(layout::recall()).await.unwrap();
    // A follower hears it, or begins anew.
    follower.progress().asked();
    reporter.report(status(), Some(&plan)).await.unwrap();
    assert!(registry.answer(id, earlier).await.unwrap().is_some());
    let (answered, _) = staged.get_one(&layout::recall()).await.unwrap();
    follower.progress().asked();
    reporter.report(status(), Some(&plan)).await.unwrap();
    assert_eq!(staged.get_one(&layout::recall()).await.unwrap().0, answered, "it is said once");
    // Another history: fewer changes, and as many.
    for (changes, is_same) in [(10, false), (earlier.get() as u32 - 2, true)] {
        staged.replace(after(changes).await);
        for (key, is_first) in [(layout::recall(), true), (layout::recall_of(id), false)] {
            let asked = registry.ask(key).await.unwrap();
            assert!(if is_same { !is_first || asked == earlier } else { asked < earlier });
            follower.progress().asked();
            reporter.report(status(), Some(&plan)).await.unwrap();
            assert!(registry.answer(id, asked).await.unwrap().is_some(), "{asked} after {earlier}");
        }
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_node_that_was_removed() {
    let store = Faulty::new(MemoryStore::new());
    let registry = registry(Arc::new(store.clone()));
    for n in 1..=3 {
        let (follower, mut reporter) = reporter(&registry, n).await;
        let (id, progress) = (node(n).id, follower.progress());
        reporter.report(status(), None).await.unwrap();
        registry.confirm(id, Generation::new(1)).await.unwrap();
        assert_eq!(registry.applied_plan(id, Duration::ZERO).await.unwrap(), None);
        store.queue([Fault::After].into_iter().filter(|_| n == 2));
        registry.apply(Change::RemoveNode(id)).await.unwrap();
        // The agent has not ended yet.
        let more = NodeStatus { applied: Generation::new(2), ..status() };
        reporter.report(more, None).await.unwrap();
        progress.leave().await.unwrap();
    }
    let (_, left) = store.list_all(&Key::all(), None).await.unwrap();
    assert_eq!(left, []);
}

/// A store that lost everything is told how its nodes are as long as they live, so that somebody sees what they hold (L3).
#[tokio::test]
async fn a_node_that_the_store_lost_says_what_it_is() {
    let registry = registry(Arc::new(MemoryStore::new()));
    let (follower, mut reporter) = reporter(&registry, 1).await;
    let told = async || registry.store().get_one(&layout::status(node(1).id)).await.unwrap().1;
    reporter.report(status(), None).await.unwrap();
    assert_eq!(told().await.unwrap().lease, None);
    let record = registry.store().get_one(&layout::node(node(1).id)).await.unwrap().1.unwrap();
    registry.store().commit(Transaction::new().delete_prefix(Key::all())).await.unwrap();
    let mut held = status();
    held.held = Some(Held { generation: Generation::new(2), reason: "everything would go".to_owned() });
    for _ in 0..2 {
        reporter.report(held.clone(), None).await.unwrap();
        assert_eq!(told().await.unwrap().lease, Some(follower.progress().lease()));
    }
    let revision = told().await.unwrap().revision;
    reporter.report(held.clone(), None).await.unwrap();
    assert_eq!(told().await.unwrap().revision, revision, "once");
    // Restored, it stays when the node leaves.
    registry.store().commit(Transaction::new().put(record.key, record.value)).await.unwrap();
    reporter.report(held.clone(), None).await.unwrap();
    assert_eq!(told().await.unwrap().lease, None);
}

#[tokio::test]
async fn a_node_that_joins_again_says_again_what_it_is() {
    let registry = registry(Arc::new(MemoryStore::new()));
    let (mut follower, mut reporter) = reporter(&registry, 1).await;
    let says = async || registry.statuses().await.unwrap().remove(&node(1).id)?.status;
    reporter.report(status(), None).await.unwrap();
    assert_eq!(says().await, Some(status()));
    registry.apply(Change::RemoveNode(node(1).id)).await.unwrap();
    let lease = follower.progress().lease();
    registry.store().revoke(lease).await.unwrap();
    while follower.progress().lease() == lease {
        follower.next().await;
    }
    assert_eq!(says().await, None);
    reporter.report(status(), None).await.unwrap();
    assert_eq!(says().await, Some(status()));
}
