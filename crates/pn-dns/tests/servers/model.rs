//! A region whose containers come and go.

use std::net::Ipv4Addr;

use pn_core::*;

/// One network with one app and one node.
pub(crate) struct Model {
    state: State,
    next: u128,
}

pub(crate) const NETWORK: NetworkId = NetworkId::from_u128(1);
pub(crate) const APP: AppId = AppId::from_u128(1);

impl Model {
    pub(crate) fn new(formation: &str) -> Self {
        let mut model = Self { state: State::new(Region::default()), next: 0 };
        let (project, label) = (ProjectId::from_u128(1), || "shop".parse::<Label>().unwrap());
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        model.apply(Change::AddProject(Project::new(project, label())));
        model.apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, NETWORK, terms)));
        let mut app = App::new(APP, project, label());
        app.formation = formation.parse().unwrap();
        model.apply(Change::AddApp(app));
        let (underlay, tunnel) = ("192.0.2.1:51820".parse().unwrap(), "100.64.0.1".parse().unwrap());
        model.apply(Change::AddNode(Node::new(
            NodeId::from_u128(1),
            label(),
            underlay,
            tunnel,
            PublicKey::new([1; 32]),
        )));
        model
    }

    pub(crate) fn apply(&mut self, change: Change) {
        self.state.apply(Timestamp::ZERO, change).unwrap();
    }

    /// Starts the container in a slot and makes it ready.
    pub(crate) fn run(&mut self, container_type: &str, index: u32) -> ContainerId {
        self.next += 1;
        let container = ContainerId::from_u128(self.next);
        let slot = Slot::new(APP, container_type.parse().unwrap(), index).unwrap();
        self.apply(Change::Start { container, slot, node: NodeId::from_u128(1) });
        self.apply(Change::Ready(container));
        container
    }

    pub(crate) fn fail(&mut self, container: ContainerId) {
        self.apply(Change::Fail(container));
    }

    pub(crate) fn zones(&self) -> ZoneSet {
        self.state.plan().zones()
    }

    /// Every record of addresses as `dig` prints it: owner, type and data, sorted.
    pub(crate) fn lines(&self) -> Vec<String> {
        let zones = self.zones();
        let names = zones.zones[&NETWORK].names();
        let line = |name: &Name, address| format!("{name:#} 5 IN A {address}").to_ascii_lowercase();
        let mut lines: Vec<String> = names
            .iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |address| line(name, address)))
            .collect();
        lines.sort();
        lines
    }

    /// Every container's address and name, as `dig` prints PTR records, sorted.
    pub(crate) fn pointer_lines(&self) -> Vec<String> {
        let zones = self.zones();
        let line = |of_type: &TypeNames, index, address: Ipv4Addr| {
            let slot = Slot::new(of_type.app, of_type.container_type, index).unwrap();
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa. 5 IN PTR {:#}", Name::container(NETWORK, &slot)).to_ascii_lowercase()
        };
        let of_type = |of_type| move |(index, address): &(u32, Ipv4Addr)| line(of_type, *index, *address);
        let types = zones.zones[&NETWORK].types();
        let mut lines: Vec<String> = types.flat_map(|names| names.containers.iter().map(of_type(names))).collect();
        lines.sort();
        lines
    }
}
