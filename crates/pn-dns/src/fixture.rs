//! Small regions for tests, made the way real ones are.

use std::sync::Arc;

use pn_core::*;

use crate::Zone;

/// A region with one node, and private networks 1 and 2 without apps.
pub(crate) struct Model {
    pub(crate) state: State,
    containers: u128,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self::with_policy(Policy::default())
    }

    pub(crate) fn with_policy(policy: Policy) -> Self {
        let mut model = Self { state: State::new(Region::with_policy(policy)), containers: 0 };
        let terms = terms();
        for n in [1, 2] {
            model.network(NetworkRequest::new(ProjectId::from_u128(n), network(n), terms.clone()));
        }
        model.apply(Change::AddNode(Node::new(
            NodeId::from_u128(1),
            "node-1".parse().unwrap(),
            "192.0.2.1:51820".parse().unwrap(),
            "100.64.0.1".parse().unwrap(),
            PublicKey::new([1; 32]),
        )));
        model
    }

    /// Adds a project with a private network.
    pub(crate) fn network(&mut self, request: NetworkRequest) {
        self.apply(Change::AddProject(Project::new(request.project, "p".parse().unwrap())));
        self.apply(Change::EnablePrivateNetwork(request));
    }

    pub(crate) fn apply(&mut self, change: Change) {
        self.state.apply(Timestamp::ZERO, change).unwrap();
    }

    /// Adds an app with this formation to the project of a network.
    pub(crate) fn app(&mut self, n: u128, network: u128, formation: &str) {
        let label = format!("app-{n}").parse().unwrap();
        let mut added = App::new(app(n), ProjectId::from_u128(network), label);
        added.formation = formation.parse().unwrap();
        self.apply(Change::AddApp(added));
    }

    /// Starts the container in a slot and makes it ready.
    pub(crate) fn run(&mut self, n: u128, container_type: &str, index: u32) -> ContainerId {
        self.containers += 1;
        let container = ContainerId::from_u128(self.containers);
        let slot = Slot::new(app(n), container_type.parse().unwrap(), index).unwrap();
        self.apply(Change::Start { container, slot, node: NodeId::from_u128(1) });
        self.apply(Change::Ready(container));
        container
    }

    /// Returns whether a declared slot has no container.
    pub(crate) fn free(&self, n: u128, container_type: &str, index: u32) -> bool {
        let container_type = container_type.parse().unwrap();
        let slot = Slot::new(app(n), container_type, index).unwrap();
        let known = self.state.app(app(n)).and_then(|app| app.formation.count(&container_type));
        known.is_some_and(|count| index <= count)
            && self.state.networks().all(|network| self.state.containers(network.id).all(|other| other.slot != slot))
    }

    /// Declares the ports of a type.
    pub(crate) fn listen(&mut self, n: u128, container_type: &str, ports: &str) {
        let (container_type, ports) = (container_type.parse().unwrap(), ports.parse().unwrap());
        self.apply(Change::DeclarePorts { app: app(n), container_type, ports });
    }

    pub(crate) fn zones(&self) -> ZoneSet {
        self.state.zones()
    }

    pub(crate) fn zone(&self, n: u128) -> Zone {
        let zones = self.zones();
        Zone::new(Arc::clone(&zones.zones[&network(n)]), zones.serial())
    }
}

fn terms() -> Terms {
    let (accepted_by, version) = ("ada".parse().unwrap(), "beta-1".parse().unwrap());
    Terms { accepted_by, version, accepted_at: Timestamp::ZERO }
}

/// The shop, and network 3 with IPv6 in a subnet of this prefix, where app 5 has two containers.
pub(crate) fn dual_stack(subnet: &str) -> Model {
    let mut model = shop();
    let mut request = NetworkRequest::new(ProjectId::from_u128(3), network(3), terms());
    (request.families, request.subnet) = (Families::DualStack, Some(subnet.parse().unwrap()));
    model.network(request);
    model.app(5, 3, "web:2 idle:0");
    model.run(5, "web", 1);
    model.run(5, "web", 2);
    model
}

/// Two networks with the same addresses: app 1 in network 1, with every kind of name, and app 2 in network 2.
pub(crate) fn shop() -> Model {
    let mut model = Model::new();
    model.app(1, 1, "web:2 My-App-Backend:3 idle:0 007:1");
    model.app(3, 1, "web:0 worker:2");
    model.app(4, 1, "cron:1");
    model.app(2, 2, "web:1");
    model.run(1, "web", 1);
    model.run(1, "web", 2);
    model.run(1, "my-app-backend", 1);
    model.run(1, "my-app-backend", 3);
    model.run(1, "007", 1);
    model.run(3, "worker", 1);
    model.run(2, "web", 1);
    model.listen(1, "my-app-backend", "3000/tcp 53/udp");
    model.listen(1, "idle", "80/tcp");
    model
}

/// A network with this subnet, whose app 1 runs one `web` container.
pub(crate) fn subnet(subnet: &str) -> Zone {
    let mut policy = Policy::default();
    policy.subnet = subnet.parse().unwrap();
    let mut model = Model::with_policy(policy);
    model.app(1, 1, "web:1");
    model.run(1, "web", 1);
    model.zone(1)
}

/// A network whose app 1 runs this many containers of a type.
pub(crate) fn crowd(container_type: &str, count: u32) -> Zone {
    let mut model = Model::new();
    model.app(1, 1, &format!("{container_type}:{count}"));
    for index in 1..=count {
        model.run(1, container_type, index);
    }
    model.zone(1)
}

/// Network 3 with IPv6, whose app 1 runs this many containers of a type.
pub(crate) fn dual_stack_crowd(container_type: &str, count: u32) -> Model {
    let mut model = Model::new();
    let mut request = NetworkRequest::new(ProjectId::from_u128(3), network(3), terms());
    request.families = Families::DualStack;
    model.network(request);
    model.app(1, 3, &format!("{container_type}:{count}"));
    for index in 1..=count {
        model.run(1, container_type, index);
    }
    model
}

pub(crate) fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

pub(crate) fn app(n: u128) -> AppId {
    AppId::from_u128(n)
}

/// Replaces `apN` and `pnN` by the labels of app and network N (one digit), and `^` at the end by the suffix.
pub(crate) fn expand(text: &str) -> String {
    let mut text = text.replace('^', name::SUFFIX);
    for n in 1..=9 {
        text = text.replace(&format!("ap{n}"), &app(n).to_string());
        text = text.replace(&format!("AP{n}"), &app(n).to_string().to_uppercase());
        text = text.replace(&format!("pn{n}"), &network(n).to_string());
    }
    text
}
