//! Nodes on loopback and two networks with the same addresses, for the tests of this folder.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use std::sync::Arc;

use pn_backend_userspace::backend::Builder;
use pn_backend_userspace::{Loopback, Port, UnderlayTap, UserspaceBackend};
use pn_core::*;

/// Some nodes, and networks 1 and 2, each with an app of the same number.
pub(crate) struct Cluster {
    pub(crate) region: Loopback,
    next: u128,
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
    pub(crate) async fn start(nodes: u8) -> Self {
        Self::start_with_tap(nodes, None).await
    }

    pub(crate) async fn start_with_tap(nodes: u8, tap: Option<Arc<dyn UnderlayTap>>) -> Self {
        let region = Loopback::start(nodes, tap).await.unwrap();
        let mut cluster = Self { region, next: 0 };
        cluster.add_network(1, |_| ());
        cluster.add_network(2, |_| ());
        cluster
    }

    /// Adds a network and its app, which may have 2000 `web` containers.
    pub(crate) fn add_network(&mut self, n: u128, edit: impl FnOnce(&mut NetworkRequest)) {
        let project = ProjectId::from_u128(n);
        let label = || "test".parse().unwrap();
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        let mut request = NetworkRequest::new(project, network(n), terms);
        edit(&mut request);
        self.change(Change::AddProject(Project::new(project, label())));
        self.change(Change::EnablePrivateNetwork(request));
        self.change(Change::AddApp(App::new(app(n), project, label())));
        self.change(Change::Scale { app: app(n), formation: "web:2000".parse().unwrap() });
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.region.change(change).unwrap();
    }

    /// Starts a ready `web` container of an app on a node (from 1).
    pub(crate) fn add(&mut self, app_number: u128, node: usize) -> ContainerId {
        self.next += 1;
        let container = ContainerId::from_u128(self.next);
        let slot = slot(app_number, "web", self.next as u32);
        self.change(Change::Start { container, slot, node: self.region.nodes()[node - 1].id });
        self.change(Change::Ready(container));
        container
    }

    pub(crate) async fn apply(&self) {
        self.region.apply().await.unwrap();
    }

    /// Makes another data plane the first node's, and applies the plan to it alone.
    pub(crate) async fn replace_node_1(&mut self, edit: impl FnOnce(Builder) -> Builder) -> UserspaceBackend {
        let node = self.region.nodes()[0].id;
        let builder = UserspaceBackend::builder(node).listen("127.0.0.1:0".parse().unwrap());
        let backend = edit(builder).build().await.unwrap();
        let mut host = self.region.state().node(node).unwrap().clone();
        (host.underlay, host.public_key) = (backend.local_addr(), backend.public_key());
        self.change(Change::UpdateNode(host));
        backend.apply(&self.region.state().node_plan(node)).await.into_result().unwrap();
        backend
    }

    pub(crate) fn port(&self, container: ContainerId) -> Port {
        self.region.port(container).unwrap()
    }

    pub(crate) fn name(&self, container: ContainerId) -> String {
        let state = self.region.state();
        let network = state.network_of_container(container).unwrap();
        Name::container(network, &state.container(container).unwrap().slot).to_string()
    }
}
