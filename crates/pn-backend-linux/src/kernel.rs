//! What a kernel holds for us, or is to hold: the one type that plans are lowered to and that dumps are read into.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use pn_core::backend::{Observed, ObservedEndpoint, ObservedNetwork, ObservedPeer};
use pn_core::{ContainerId, MacAddr, NetworkId, PublicKey, Subnet, Vni};

use crate::firewall::Element;

/// Everything of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Its namespaces.
    pub(crate) places: BTreeMap<Place, Namespace>,
    /// The nodes its tunnel knows.
    pub(crate) peers: BTreeMap<PublicKey, Peer>,
    /// Which container is behind a port of a network's bridge. Observations leave it empty: the port's alias says it.
    pub(crate) pairs: BTreeMap<(NetworkId, Ipv4Addr), ContainerId>,
}

/// A node that the tunnel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where it receives UDP.
    pub(crate) underlay: SocketAddr,
    /// What it may send from, and what is sent to it: its tunnel address, or nothing yet under the key it is to have next.
    pub(crate) allowed: BTreeSet<IpNet>,
}

impl Peer {
    /// A node that packets are exchanged with.
    pub(crate) fn new(underlay: SocketAddr, tunnel_address: IpAddr) -> Self {
        Self { underlay, allowed: BTreeSet::from([tunnel_address.into()]) }
    }

    /// Returns the one address it has, if it has one.
    pub(crate) fn tunnel_address(&self) -> Option<IpAddr> {
        let mut allowed = self.allowed.iter();
        match (allowed.next(), allowed.next()) {
            (Some(one), None) if one.prefix_len() == one.max_prefix_len() => Some(one.addr()),
            _ => None,
        }
    }
}

/// Who a tunnel of the kernel's is, and where it listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) public_key: PublicKey,
    pub(crate) port: u16,
}

/// A network namespace that we have a part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// Where the tunnel is, and every VXLAN socket. Nothing else is in it, so VXLAN leaves it encrypted or not at all.
    Transport,
    /// Where the bridge and the VXLAN device of a network are, or the TAP interface in its place.
    Network(NetworkId),
    /// The namespace of a container, of which one interface is ours.
    Container(ContainerId),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport => f.write_str(TRANSPORT),
            Self::Network(id) => write!(f, "{id}"),
            Self::Container(id) => write!(f, "{id}"),
        }
    }
}

impl Place {
    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == TRANSPORT {
            return Some(Self::Transport);
        }
        let network = text.parse().ok().map(Self::Network);
        network.or_else(|| text.parse().ok().map(Self::Container))
    }
}

const TRANSPORT: &str = "transport";

/// An interface of ours, by its name, which is never that of another in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum LinkName {
    /// The tunnel to the other nodes.
    Tunnel,
    /// A network's bridge.
    Bridge,
    /// A network's VXLAN device, or the TAP interface in its place.
    Vxlan,
    /// The bridge's port of the container with this address.
    Port(Ipv4Addr),
    /// The container's end of that.
    Inner,
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel => f.write_str("tunnel0"),
            Self::Bridge => f.write_str("br0"),
            Self::Vxlan => f.write_str("vxlan0"),
            Self::Port(address) => write!(f, "p{:08x}", address.to_bits()),
            Self::Inner => f.write_str(INNER),
        }
    }
}

/// What containers call their interface.
pub(crate) const INNER: &str = "pn0";

impl LinkName {
    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "tunnel0" => Some(Self::Tunnel),
            "br0" => Some(Self::Bridge),
            "vxlan0" => Some(Self::Vxlan),
            INNER => Some(Self::Inner),
            _ => {
                let digits = text.strip_prefix('p').filter(|digits| digits.len() == 8)?;
                u32::from_str_radix(digits, 16).ok().map(|bits| Self::Port(Ipv4Addr::from_bits(bits)))
            }
        }
    }
}

/// What is in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) links: BTreeMap<LinkName, Link>,
    pub(crate) addresses: BTreeSet<(LinkName, IpNet)>,
    pub(crate) routes: BTreeSet<(LinkName, IpNet)>,
    /// Permanent neighbours.
    pub(crate) neighbours: BTreeMap<(LinkName, IpAddr), MacAddr>,
    /// Behind which port of the bridge an address is.
    pub(crate) bridge_fdb: BTreeSet<(LinkName, MacAddr)>,
    /// Behind which node's tunnel address an address is.
    pub(crate) vxlan_fdb: BTreeMap<MacAddr, IpAddr>,
    /// Its rules; containers' namespaces have none of ours.
    pub(crate) firewall: Option<Firewall>,
}

/// The packet filter of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Firewall {
    /// Whether chains and rules are what they have to be.
    pub(crate) is_intact: bool,
    /// What is in their sets.
    pub(crate) elements: BTreeSet<Element>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) kind: LinkKind,
    pub(crate) mtu: u32,
    /// Its Ethernet address, where it matters.
    pub(crate) mac: Option<MacAddr>,
    /// Whose it is: for the two ends of a container's link.
    pub(crate) alias: Option<String>,
    /// What makes it a port of the bridge.
    pub(crate) port: Option<Port>,
    /// Whether every other setting of it is what it was made with, of those that can be set back while it exists.
    pub(crate) is_plain: bool,
    pub(crate) is_up: bool,
}

/// What an interface is, none of which can change while it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkKind {
    Tun,
    /// A TAP interface of a bridge, behind which this process has the end of VXLAN: the VNI and the tunnel address it sends with,
    /// where it is that.
    Tap(Option<(u32, IpAddr)>),
    /// The kernel's tunnel; who it is, where that was read.
    WireGuard(Option<Identity>),
    Bridge,
    Vxlan {
        vni: u32,
        local: Option<IpAddr>,
        port: u16,
        is_learning: bool,
    },
    Veth,
    /// What we make none of: of another kind, or of one of ours with settings that only a new one is rid of.
    Other,
}

/// How the bridge treats a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the kernel's own flags")]
pub(crate) struct Port {
    /// Learns addresses from what arrives.
    pub(crate) learning: bool,
    /// Gets frames for addresses that nobody knows.
    pub(crate) unicast_flood: bool,
    pub(crate) multicast_flood: bool,
    pub(crate) broadcast_flood: bool,
    /// Is not asked for neighbours that the bridge knows.
    pub(crate) neigh_suppress: bool,
    /// Has questions for what is behind it answered by the bridge (`proxy_arp_wifi`; with `proxy_arp`, neighbour discovery would
    /// not reach it either).
    pub(crate) proxy_arp: bool,
}

impl Port {
    /// The VXLAN device: nothing is flooded or learned, and no question crosses it.
    pub(crate) const VXLAN: Self = Self {
        learning: false,
        unicast_flood: false,
        multicast_flood: false,
        broadcast_flood: false,
        neigh_suppress: true,
        proxy_arp: false,
    };

    /// A container: the bridge answers for it.
    pub(crate) const CONTAINER: Self = Self { neigh_suppress: false, proxy_arp: true, ..Self::VXLAN };

    /// A container of a network with IPv6: neighbour discovery is multicast, and stays among the containers of one node.
    pub(crate) const DUAL_STACK: Self = Self { multicast_flood: true, ..Self::CONTAINER };
}

impl Kernel {
    /// Says in the terms of plans what is there. What lacks a part is left out.
    pub(crate) fn observed(&self) -> Observed {
        let networks = self.places.iter().filter_map(|(place, namespace)| match place {
            Place::Network(id) => Some((*id, self.network(*id, namespace)?)),
            Place::Transport | Place::Container(_) => None,
        });
        let peer = |peer: &Peer| Some(ObservedPeer { underlay: peer.underlay, tunnel_address: peer.tunnel_address()? });
        let peers = self.peers.iter().filter_map(|(key, found)| Some((*key, peer(found)?)));
        Observed { peers: peers.collect(), networks: networks.collect() }
    }

    /// Returns the containers that have a port of their network's bridge.
    pub(crate) fn connected(&self) -> BTreeSet<ContainerId> {
        let ports =
            self.places.iter().flat_map(|(place, namespace)| namespace.links.values().map(move |link| (place, link)));
        let connected = ports.filter_map(|(place, link)| {
            let (network, container) = parse_alias(link.alias.as_deref()?)?;
            (*place == Place::Network(network)).then_some(container)
        });
        connected.collect()
    }

    fn network(&self, id: NetworkId, namespace: &Namespace) -> Option<ObservedNetwork> {
        let firewall = namespace.firewall.as_ref().filter(|firewall| firewall.is_intact)?;
        let (LinkKind::Vxlan { vni, local: Some(here), .. } | LinkKind::Tap(Some((vni, here)))) =
            namespace.links.get(&LinkName::Vxlan)?.kind
        else {
            return None;
        };
        namespace.links.get(&LinkName::Bridge)?;
        let mtu = namespace.links.values().map(|link| link.mtu).min()?;
        let subnet = namespace.routes.iter().find_map(|(_, prefix)| match prefix {
            IpNet::V4(prefix) => Subnet::new(prefix.addr(), prefix.prefix_len()).ok(),
            IpNet::V6(_) => None,
        })?;
        let endpoints = namespace.neighbours.iter().filter_map(|((_, address), mac)| {
            let IpAddr::V4(address) = *address else {
                return None;
            };
            let port = LinkName::Port(address);
            let via = if namespace.bridge_fdb.contains(&(port, *mac)) {
                let is_allowed = firewall.elements.contains(&Element::source(address, *mac));
                (is_allowed && self.has_inner(id, namespace.links.get(&port)?)).then_some(here)
            } else {
                let is_bridged = namespace.bridge_fdb.contains(&(LinkName::Vxlan, *mac));
                namespace.vxlan_fdb.get(mac).copied().filter(|_| is_bridged)
            };
            Some((address, ObservedEndpoint { mac: *mac, via: via? }))
        });
        let endpoints = endpoints.collect();
        Some(ObservedNetwork { vni: Vni::new(vni)?, subnet, mtu: u16::try_from(mtu).ok()?, endpoints })
    }

    /// Returns whether the container's end of a port is where it has to be.
    fn has_inner(&self, network: NetworkId, port: &Link) -> bool {
        let container = port.alias.as_deref().and_then(parse_alias).filter(|(of, _)| *of == network);
        let inner = container.and_then(|(_, container)| self.places.get(&Place::Container(container)));
        inner.and_then(|inner| inner.links.get(&LinkName::Inner)).is_some_and(|inner| inner.alias == port.alias)
    }
}

/// Returns the alias of both ends of a container's link.
pub(crate) fn alias(network: NetworkId, container: ContainerId) -> String {
    format!("{TAG} {network} {container}")
}

/// Reads what [`alias`] writes.
pub(crate) fn parse_alias(alias: &str) -> Option<(NetworkId, ContainerId)> {
    let (network, container) = alias.strip_prefix(TAG)?.strip_prefix(' ')?.split_once(' ')?;
    Some((network.parse().ok()?, container.parse().ok()?))
}

/// What the aliases of our interfaces begin with.
const TAG: &str = "private-network";
