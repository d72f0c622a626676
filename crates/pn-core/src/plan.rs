//! Plans: what the nodes of a region, or one of them, are to be. A plan leaves nothing to decide.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::container::Slot;
use crate::container_type::ContainerType;
use crate::id::{AppId, ContainerId, NetworkId, NodeId, ProjectId};
use crate::name::Name;
use crate::net::{MacAddr, Vni};
use crate::network::{Encryption, Ipv6Prefix, KeyScope, Network};
use crate::node::Node;
use crate::ports::Ports;
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
    pub networks: Arc<BTreeMap<NetworkId, Arc<NetworkPlan>>>,
    /// The other nodes of these networks.
    pub peers: Arc<BTreeMap<NodeId, Arc<Node>>>,
}

impl NodePlan {
    /// Makes the plan with nothing in it. Realising it takes down everything.
    #[must_use]
    pub fn empty(node: NodeId, generation: Generation) -> Self {
        Self { node, generation, host: None, networks: Arc::default(), peers: Arc::default() }
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
        Self { node: host.id, generation, host: Some(host), networks: Arc::new(networks), peers: Arc::new(peers) }
    }

    /// Returns the plan without some networks, and without the nodes that nothing else is shared with: for a backend that
    /// cannot do all of it.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&NetworkPlan) -> bool) -> Self {
        let Some(host) = &self.host else {
            return self.clone();
        };
        let networks = self.networks.iter().filter(|(_, network)| keep(network));
        let networks = networks.map(|(id, network)| (*id, Arc::clone(network))).collect();
        Self::new(Arc::clone(host), self.generation, networks, |id| self.peers.get(&id).cloned())
    }

    /// Returns the plan with some networks as an older plan of the same node has them: for who keeps what this plan would
    /// remove. A network that is to be kept and that the older plan does not have is left out.
    ///
    /// What both plans know of a node is as this one says; nodes that only kept networks need come from the older one.
    #[must_use]
    pub fn keeping(&self, old: &Self, keep: impl Fn(NetworkId) -> bool) -> Self {
        let kept = || old.networks.iter().filter(|(id, _)| keep(**id));
        let Some(host) = self.host.as_ref().or(old.host.as_ref().filter(|_| kept().next().is_some())) else {
            return self.clone();
        };
        let newer = self.networks.iter().filter(|(id, _)| !keep(**id));
        let networks = newer.chain(kept()).map(|(id, network)| (*id, Arc::clone(network))).collect();
        let node = |id| self.peers.get(&id).or_else(|| old.peers.get(&id)).cloned();
        Self::new(Arc::clone(host), self.generation, networks, node)
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
        ZoneSet { generation: self.generation, stage: Stage::Meanwhile, zones: kept.collect() }
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
    /// The project it belongs to.
    pub project: ProjectId,
    /// Its VXLAN network identifier.
    pub vni: Vni,
    /// Where its addresses come from.
    pub subnet: Subnet,
    /// Where its IPv6 addresses come from, if it has any.
    pub ipv6: Option<Ipv6Prefix>,
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
    fn zone_meanwhile(&self, published: &Arc<ZonePlan>) -> Arc<ZonePlan> {
        if Arc::ptr_eq(published, &self.zone) {
            return Arc::clone(published);
        }
        let names = |before: &TypeNames| {
            let after = self.zone.of_type(before.app, &before.container_type)?;
            let kept = before.containers.iter().filter(|(index, address)| {
                let is_named = after.containers.binary_search_by_key(index, |(index, _)| *index).is_ok();
                // The address may be another slot's by now.
                let of_slot = |endpoint: &Endpoint| {
                    *endpoint.of == (before.app, before.container_type) && endpoint.index == *index
                };
                is_named && self.endpoint(*address).is_some_and(of_slot)
            });
            Some(TypeNames { containers: kept.copied().collect(), ..before.clone() })
        };
        let apps = published.apps.iter().filter_map(|before| {
            let types: Box<[TypeNames]> = before.types.iter().filter_map(names).collect();
            match () {
                () if types.is_empty() => None,
                () if types == before.types => Some(Arc::clone(before)),
                () => Some(Arc::new(AppNames { app: before.app, types })),
            }
        });
        Arc::new(ZonePlan { apps: apps.collect(), ..(*self.zone).clone() })
    }

    /// Returns the record of the network, without the terms, which no plan tells.
    #[must_use]
    pub const fn network(&self) -> Network {
        let Self { id, project, vni, subnet, ipv6, encryption, key_scope, .. } = *self;
        Network { id, project, vni, subnet, ipv6, encryption, key_scope, terms: None }
    }

    /// Returns whether a container of this network has the name of its slot.
    #[must_use]
    pub fn is_named(&self, endpoint: &Endpoint) -> bool {
        let named = self.zone.of_type(endpoint.of.0, &endpoint.of.1).map(|of_type| &of_type.containers);
        named.is_some_and(|named| named.binary_search(&(endpoint.index, endpoint.address)).is_ok())
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

    /// Returns the container with an address of either version.
    #[must_use]
    pub fn endpoint_at(&self, address: IpAddr) -> Option<&Endpoint> {
        match address {
            IpAddr::V4(address) => self.endpoint(address),
            IpAddr::V6(address) => self.endpoint(self.ipv6?.ipv4(address)?),
        }
    }
}

/// An app and a type of its containers, kept once for all that share it.
pub(crate) type TypeKey = (AppId, ContainerType);

/// A container as its network sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The container.
    pub container: ContainerId,
    /// The node it runs on.
    pub node: NodeId,
    /// Its address.
    pub address: Ipv4Addr,
    pub(crate) of: Arc<TypeKey>,
    pub(crate) index: u32,
}

impl Endpoint {
    /// Returns the MAC address of its interface, which follows from its address.
    #[must_use]
    pub const fn mac(&self) -> MacAddr {
        MacAddr::of_ipv4(self.address)
    }

    /// Returns the slot it fills.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot::new(self.of.0, self.of.1, self.index).expect("slots are numbered from 1")
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
    /// Where its IPv6 addresses come from, if it has any.
    pub ipv6: Option<Ipv6Prefix>,
    /// Time to live of positive answers.
    pub ttl: Duration,
    /// The names of each app of the network that declares a type, ordered by app. What did not change is shared with the
    /// plans before.
    pub apps: Box<[Arc<AppNames>]>,
}

/// The names of one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppNames {
    /// The app.
    pub app: AppId,
    /// The types it declares, at least one, in order.
    pub types: Box<[TypeNames]>,
}

impl AppNames {
    /// Returns the names of a declared type.
    #[must_use]
    pub fn of_type(&self, container_type: &ContainerType) -> Option<&TypeNames> {
        let found = self.types.binary_search_by(|of_type| of_type.container_type.cmp(container_type)).ok()?;
        Some(&self.types[found])
    }
}

/// A declared container type of an app, and its containers that have names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeNames {
    /// The app.
    pub app: AppId,
    /// The type, in the spelling of the app's formation.
    pub container_type: ContainerType,
    /// The ports its containers listen on, as the app says.
    pub ports: Ports,
    /// Slot index and address of each ready container, ordered by index.
    pub containers: Box<[(u32, Ipv4Addr)]>,
}

impl ZonePlan {
    /// Makes the zone of a network without names.
    #[must_use]
    pub fn new(network: NetworkId, subnet: Subnet, ttl: Duration) -> Self {
        Self { network, subnet, ipv6: None, ttl, apps: Box::default() }
    }

    /// Returns the names of an app that declares a type.
    #[must_use]
    pub fn app(&self, app: AppId) -> Option<&Arc<AppNames>> {
        let found = self.apps.binary_search_by_key(&app, |names| names.app).ok()?;
        Some(&self.apps[found])
    }

    /// Returns the names of a declared type.
    #[must_use]
    pub fn of_type(&self, app: AppId, container_type: &ContainerType) -> Option<&TypeNames> {
        self.app(app)?.of_type(container_type)
    }

    /// Returns every declared type, ordered by app and type.
    pub fn types(&self) -> impl Iterator<Item = &TypeNames> {
        self.apps.iter().flat_map(|names| &names.types)
    }

    /// Returns every name that has addresses, with them, in the product's order: an app, then each of its types, then the
    /// containers of the type.
    #[must_use]
    pub fn names(&self) -> Vec<(Name, Vec<Ipv4Addr>)> {
        self.apps.iter().flat_map(|names| self.names_of(names.app)).collect()
    }

    /// Returns the names of one app, as [`names`](Self::names) does.
    #[must_use]
    pub fn names_of(&self, app: AppId) -> Vec<(Name, Vec<Ipv4Addr>)> {
        let types = self.app(app).into_iter().flat_map(|names| &names.types);
        let addresses = |of_type: &TypeNames| of_type.containers.iter().map(|(_, address)| *address).collect();
        let web = self.of_type(app, &ContainerType::web());
        let mut names: Vec<(Name, Vec<Ipv4Addr>)> =
            web.map(|web| (Name::app(self.network, app), addresses(web))).into_iter().collect();
        for of_type in types {
            names.push((Name::of_type(self.network, app, of_type.container_type), addresses(of_type)));
            names.extend(of_type.containers.iter().map(|(index, address)| {
                let slot = Slot::new(app, of_type.container_type, *index).expect("planned slots have an index");
                (Name::container(self.network, &slot), vec![*address])
            }));
        }
        names.retain(|(_, addresses)| !addresses.is_empty());
        names
    }
}

/// Where the names of a generation are in taking the place of those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Stage {
    /// The ways are being changed: only names that were there before and stay.
    Meanwhile,
    /// The ways are there: all names.
    #[default]
    Settled,
}

/// The zones that are to be served, of one generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ZoneSet {
    /// The state's generation, from which serials follow.
    pub generation: Generation,
    /// Which of the generation's two sets it is; the settled one is the later.
    pub stage: Stage,
    /// The zone of each network.
    pub zones: BTreeMap<NetworkId, Arc<ZonePlan>>,
}

impl ZoneSet {
    /// Returns the serial number of what is new in this set (RFC 1982): it grows with generation and stage, the same on
    /// every server.
    #[must_use]
    pub const fn serial(&self) -> u32 {
        // Serials are compared in a circle, so the low bits are enough.
        (self.generation.get() as u32) << 1 | matches!(self.stage, Stage::Settled) as u32
    }

    fn of(generation: Generation, networks: &BTreeMap<NetworkId, Arc<NetworkPlan>>) -> Self {
        let zones = networks.iter().map(|(id, network)| (*id, Arc::clone(&network.zone)));
        Self { generation, stage: Stage::Settled, zones: zones.collect() }
    }
}
