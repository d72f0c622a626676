//! From a node's plan to what its kernel is to hold. Pure: every name, address and number is in the plan or follows from it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use pn_core::{ContainerId, Encryption, KeyScope, MacAddr, NetworkPlan, Node, NodePlan, mtu};

use crate::firewall::Element;
use crate::kernel::{Firewall, Kernel, Link, LinkKind, LinkName, Namespace, Peer, Place, Port, alias};

/// The UDP port of VXLAN (RFC 7348 §5). The kernel's own default is another, 8472.
pub(crate) const VXLAN_PORT: u16 = 4789;

/// Returns whether this data plane can do what a network asks for.
pub(crate) fn is_supported(network: &NetworkPlan) -> bool {
    (network.encryption, network.key_scope) == (Encryption::WireGuard, KeyScope::Node)
}

/// Lowers a plan that holds only what is supported. Containers that have no namespace yet are left out; `tunnel` says what
/// the tunnel is to be.
pub(crate) fn lower(plan: &NodePlan, attached: &BTreeSet<ContainerId>, tunnel: &LinkKind) -> Kernel {
    let mut kernel = Kernel::default();
    let Some(host) = plan.host.as_deref().filter(|_| !plan.networks.is_empty()) else {
        return kernel;
    };
    for node in plan.peers.values() {
        kernel.peers.insert(node.public_key, Peer::new(node.underlay, node.tunnel_address));
        // The kernel makes sessions with the key that is to come, so that it only takes over; the tunnel in this process makes
        // one when it has to.
        if let (Some(next), LinkKind::WireGuard(_)) = (node.next_public_key, tunnel) {
            kernel.peers.insert(next, Peer { underlay: node.underlay, allowed: BTreeSet::new() });
        }
    }
    // Where VXLAN ends in this process, no packet of it is the kernel's.
    let mut transport = (*tunnel != LinkKind::Tap(None)).then(|| transport(host, tunnel));
    for network in plan.networks.values() {
        lower_network(plan, host, network, attached, &mut kernel, transport.as_mut());
    }
    kernel.places.extend(transport.map(|transport| (Place::Transport, transport)));
    kernel
}

fn transport(host: &Node, tunnel: &LinkKind) -> Namespace {
    let mtu = host.underlay_mtu.saturating_sub(mtu::wireguard_overhead(host.underlay.ip()));
    let link =
        Link { kind: tunnel.clone(), mtu: mtu.into(), mac: None, alias: None, port: None, is_plain: true, is_up: true };
    let anywhere = match host.tunnel_address {
        IpAddr::V4(_) => IpNet::from(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::from(Ipv6Net::default()),
    };
    Namespace {
        links: BTreeMap::from([(LinkName::Tunnel, link)]),
        addresses: BTreeSet::from([(LinkName::Tunnel, IpNet::from(host.tunnel_address))]),
        // Whatever is sent from here goes through the tunnel, which knows who has which address.
        routes: BTreeSet::from([(LinkName::Tunnel, anywhere)]),
        firewall: Some(Firewall { is_intact: true, elements: BTreeSet::new() }),
        ..Namespace::default()
    }
}

fn lower_network(
    plan: &NodePlan,
    host: &Node,
    network: &NetworkPlan,
    attached: &BTreeSet<ContainerId>,
    kernel: &mut Kernel,
    transport: Option<&mut Namespace>,
) {
    let mtu = u32::from(network.mtu);
    let mac = MacAddr::of_ipv4(network.resolver);
    let link = |kind, mac, port| Link { kind, mtu, mac, alias: None, port, is_plain: true, is_up: true };
    let (vni, local) = (network.vni.get(), host.tunnel_address);
    let vxlan = match transport {
        Some(_) => LinkKind::Vxlan { vni, local: Some(local), port: VXLAN_PORT, is_learning: false },
        None => LinkKind::Tap(Some((vni, local))),
    };
    let mut here = Namespace::default();
    here.links.insert(LinkName::Bridge, link(LinkKind::Bridge, Some(mac), None));
    here.links.insert(LinkName::Vxlan, link(vxlan, None, Some(Port::VXLAN)));
    // The resolver answers containers; nothing else in the namespace has an address.
    here.addresses.insert((LinkName::Bridge, IpNet::from(IpAddr::from(network.resolver))));
    here.routes.insert((LinkName::Bridge, subnet(network)));
    let mut elements = BTreeSet::from(Element::resolver(network.resolver));
    elements.extend(network.ipv6.map(|prefix| Element::prefix6(prefix6(prefix.network(), 96))));
    let mut senders = transport.map(|transport| &mut transport.firewall.get_or_insert_default().elements);
    for endpoint in &network.endpoints {
        let (address, mac) = (endpoint.address, endpoint.mac());
        let address6 = network.ipv6.map(|prefix| IpAddr::from(prefix.address(address)));
        if endpoint.node == plan.node {
            if attached.contains(&endpoint.container) {
                let inner = lower_container(network, endpoint.container, address, &mut here);
                kernel.places.insert(Place::Container(endpoint.container), inner);
                kernel.pairs.insert((network.id, address), endpoint.container);
                elements.extend(Element::container(address, mac));
                elements.extend(address6.into_iter().flat_map(|to| Element::container6(address, mac, to)));
                // Not its IPv6 address: the bridge would keep questions for it from reaching it, and not answer either.
                here.neighbours.insert((LinkName::Bridge, address.into()), mac);
                here.bridge_fdb.insert((LinkName::Port(address), mac));
            }
            continue;
        }
        let Some(via) = plan.member(endpoint.node).map(|node| node.tunnel_address) else {
            continue;
        };
        here.neighbours.insert((LinkName::Bridge, address.into()), mac);
        here.neighbours.extend(address6.map(|to| ((LinkName::Bridge, to), mac)));
        here.bridge_fdb.insert((LinkName::Vxlan, mac));
        here.vxlan_fdb.insert(mac, via);
        if let Some(senders) = &mut senders {
            senders.insert(Element::sender(via, network.vni, address, mac, false));
            senders.extend(address6.map(|_| Element::sender(via, network.vni, address, mac, true)));
        }
    }
    here.firewall = Some(Firewall { is_intact: true, elements });
    kernel.places.insert(Place::Network(network.id), here);
}

/// Adds the port of a container, and returns what is to be in the container's namespace.
fn lower_container(
    network: &NetworkPlan,
    container: ContainerId,
    address: Ipv4Addr,
    here: &mut Namespace,
) -> Namespace {
    let alias = Some(alias(network.id, container));
    let port = if network.ipv6.is_some() { Port::DUAL_STACK } else { Port::CONTAINER };
    let (kind, mtu) = (LinkKind::Veth, u32::from(network.mtu));
    let outer = Link { kind, mtu, mac: None, alias, port: Some(port), is_plain: true, is_up: true };
    let inner = Link { mac: Some(MacAddr::of_ipv4(address)), port: None, ..outer.clone() };
    here.links.insert(LinkName::Port(address), outer);
    let mut inside = Namespace::default();
    inside.links.insert(LinkName::Inner, inner);
    let own = IpNet::new(address.into(), network.subnet.prefix_len()).ok();
    inside.addresses.extend(own.map(|own| (LinkName::Inner, own)));
    inside.routes.insert((LinkName::Inner, subnet(network)));
    inside.routes.insert((LinkName::Inner, IpNet::from(IpAddr::from(network.resolver))));
    if let Some(prefix) = network.ipv6 {
        let own = IpNet::new(prefix.address(address).into(), 64).ok();
        inside.addresses.extend(own.map(|own| (LinkName::Inner, own)));
        inside.routes.insert((LinkName::Inner, prefix6(prefix.network(), 64)));
    }
    inside
}

fn subnet(network: &NetworkPlan) -> IpNet {
    let (address, len) = (network.subnet.network(), network.subnet.prefix_len());
    IpNet::new(address.into(), len).expect("a subnet's prefix is at most 29 bits long")
}

fn prefix6(network: Ipv6Addr, len: u8) -> IpNet {
    IpNet::new(network.into(), len).expect("a prefix of IPv6 is at most 128 bits long")
}
