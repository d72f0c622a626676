//! The laws of data planes that a plan and an observation can show, to be run against each implementation and each wrapper of
//! one: what is applied is observed, a second time changes nothing, and what is older is refused. With the feature `agent`,
//! also that an agent can drive it.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use pn_overlay::{MemoryOverlay, conformance};
//!
//! conformance::overlay(|_node| async { MemoryOverlay::new() }).await;
//! # });
//! ```

use pn_core::backend::{Observed, OverlayBackend};
use pn_core::{
    App, AppId, Change, ContainerId, ErrorKind, Families, NetworkId, NetworkRequest, Node, NodeId, NodePlan, Project,
    ProjectId, PublicKey, Region, Slot, State, Terms, Timestamp,
};

#[cfg(feature = "agent")]
mod driven;

#[cfg(feature = "agent")]
pub use self::driven::driven;
use crate::peer::PrivateKey;

/// The node that the backend under test has to be.
///
/// Its underlay address is the one of the plan's host; a backend that opens a socket may bind any port, since nobody else
/// exists.
#[derive(Debug, Clone)]
pub struct Host {
    /// The node, as the plans describe it.
    pub node: Node,
    /// Its key.
    pub private_key: PrivateKey,
}

/// Runs every law. `make` makes a backend for a host that nothing was applied to yet.
///
/// # Panics
/// If a law is broken; the message names it.
pub async fn overlay<B: OverlayBackend, F: Future<Output = B>>(make: impl Fn(Host) -> F) {
    let (host, plans) = plans();
    for plan in &plans {
        let backend = make(host.clone()).await;
        settles(&backend, plan).await;
    }
    for a in &plans {
        for b in plans.iter().filter(|b| b.generation > a.generation) {
            let backend = make(host.clone()).await;
            settles(&backend, a).await;
            settles(&backend, b).await;
            refuses_older(&backend, a, b).await;
        }
    }
}

/// `observe(apply(p))` is `p`, and a second `apply` changes nothing.
async fn settles<B: OverlayBackend>(backend: &B, plan: &NodePlan) {
    let report = backend.apply(plan).await;
    let failed: Vec<String> = report.failures().map(ToString::to_string).collect();
    assert!(failed.is_empty(), "generation {} did not apply: {failed:?}", plan.generation);
    let observed = backend.observe().await.expect("a backend that applied can observe");
    assert_eq!(observed, Observed::from(plan), "observe(apply(p)) is not p for generation {}", plan.generation);
    let again = backend.apply(plan).await;
    assert!(again.is_unchanged(), "a second apply of generation {} changed {:?}", plan.generation, again.outcomes);
}

/// An older plan is refused as a whole and changes nothing.
async fn refuses_older<B: OverlayBackend>(backend: &B, older: &NodePlan, applied: &NodePlan) {
    let refused = backend.apply(older).await.into_result().expect_err("an older generation was applied");
    assert_eq!(refused.kind(), ErrorKind::Superseded, "an older generation was refused as {refused}");
    let observed = backend.observe().await.expect("a backend that refused can observe");
    assert_eq!(observed, Observed::from(applied), "a refused generation changed the node");
}

/// Plans that grow, shrink, move and end, each of a later generation than the one before.
fn plans() -> (Host, Vec<NodePlan>) {
    let keys = [1, 2, 3].map(|n| PrivateKey::from_bytes([n; 32]));
    let here = node(1, keys[0].public_key());
    let mut state = State::new(Region::default());
    let mut plans = vec![state.node_plan(here.id)];
    let mut apply = |changes: Vec<Change>| {
        for change in changes {
            state.apply(Timestamp::ZERO, change).expect("the laws' own changes hold");
        }
        plans.push(state.node_plan(here.id));
    };
    let mut first = vec![Change::AddNode(here.clone())];
    first.extend([2, 3].map(|n: u8| Change::AddNode(node(n, keys[usize::from(n) - 1].public_key()))));
    for n in [1, 2] {
        first.extend(project(n));
    }
    apply(first);
    apply(vec![start(1, 1, 1, 1), start(2, 1, 2, 2), start(3, 2, 1, 1), start(4, 2, 2, 3)]);
    apply([1, 2, 3, 4].map(|n| Change::Ready(container(n))).into());
    apply(vec![start(5, 1, 3, 1), Change::Ready(container(5)), Change::Fail(container(4))]);
    apply(vec![Change::Fail(container(2)), start(6, 1, 2, 3), Change::Ready(container(6)), Change::Stop(container(5))]);
    let mut moved = node(3, keys[2].public_key());
    moved.underlay.set_port(51_821);
    moved.underlay_mtu = 1400;
    apply(vec![Change::UpdateNode(moved)]);
    apply(vec![Change::Fail(container(1)), Change::Fail(container(5))]);
    // An id comes back, in another network.
    apply(vec![Change::Fail(container(3)), start(1, 2, 5, 1)]);
    apply(vec![Change::Fail(container(1))]);
    (Host { node: here.clone(), private_key: keys[0].clone() }, plans)
}

fn node(n: u8, public_key: PublicKey) -> Node {
    Node::new(
        NodeId::from_u128(n.into()),
        format!("node-{n}").parse().expect("a label"),
        format!("127.0.0.{n}:51820").parse().expect("an address"),
        format!("100.64.0.{n}").parse().expect("an address"),
        public_key,
    )
}

fn project(n: u128) -> Vec<Change> {
    let (project, network, app) = (ProjectId::from_u128(n), NetworkId::from_u128(n), AppId::from_u128(n));
    let label = || "conformance".parse().expect("a label");
    let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
    let mut request = NetworkRequest::new(project, network, terms);
    // The second network has IPv6, too.
    request.families = if n == 2 { Families::DualStack } else { Families::Ipv4 };
    vec![
        Change::AddProject(Project::new(project, label())),
        Change::EnablePrivateNetwork(request),
        Change::AddApp(App::new(app, project, label())),
        Change::Scale { app, formation: "web:9".parse().expect("a formation") },
    ]
}

fn container(n: u128) -> ContainerId {
    ContainerId::from_u128(n)
}

fn start(n: u128, app: u128, index: u32, on: u128) -> Change {
    let slot = Slot::new(AppId::from_u128(app), pn_core::ContainerType::web(), index).expect("indexes from 1");
    Change::Start { container: container(n), slot, node: NodeId::from_u128(on) }
}
