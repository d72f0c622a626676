//! A linter for plans: what no plan that [`State`](crate::State) makes has, and what a kernel cannot do.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::id::{ContainerId, NetworkId, NodeId};
use crate::mtu;
use crate::net::{PublicKey, Vni};
use crate::node::Node;
use crate::plan::{Endpoint, NetworkPlan, NodePlan, Plan};

/// What a node's kernel can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Neighbour entries, for all networks of a node together: Linux's `net.ipv4.neigh.default.gc_thresh3`, 1024 unless it
    /// was raised.
    pub neighbours: usize,
    /// Ports of a Linux bridge for local containers of a network: 1022. `BR_MAX_PORTS` is 1024, of which the first is not given
    /// and another is the VXLAN device's.
    pub bridge_ports: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { neighbours: 1024, bridge_ports: 1022 }
    }
}

/// Something that is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are the ids and values that the line names")]
pub enum Finding {
    /// Two networks have one VNI, so their packets would mix.
    VniTwice { vni: Vni, networks: [NetworkId; 2] },
    /// Two containers of a network have one address.
    AddressTwice { network: NetworkId, address: Ipv4Addr, containers: [ContainerId; 2] },
    /// A container has two endpoints: it is in one network, with one address.
    ContainerTwice { container: ContainerId, networks: [NetworkId; 2] },
    /// A container's address is not one of its network's.
    AddressOutside { network: NetworkId, address: Ipv4Addr, container: ContainerId },
    /// Endpoints are not in the order of their addresses, so they would not be found.
    Unordered { network: NetworkId },
    /// A name leads to an address that no container of its slot has.
    NameWithoutContainer { network: NetworkId, name: String, address: Ipv4Addr },
    /// A container is on a node that the plan does not have.
    UnknownNode { network: NetworkId, container: ContainerId, node: NodeId },
    /// The nodes of a network are not those its containers are on.
    Members { network: NetworkId },
    /// The MTU of a network does not fit on one of its nodes, or is too small.
    Mtu { network: NetworkId, node: NodeId, mtu: u16, fits: u16 },
    /// IPv6 needs 1280 octets.
    Ipv6Mtu { network: NetworkId, mtu: u16 },
    /// Two nodes have one key, tunnel address or underlay address, so packets would go to either.
    NodesShare { nodes: [NodeId; 2], shared: String },
    /// A node would have more neighbours than its kernel holds.
    Neighbours { node: NodeId, count: usize, limit: usize },
    /// A network has more containers on a node than a bridge has ports.
    BridgePorts { network: NetworkId, node: NodeId, count: usize, limit: usize },
}

impl Plan {
    /// Looks for what is wrong, in every network and on every node.
    #[must_use]
    pub fn check(&self, limits: &Limits) -> Vec<Finding> {
        let mut found = Vec::new();
        check_nodes(self.nodes.values(), &mut found);
        let node = |id: NodeId| self.nodes.get(&id).map(Arc::as_ref);
        check_networks(self.networks.values(), &node, &mut found);
        let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
        for network in self.networks.values() {
            for (id, local) in locals(network) {
                *load.entry(id).or_default() += network.endpoints.len() - local;
                check_ports(network, id, local, limits, &mut found);
            }
        }
        for (node, count) in load {
            check_neighbours(node, count, limits, &mut found);
        }
        found
    }
}

impl NodePlan {
    /// Looks for what is wrong, in the networks of this node and on it.
    #[must_use]
    pub fn check(&self, limits: &Limits) -> Vec<Finding> {
        let mut found = Vec::new();
        check_nodes(self.host.iter().chain(self.peers.values()), &mut found);
        check_networks(self.networks.values(), &|id| self.member(id), &mut found);
        let mut neighbours = 0;
        for network in self.networks.values() {
            let local = network.endpoints.iter().filter(|endpoint| endpoint.node == self.node).count();
            neighbours += network.endpoints.len() - local;
            check_ports(network, self.node, local, limits, &mut found);
        }
        check_neighbours(self.node, neighbours, limits, &mut found);
        found
    }
}

/// Counts the containers of a network on each node.
fn locals(network: &NetworkPlan) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for endpoint in &network.endpoints {
        *counts.entry(endpoint.node).or_default() += 1;
    }
    counts
}

fn check_nodes<'a>(nodes: impl Iterator<Item = &'a Arc<Node>>, found: &mut Vec<Finding>) {
    let mut underlays: BTreeMap<SocketAddr, NodeId> = BTreeMap::new();
    let mut tunnels: BTreeMap<IpAddr, NodeId> = BTreeMap::new();
    let mut keys: BTreeMap<PublicKey, NodeId> = BTreeMap::new();
    for node in nodes {
        if let Some(other) = underlays.insert(node.underlay, node.id) {
            found.push(Finding::NodesShare { nodes: [other, node.id], shared: node.underlay.to_string() });
        }
        if let Some(other) = tunnels.insert(node.tunnel_address, node.id) {
            found.push(Finding::NodesShare { nodes: [other, node.id], shared: node.tunnel_address.to_string() });
        }
        for key in [Some(node.public_key), node.next_public_key].into_iter().flatten() {
            if let Some(other) = keys.insert(key, node.id) {
                found.push(Finding::NodesShare { nodes: [other, node.id], shared: key.to_string() });
            }
        }
    }
}

fn check_networks<'a, 'n>(
    networks: impl Iterator<Item = &'a Arc<NetworkPlan>>,
    node: &impl Fn(NodeId) -> Option<&'n Node>,
    found: &mut Vec<Finding>,
) {
    let mut vnis: BTreeMap<Vni, NetworkId> = BTreeMap::new();
    let mut containers: HashMap<ContainerId, NetworkId> = HashMap::new();
    for network in networks {
        if let Some(other) = vnis.insert(network.vni, network.id) {
            found.push(Finding::VniTwice { vni: network.vni, networks: [other, network.id] });
        }
        for Endpoint { container, .. } in &network.endpoints {
            if let Some(other) = containers.insert(*container, network.id) {
                found.push(Finding::ContainerTwice { container: *container, networks: [other, network.id] });
            }
        }
        check_endpoints(network, node, found);
        check_names(network, found);
    }
}

fn check_endpoints<'n>(network: &NetworkPlan, node: &impl Fn(NodeId) -> Option<&'n Node>, found: &mut Vec<Finding>) {
    let id = network.id;
    let mut holders: BTreeMap<Ipv4Addr, ContainerId> = BTreeMap::new();
    for endpoint in &network.endpoints {
        let (address, container) = (endpoint.address, endpoint.container);
        if let Some(other) = holders.insert(address, container) {
            found.push(Finding::AddressTwice { network: id, address, containers: [other, container] });
        }
        if network.subnet.ordinal(address).is_none() {
            found.push(Finding::AddressOutside { network: id, address, container });
        }
        if node(endpoint.node).is_none() {
            found.push(Finding::UnknownNode { network: id, container, node: endpoint.node });
        }
    }
    if !network.endpoints.is_sorted_by_key(|endpoint| endpoint.address) {
        found.push(Finding::Unordered { network: id });
    }
    if !locals(network).keys().eq(network.nodes.iter()) {
        found.push(Finding::Members { network: id });
    }
    let mtu = network.mtu;
    for member in network.nodes.iter().filter_map(|member| node(*member)) {
        let fits = member.network_mtu(network.encryption).unwrap_or(0);
        if mtu > fits || mtu < mtu::IPV4_MINIMUM {
            found.push(Finding::Mtu { network: id, node: member.id, mtu, fits });
        }
    }
    if network.ipv6.is_some() && mtu < mtu::IPV6_MINIMUM {
        found.push(Finding::Ipv6Mtu { network: id, mtu });
    }
}

fn check_names(network: &NetworkPlan, found: &mut Vec<Finding>) {
    let endpoints: BTreeSet<_> =
        network.endpoints.iter().map(|endpoint| (endpoint.address, &*endpoint.of, endpoint.index)).collect();
    for of_type in network.zone.types() {
        let of = (of_type.app, of_type.container_type);
        for (index, address) in &of_type.containers {
            if !endpoints.contains(&(*address, &of, *index)) {
                let name = format!("{index}.{}.{}", of_type.container_type, of_type.app);
                found.push(Finding::NameWithoutContainer { network: network.id, name, address: *address });
            }
        }
    }
}

fn check_ports(network: &NetworkPlan, node: NodeId, count: usize, limits: &Limits, found: &mut Vec<Finding>) {
    if count > limits.bridge_ports {
        found.push(Finding::BridgePorts { network: network.id, node, count, limit: limits.bridge_ports });
    }
}

fn check_neighbours(node: NodeId, count: usize, limits: &Limits, found: &mut Vec<Finding>) {
    if count > limits.neighbours {
        found.push(Finding::Neighbours { node, count, limit: limits.neighbours });
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VniTwice { vni, networks: [one, two] } => write!(f, "networks {one} and {two} both have VNI {vni}"),
            Self::AddressTwice { network, address, containers: [one, two] } => {
                write!(f, "containers {one} and {two} of network {network} both have {address}")
            }
            Self::ContainerTwice { container, networks: [one, two] } => {
                write!(f, "container {container} has two endpoints, in network {one} and in network {two}")
            }
            Self::AddressOutside { network, address, container } => {
                write!(f, "container {container} has {address}, which is not of network {network}")
            }
            Self::Unordered { network } => write!(f, "the endpoints of network {network} are not in order"),
            Self::NameWithoutContainer { network, name, address } => {
                write!(f, "{name} of network {network} leads to {address}, which its container does not have")
            }
            Self::UnknownNode { network, container, node } => {
                write!(f, "container {container} of network {network} is on node {node}, which the plan does not have")
            }
            Self::Members { network } => write!(f, "the nodes of network {network} are not those of its containers"),
            Self::Mtu { network, node, mtu, fits } => {
                let least = mtu::IPV4_MINIMUM;
                write!(f, "network {network} has MTU {mtu}: node {node} can have {least} to {fits}")
            }
            Self::Ipv6Mtu { network, mtu } => {
                write!(f, "network {network} has MTU {mtu}: IPv6 needs {}", mtu::IPV6_MINIMUM)
            }
            Self::NodesShare { nodes: [one, two], shared } => write!(f, "nodes {one} and {two} both have {shared}"),
            Self::Neighbours { node, count, limit } => {
                write!(f, "node {node} would have {count} neighbours, and its kernel holds {limit}: raise gc_thresh3")
            }
            Self::BridgePorts { network, node, count, limit } => {
                write!(
                    f,
                    "node {node} would have {count} containers of network {network}, and a bridge has ports for {limit}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
