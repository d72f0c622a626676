//! A small region for tests: three nodes, of which the first is ours, and two networks with an app each.

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, NetworkId, NetworkRequest, Node, NodeId, NodePlan, Project,
    ProjectId, PublicKey, Region, Slot, State, Terms, Timestamp,
};

pub(super) const HERE: NodeId = NodeId::from_u128(1);

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Timestamp,
}

pub(super) fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

pub(super) fn container(n: u128) -> ContainerId {
    ContainerId::from_u128(n)
}

pub(super) fn node(n: u8) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    let label = format!("node-{n}").parse().unwrap();
    Node::new(NodeId::from_u128(n.into()), label, underlay, tunnel, PublicKey::new([n; 32]))
}

impl World {
    /// Makes a region with networks of these numbers, in this order, and no container.
    pub(super) fn with_networks(numbers: &[u128]) -> Self {
        let mut world = Self { state: State::new(Region::default()), now: Timestamp::ZERO };
        (1..=3).for_each(|n| world.change(Change::AddNode(node(n))));
        for n in numbers {
            let (project, app) = (ProjectId::from_u128(*n), AppId::from_u128(*n));
            let label = || format!("x{n}").parse().unwrap();
            let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
            world.change(Change::AddProject(Project::new(project, label())));
            world.change(Change::EnablePrivateNetwork(NetworkRequest::new(project, network(*n), terms)));
            world.change(Change::AddApp(App::new(app, project, label())));
            world.change(Change::Scale { app, formation: "web:50".parse().unwrap() });
        }
        world
    }

    pub(super) fn new() -> Self {
        Self::with_networks(&[1, 2])
    }

    /// Makes a change that must be accepted.
    #[track_caller]
    pub(super) fn change(&mut self, change: Change) {
        self.state.apply(self.now, change).unwrap();
    }

    /// Starts container `n` of a network, in the slot with its number, on a node.
    #[track_caller]
    pub(super) fn start(&mut self, n: u32, of: u128, on: u128) {
        self.change(start(n, of, n, on));
    }

    /// Starts containers and makes them ready.
    #[track_caller]
    pub(super) fn run(&mut self, containers: impl IntoIterator<Item = u32>, of: u128, on: u128) {
        for n in containers {
            self.start(n, of, on);
            self.change(Change::Ready(container(n.into())));
        }
    }

    #[track_caller]
    pub(super) fn stop(&mut self, containers: impl IntoIterator<Item = u32>) {
        containers.into_iter().for_each(|n| self.change(Change::Stop(container(n.into()))));
    }

    #[track_caller]
    pub(super) fn fail(&mut self, containers: impl IntoIterator<Item = u32>) {
        containers.into_iter().for_each(|n| self.change(Change::Fail(container(n.into()))));
    }

    /// Removes containers that were stopped, when they have drained.
    #[track_caller]
    pub(super) fn remove(&mut self, containers: impl IntoIterator<Item = u32>) {
        self.now = self.now.after(self.state.policy().drain);
        containers.into_iter().for_each(|n| self.change(Change::Remove(container(n.into()))));
    }

    pub(super) fn plan(&self) -> NodePlan {
        self.state.node_plan(HERE)
    }

    /// Returns the plan of a region that lost everything.
    pub(super) fn wiped(&self) -> NodePlan {
        NodePlan::empty(HERE, self.state.generation().next())
    }
}

pub(super) fn start(n: u32, of: u128, index: u32, on: u128) -> Change {
    let slot = Slot::new(AppId::from_u128(of), ContainerType::web(), index).unwrap();
    Change::Start { container: container(n.into()), slot, node: NodeId::from_u128(on) }
}
