//! What the benchmarks of this package share: a region of a size that is asked for.

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, NetworkId, NetworkRequest, Node, NodeId, Project, ProjectId,
    PublicKey, Region, Slot, State, Terms, Timestamp,
};

/// Makes one network with an app of so many ready `web` containers, spread over so many nodes.
///
/// Network, project and app have number 1, nodes and containers are numbered from 1.
///
/// # Panics
/// With more nodes than 254 or more containers than the default subnet has addresses.
#[must_use]
pub fn network(nodes: u8, containers: u32) -> State {
    let mut state = State::new(Region::default());
    let mut apply = |change| match state.apply(Timestamp::ZERO, change) {
        Ok(_) => {}
        Err(error) => panic!("{error}"),
    };
    let label = || "bench".parse().expect("a label");
    for n in 1..=nodes {
        apply(Change::AddNode(Node::new(
            NodeId::from_u128(n.into()),
            label(),
            ([192, 0, 2, n], 51820).into(),
            [100, 64, 0, n].into(),
            PublicKey::new([n; 32]),
        )));
    }
    let (project, network, app) = (ProjectId::from_u128(1), NetworkId::from_u128(1), AppId::from_u128(1));
    let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
    apply(Change::AddProject(Project::new(project, label())));
    apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)));
    apply(Change::AddApp(App::new(app, project, label())));
    apply(Change::Scale { app, formation: format!("web:{containers}").parse().expect("a formation") });
    for n in 1..=containers {
        let (container, slot) = (ContainerId::from_u128(n.into()), Slot::new(app, ContainerType::web(), n));
        let node = NodeId::from_u128(u128::from((n - 1) % u32::from(nodes)) + 1);
        apply(Change::Start { container, slot: slot.expect("indexes from 1"), node });
        apply(Change::Ready(container));
    }
    state
}
