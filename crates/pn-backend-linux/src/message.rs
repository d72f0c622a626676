//! The netlink messages that are sent: one function for each thing that can be done.

use core::net::IpAddr;
use std::os::fd::RawFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VxlanDf,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use pn_core::MacAddr;
use pn_core::mtu::IPV6_MINIMUM;

use crate::kernel::{Link, LinkKind, LinkName, Port};

/// A message and its flags.
pub(crate) type Request = (RouteNetlinkMessage, u16);

/// Who made a route, as routes tell it: 112, which nobody else uses (`/etc/iproute2/rt_protos`).
pub(crate) const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(112);

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// Creates a bridge that forwards at once and takes part in no protocol. It is not up yet.
pub(crate) fn create_bridge(link: &Link) -> Request {
    let mut message = named(LinkName::Bridge, link.mtu);
    message.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    message.attributes.push(bridge_info());
    (RouteNetlinkMessage::NewLink(message), CREATE)
}

/// What a bridge is told, when it is made and when it is set back.
fn bridge_info() -> LinkAttribute {
    let data = vec![
        InfoBridge::ForwardDelay(0),
        InfoBridge::MulticastSnooping(false),
        InfoBridge::MulticastQuerier(false),
        InfoBridge::GroupFwdMask(0),
        InfoBridge::NfCallIpTables(false),
        InfoBridge::NfCallIp6Tables(false),
        InfoBridge::NfCallArpTables(false),
    ];
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))])
}

/// Creates a VXLAN device in another namespace. Its UDP socket stays in the namespace of the socket this is sent to.
pub(crate) fn create_vxlan(link: &Link, into: RawFd) -> Option<Request> {
    let LinkKind::Vxlan { vni, local, port, is_learning } = link.kind else {
        return None;
    };
    let mut data = vec![InfoVxlan::Id(vni), InfoVxlan::Learning(is_learning), InfoVxlan::Port(port)];
    match local? {
        IpAddr::V4(local) => data.extend([InfoVxlan::Local(local), InfoVxlan::Df(VxlanDf::Set)]),
        // Tunnels may leave the checksum out (RFC 6935), and the user-space data plane does.
        IpAddr::V6(local) => {
            data.extend([InfoVxlan::Local6(local), InfoVxlan::UDPZeroCsumTX(true), InfoVxlan::UDPZeroCsumRX(true)]);
        }
    }
    let mut message = named(LinkName::Vxlan, link.mtu);
    message.attributes.push(LinkAttribute::NetNsFd(into));
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]));
    Some((RouteNetlinkMessage::NewLink(message), CREATE))
}

/// Creates a WireGuard device in another namespace. Its UDP socket stays in the namespace of the socket this is sent to.
pub(crate) fn create_wireguard(link: &Link, into: RawFd) -> Request {
    let mut message = named(LinkName::Tunnel, link.mtu);
    message.attributes.push(LinkAttribute::NetNsFd(into));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    (RouteNetlinkMessage::NewLink(message), CREATE)
}

/// The link of a container: a port here, and the container's end in its namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub(crate) port: LinkName,
    pub(crate) link: &'a Link,
    pub(crate) inner: &'a Link,
}

/// Creates both ends at once.
pub(crate) fn create_veth(pair: Pair<'_>, into: RawFd) -> Request {
    let Pair { port, link, inner } = pair;
    let mut peer = named(LinkName::Inner, inner.mtu);
    peer.attributes.extend(inner.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    peer.attributes.push(LinkAttribute::NetNsFd(into));
    let mut message = named(port, link.mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    (RouteNetlinkMessage::NewLink(message), CREATE)
}

/// Changes a link to what it is to be, in this order: it gets its MTU and becomes a port, learns how to behave as one, and goes
/// up. Its Ethernet address is not set, even to what it is: the kernel would forget every neighbour.
pub(crate) fn set_link(name: LinkName, link: &Link, bridge: Option<u32>) -> Vec<Request> {
    let mut message = named(name, link.mtu);
    message.attributes.extend(bridge.filter(|_| link.port.is_some()).map(LinkAttribute::Controller));
    message.attributes.extend((name == LinkName::Bridge).then(bridge_info));
    let mut requests = vec![(RouteNetlinkMessage::NewLink(message), 0)];
    let mut message = named(name, link.mtu);
    message.attributes.extend(link.alias.clone().map(LinkAttribute::IfAlias));
    message.attributes.extend(link.port.map(|port| {
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port_data(port))),
        ])
    }));
    // No address makes itself: what a link has is planned. A smaller link has no IPv6 at all.
    if link.mtu >= IPV6_MINIMUM.into() {
        let inet6 = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(inet6)]));
    }
    requests.push((RouteNetlinkMessage::NewLink(message), 0));
    let mut message = named(name, link.mtu);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    requests.push((RouteNetlinkMessage::NewLink(message), 0));
    requests
}

fn port_data(port: Port) -> Vec<InfoBridgePort> {
    vec![
        InfoBridgePort::Learning(port.learning),
        InfoBridgePort::UnicastFlood(port.unicast_flood),
        InfoBridgePort::MulticastFlood(port.multicast_flood),
        InfoBridgePort::BroadcastFlood(port.broadcast_flood),
        InfoBridgePort::NeighSupress(port.neigh_suppress),
        InfoBridgePort::ProxyARPWifi(port.proxy_arp),
        InfoBridgePort::HairpinMode(false),
        InfoBridgePort::Guard(false),
        InfoBridgePort::Protect(false),
        InfoBridgePort::FastLeave(false),
        InfoBridgePort::ProxyARP(false),
        InfoBridgePort::MulticastToUnicast(false),
        InfoBridgePort::VlanTunnel(false),
        InfoBridgePort::GroupFwdMask(0),
        InfoBridgePort::Isolated(false),
        // Learning from locked ports before it: a port may not have the one without the other.
        InfoBridgePort::Mab(false),
        InfoBridgePort::Locked(false),
        InfoBridgePort::NeighVlanSuppress(false),
    ]
}

/// Has a link of Ethernet's kind ask for nobody's address.
pub(crate) fn without_neighbours(name: LinkName) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message.header.flags = LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Noarp;
    (RouteNetlinkMessage::NewLink(message), 0)
}

/// Takes a link down.
pub(crate) fn take_down(name: LinkName) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::NewLink(message), 0)
}

/// Removes a link.
pub(crate) fn remove_link(name: LinkName) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    (RouteNetlinkMessage::DelLink(message), 0)
}

fn named(name: LinkName, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message
}

/// Gives a link an address, without the route that the kernel would add.
pub(crate) fn set_address(index: u32, address: IpNet) -> Request {
    let mut message = self::address(index, address);
    // Nobody else has it, which the plan knows, so there is nothing to detect.
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
    message.attributes.push(AddressAttribute::Flags(flags));
    (RouteNetlinkMessage::NewAddress(message), SET)
}

/// Takes an address from a link.
pub(crate) fn remove_address(index: u32, address: IpNet) -> Request {
    (RouteNetlinkMessage::DelAddress(self::address(index, address)), 0)
}

fn address(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

/// Routes a prefix to a link.
pub(crate) fn set_route(index: u32, prefix: IpNet) -> Request {
    (RouteNetlinkMessage::NewRoute(route(index, prefix)), SET)
}

/// Removes such a route.
pub(crate) fn remove_route(index: u32, prefix: IpNet) -> Request {
    (RouteNetlinkMessage::DelRoute(route(index, prefix)), 0)
}

fn route(index: u32, prefix: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.addr());
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = ROUTE_PROTOCOL;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    if prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(prefix.addr())));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// Says for good which Ethernet address an address has.
pub(crate) fn set_neighbour(index: u32, address: IpAddr, mac: MacAddr) -> Request {
    let mut message = neighbour(index, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    (RouteNetlinkMessage::NewNeighbour(message), SET)
}

/// Forgets it.
pub(crate) fn remove_neighbour(index: u32, address: IpAddr) -> Request {
    (RouteNetlinkMessage::DelNeighbour(neighbour(index, address)), 0)
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(address)));
    message
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

/// Says for good behind which port of the bridge an Ethernet address is.
pub(crate) fn set_bridge_fdb(index: u32, mac: MacAddr) -> Request {
    (RouteNetlinkMessage::NewNeighbour(bridge_fdb(index, mac)), SET)
}

/// Forgets it.
pub(crate) fn remove_bridge_fdb(index: u32, mac: MacAddr) -> Request {
    (RouteNetlinkMessage::DelNeighbour(bridge_fdb(index, mac)), 0)
}

fn bridge_fdb(index: u32, mac: MacAddr) -> NeighbourMessage {
    // `NTF_MASTER`: the bridge's own table. "No ARP" is its word for static; "permanent" would mean the bridge itself.
    fdb(index, mac, NeighbourFlags::Controller, NeighbourState::Noarp)
}

/// Says for good behind which tunnel address an Ethernet address is.
pub(crate) fn set_vxlan_fdb(index: u32, mac: MacAddr, via: IpAddr) -> Request {
    let mut message = vxlan_fdb(index, mac);
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(via)));
    (RouteNetlinkMessage::NewNeighbour(message), SET)
}

/// Forgets it.
pub(crate) fn remove_vxlan_fdb(index: u32, mac: MacAddr) -> Request {
    (RouteNetlinkMessage::DelNeighbour(vxlan_fdb(index, mac)), 0)
}

fn vxlan_fdb(index: u32, mac: MacAddr) -> NeighbourMessage {
    // `NTF_SELF`: the device's table. Without it the kernel would take the bridge's, since the device is a port.
    fdb(index, mac, NeighbourFlags::Own, NeighbourState::Permanent)
}

fn fdb(index: u32, mac: MacAddr, flags: NeighbourFlags, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = flags;
    message.header.state = state;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
