//! Plans: what the nodes of a region, or one of them, are to be. A plan leaves nothing to decide.

use core::fmt;
use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::app::Formation;
use crate::container::{Container, Phase, Slot};
use crate::container_type::ContainerType;
use crate::id::{AppId, ContainerId, NetworkId, NodeId};
use crate::mtu;
use crate::name::Name;
use crate::net::{MacAddr, Vni};
use crate::network::{Encryption, KeyScope, Network};
use crate::node::Node;
use crate::policy::Policy;
use crate::subnet::Subnet;

/// Tells plans of one origin apart by age: a backend refuses what is older than what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(u64);

impl Generation {
    /// The generation of the empty state.
    pub const ZERO: Self = Self(0);

    /// Makes a generation from its number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the generation after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a whole region is to be. The same state gives the same plan on every machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The state's generation.
    pub generation: Generation,
    /// Every node.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Every network.
    pub networks: BTreeMap<NetworkId, Arc<NetworkPlan>>,
}

impl Plan {
    /// Returns the slice that one node realises. A node the plan does not know gets the empty plan, which is teardown.
    #[must_use]
    pub fn node(&self, id: NodeId) -> NodePlan {
        let Some(host) = self.nodes.get(&id) else {
            return NodePlan::empty(id, self.generation);
        };
        let hosted = self.networks.iter().filter(|(_, network)| network.is_member(id));
        let networks = hosted.map(|(id, network)| (*id, Arc::clone(network))).collect();
        NodePlan::new(Arc::clone(host), self.generation, networks, |id| self.nodes.get(&id).cloned())
    }

    /// Returns the zones of every network.
    #[must_use]
    pub fn zones(&self) -> ZoneSet {
        ZoneSet::of(self.generation, &self.networks)
    }
}

/// What one node is to be: its networks and the nodes it exchanges packets with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodePlan {
    /// The node.
    pub node: NodeId,
    /// The state's generation.
    pub generation: Generation,
    /// The node itself; `None` where the region does not know it (any more), and then there is nothing else either.
    pub host: Option<Arc<Node>>,
    /// The networks that have a container on this node.
    pub networks: BTreeMap<NetworkId, Arc<NetworkPlan>>,
    /// The other nodes of these networks.
    pub peers: BTreeMap<NodeId, Arc<Node>>,
}

impl NodePlan {
    /// Makes the plan with nothing in it. Realising it takes down everything.
    #[must_use]
    pub const fn empty(node: NodeId, generation: Generation) -> Self {
        Self { node, generation, host: None, networks: BTreeMap::new(), peers: BTreeMap::new() }
    }

    pub(crate) fn new(
        host: Arc<Node>,
        generation: Generation,
        networks: BTreeMap<NetworkId, Arc<NetworkPlan>>,
        node: impl Fn(NodeId) -> Option<Arc<Node>>,
    ) -> Self {
        let others: BTreeSet<NodeId> = networks.values().flat_map(|network| network.nodes.iter().copied()).collect();
        let others = others.into_iter().filter(|id| *id != host.id);
        let peers = others.filter_map(|id| node(id).map(|node| (id, node))).collect();
        Self { node: host.id, generation, host: Some(host), networks, peers }
    }

    /// Returns the zones of the networks on this node.
    #[must_use]
    pub fn zones(&self) -> ZoneSet {
        ZoneSet::of(self.generation, &self.networks)
    }

    /// Returns what may be answered while this plan takes the place of one whose zones are published: no name that is
    /// about to vanish, none that is yet to come, and no address that is about to lose its way.
    ///
    /// A name that moves from one container to the next keeps the old address here as long as that container drains, so
    /// that it is never without one.
    #[must_use]
    pub fn zones_meanwhile(&self, published: &ZoneSet) -> ZoneSet {
        let kept = self.networks.iter().filter_map(|(id, network)| {
            let published = published.zones.get(id)?;
            Some((*id, network.zone_meanwhile(published)))
        });
        ZoneSet { generation: self.generation, zones: kept.collect() }
    }

    /// Returns a node of this plan, the host or a peer.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Node> {
        self.host.as_deref().filter(|host| host.id == id).or_else(|| self.peers.get(&id).map(Arc::as_ref))
    }
}

/// What one network is to be, the same on every node that has a part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkPlan {
    /// The network.
    pub id: NetworkId,
    /// Its VXLAN network identifier.
    pub vni: Vni,
    /// Where its addresses come from.
    pub subnet: Subnet,
    /// The largest IP packet of its containers, in octets: what fits on every node it has a part on.
    pub mtu: u16,
    /// Where its containers reach their resolver.
    pub resolver: Ipv4Addr,
    /// How its packets are protected.
    pub encryption: Encryption,
    /// What a WireGuard identity stands for.
    pub key_scope: KeyScope,
    /// Its containers, ordered by address.
    pub endpoints: Box<[Endpoint]>,
    /// The nodes its containers run on, in order.
    pub nodes: Box<[NodeId]>,
    /// Its names.
    pub zone: Arc<ZonePlan>,
}

impl NetworkPlan {
    pub(crate) fn build<'a>(
        network: &Network,
        policy: &Policy,
        apps: impl Iterator<Item = (AppId, &'a Formation)>,
        containers: impl Iterator<Item = &'a Container> + Clone,
        node: impl Fn(NodeId) -> &'a Node,
    ) -> Self {
        let nodes: BTreeSet<NodeId> = containers.clone().map(|container| container.node).collect();
        // A network on no node has packets nowhere; the number only has to be one that makes sense.
        let mtus = nodes.iter().filter_map(|id| node(*id).network_mtu(network.encryption));
        let mut endpoints: Box<[Endpoint]> = containers.clone().map(Endpoint::of).collect();
        endpoints.sort_unstable_by_key(|endpoint| endpoint.address);
        Self {
            id: network.id,
            vni: network.vni,
            subnet: network.subnet,
            mtu: mtus.min().unwrap_or(mtu::IPV4_MINIMUM),
            resolver: policy.resolver,
            encryption: network.encryption,
            key_scope: network.key_scope,
            endpoints,
            nodes: nodes.into_iter().collect(),
            zone: Arc::new(ZonePlan::build(network, policy, apps, containers)),
        }
    }

    fn zone_meanwhile(&self, published: &Arc<ZonePlan>) -> Arc<ZonePlan> {
        if Arc::ptr_eq(published, &self.zone) {
            return Arc::clone(published);
        }
        let is_named = |of_type: &TypeNames, index: u32| {
            of_type.containers.binary_search_by_key(&index, |(index, _)| *index).is_ok()
        };
        let types = published.types.iter().filter_map(|before| {
            let after = self.zone.of_type(before.app, &before.container_type)?;
            let kept = before
                .containers
                .iter()
                .filter(|(index, address)| is_named(after, *index) && self.endpoint(*address).is_some());
            Some(TypeNames { containers: kept.copied().collect(), ..before.clone() })
        });
        Arc::new(ZonePlan { types: types.collect(), ..(*self.zone).clone() })
    }

    /// Returns whether a node has containers of this network.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.nodes.binary_search(&node).is_ok()
    }

    /// Returns the container with an address.
    #[must_use]
    pub fn endpoint(&self, address: Ipv4Addr) -> Option<&Endpoint> {
        let found = self.endpoints.binary_search_by_key(&address, |endpoint| endpoint.address);
        found.ok().map(|index| &self.endpoints[index])
    }
}

/// A container as its network sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The container.
    pub container: ContainerId,
    /// The node it runs on.
    pub node: NodeId,
    /// Its address.
    pub address: Ipv4Addr,
    /// The MAC address of its interface.
    pub mac: MacAddr,
}

impl Endpoint {
    fn of(container: &Container) -> Self {
        let (container, node, address) = (container.id, container.node, container.address);
        Self { container, node, address, mac: MacAddr::of_ipv4(address) }
    }
}

/// The names of one network and their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZonePlan {
    /// The network.
    pub network: NetworkId,
    /// Where its addresses come from, and so its reverse zone.
    pub subnet: Subnet,
    /// Time to live of positive answers.
    pub ttl: Duration,
    /// Every type that an app of the network declares, ordered by app and type.
    pub types: Box<[TypeNames]>,
}

/// A declared container type of an app, and its containers that have names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeNames {
    /// The app.
    pub app: AppId,
    /// The type, in the spelling of the app's formation.
    pub container_type: ContainerType,
    /// Slot index and address of each ready container, ordered by index.
    pub containers: Box<[(u32, Ipv4Addr)]>,
}

impl ZonePlan {
    fn build<'a>(
        network: &Network,
        policy: &Policy,
        apps: impl Iterator<Item = (AppId, &'a Formation)>,
        containers: impl Iterator<Item = &'a Container>,
    ) -> Self {
        let mut ready: BTreeMap<(AppId, ContainerType), Vec<(u32, Ipv4Addr)>> = BTreeMap::new();
        for container in containers.filter(|container| container.phase == Phase::Ready) {
            let of_type = ready.entry((container.slot.app(), container.slot.container_type())).or_default();
            of_type.push((container.slot.index(), container.address));
        }
        let mut types = Vec::new();
        for (app, formation) in apps {
            for (container_type, _) in formation.types() {
                let mut containers = ready.remove(&(app, *container_type)).unwrap_or_default();
                containers.sort_unstable();
                types.push(TypeNames { app, container_type: *container_type, containers: containers.into() });
            }
        }
        Self { network: network.id, subnet: network.subnet, ttl: policy.ttl, types: types.into() }
    }

    /// Returns the names of a declared type.
    #[must_use]
    pub fn of_type(&self, app: AppId, container_type: &ContainerType) -> Option<&TypeNames> {
        let key = (app, container_type);
        let found = self.types.binary_search_by(|of_type| (of_type.app, &of_type.container_type).cmp(&key)).ok()?;
        Some(&self.types[found])
    }

    /// Returns every name that has addresses, with them, in the product's order: an app, then each of its types, then the
    /// containers of the type.
    #[must_use]
    pub fn names(&self) -> Vec<(Name, Vec<Ipv4Addr>)> {
        let mut names = Vec::new();
        for types in self.types.chunk_by(|a, b| a.app == b.app) {
            let app = types[0].app;
            let web = types.iter().find(|of_type| of_type.container_type == ContainerType::web());
            let addresses = |of_type: &TypeNames| of_type.containers.iter().map(|(_, address)| *address).collect();
            names.extend(web.map(|web| (Name::app(self.network, app), addresses(web))));
            for of_type in types {
                names.push((Name::of_type(self.network, app, of_type.container_type), addresses(of_type)));
                names.extend(of_type.containers.iter().map(|(index, address)| {
                    let slot = Slot::new(app, of_type.container_type, *index).expect("planned slots have an index");
                    (Name::container(self.network, &slot), vec![*address])
                }));
            }
        }
        names.retain(|(_, addresses)| !addresses.is_empty());
        names
    }
}

/// The zones that are to be served, of one generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ZoneSet {
    /// The state's generation, from which serials follow.
    pub generation: Generation,
    /// The zone of each network.
    pub zones: BTreeMap<NetworkId, Arc<ZonePlan>>,
}

impl ZoneSet {
    fn of(generation: Generation, networks: &BTreeMap<NetworkId, Arc<NetworkPlan>>) -> Self {
        let zones = networks.iter().map(|(id, network)| (*id, Arc::clone(&network.zone)));
        Self { generation, zones: zones.collect() }
    }
}
