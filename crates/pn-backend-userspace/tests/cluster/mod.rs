//! Nodes on loopback and two networks with the same addresses, for the tests of this folder.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use pn_backend_userspace::{Port, UnderlayTap, UserspaceBackend};
use pn_core::*;
use pn_dns::Names;

/// Some nodes with their backends and resolvers, driven by one state.
pub(crate) struct Cluster {
    pub(crate) state: State,
    pub(crate) nodes: Vec<Running>,
    next: u128,
}

pub(crate) struct Running {
    pub(crate) id: NodeId,
    pub(crate) backend: UserspaceBackend,
    pub(crate) names: Arc<Names>,
}

pub(crate) fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

pub(crate) fn app(n: u128) -> AppId {
    AppId::from_u128(n)
}

pub(crate) fn slot(n: u128, container_type: &str, index: u32) -> Slot {
    Slot::new(app(n), container_type.parse().unwrap(), index).unwrap()
}

impl Cluster {
    /// Starts nodes with underlay MTU 1500 and creates networks 1 and 2, each with an app of the same number.
    pub(crate) async fn start(nodes: u8) -> Self {
        Self::start_with_tap(nodes, None).await
    }

    pub(crate) async fn start_with_tap(nodes: u8, tap: Option<Arc<dyn UnderlayTap>>) -> Self {
        let mut cluster = Self { state: State::new(Region::default()), nodes: Vec::new(), next: 0 };
        for n in 1..=nodes {
            let id = NodeId::from_u128(n.into());
            let names = Arc::new(Names::new(n.into()));
            let listen = SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), 0));
            let mut builder = UserspaceBackend::builder(id).listen(listen).resolver(names.clone());
            if let Some(tap) = &tap {
                builder = builder.tap(tap.clone());
            }
            let backend = builder.build().await.unwrap();
            cluster.change(Change::AddNode(Node {
                id,
                label: format!("node-{n}").parse().unwrap(),
                underlay: backend.local_addr(),
                tunnel_address: Ipv4Addr::new(100, 64, 0, n).into(),
                public_key: backend.public_key(),
                underlay_mtu: 1500,
            }));
            cluster.nodes.push(Running { id, backend, names });
        }
        for n in [1, 2] {
            let project = ProjectId::from_u128(n);
            let label = || "test".parse().unwrap();
            let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
            cluster.change(Change::AddProject(Project::new(project, label())));
            cluster.change(Change::EnablePrivateNetwork(NetworkRequest::new(project, network(n), terms)));
            cluster.change(Change::AddApp(App::new(app(n), project, label())));
            cluster.change(Change::Scale { app: app(n), formation: "web:2000".parse().unwrap() });
        }
        cluster
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.state.apply(Timestamp::ZERO, change).unwrap();
    }

    /// Starts a ready `web` container of an app on a node (from 1).
    pub(crate) fn add(&mut self, app_number: u128, node: usize) -> ContainerId {
        self.next += 1;
        let container = ContainerId::from_u128(self.next);
        let slot = slot(app_number, "web", self.next as u32);
        self.change(Change::Start { container, slot, node: self.nodes[node - 1].id });
        self.change(Change::Ready(container));
        container
    }

    /// Applies the state everywhere: overlay, then names.
    pub(crate) async fn apply(&self) {
        for node in &self.nodes {
            let plan = self.state.node_plan(node.id);
            node.backend.apply(&plan).await.into_result().unwrap();
            node.names.publish(&plan.zones()).await.into_result().unwrap();
        }
    }

    pub(crate) fn port(&self, container: ContainerId) -> Port {
        let node = self.state.container(container).unwrap().node;
        self.nodes.iter().find(|running| running.id == node).unwrap().backend.port(container).unwrap()
    }

    pub(crate) fn name(&self, container: ContainerId) -> String {
        let slot = self.state.container(container).unwrap().slot;
        Name::container(self.state.network_of_container(container).unwrap(), &slot).to_string()
    }
}
