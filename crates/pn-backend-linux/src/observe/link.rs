//! A link as a dump tells it.

use core::net::IpAddr;

use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, VxlanDf,
};

use super::mac;
use crate::kernel::{Link, LinkKind, LinkName, Port};

/// Reads a link that has a name of ours.
pub(super) fn read(name: LinkName, message: &LinkMessage) -> Link {
    let is_up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { kind: LinkKind::Other, mtu: 0, mac: None, alias: None, port: None, is_plain: true, is_up };
    let has_mac = matches!(name, LinkName::Bridge | LinkName::Inner);
    let has_alias = matches!(name, LinkName::Port(_) | LinkName::Inner);
    let (mut is_port, mut is_from_elsewhere) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(octets) if has_mac => link.mac = mac(octets),
            LinkAttribute::IfAlias(alias) if has_alias => link.alias = Some(alias.clone()),
            LinkAttribute::Controller(_) => is_port = true,
            LinkAttribute::LinkNetNsId(_) => is_from_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| read_info(info, &mut link)),
            _ => {}
        }
    }
    link.port = link.port.filter(|_| is_port);
    // A VXLAN device that was made where it is has its socket there, and sends to nobody (X11).
    if matches!(link.kind, LinkKind::Vxlan { .. }) && !is_from_elsewhere {
        link.kind = LinkKind::Other;
    }
    link
}

fn read_info(info: &LinkInfo, link: &mut Link) {
    match info {
        LinkInfo::Kind(InfoKind::Tun) => link.kind = LinkKind::Tun,
        LinkInfo::Kind(InfoKind::Wireguard) => link.kind = LinkKind::WireGuard(None),
        LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
        LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
        LinkInfo::Data(InfoData::Vxlan(data)) => link.kind = vxlan(data),
        LinkInfo::Data(InfoData::Bridge(data)) => bridge(data, link),
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => port(data, link),
        _ => {}
    }
}

fn vxlan(data: &[InfoVxlan]) -> LinkKind {
    let (mut id, mut at, mut to, mut learns, mut splits) = (0, None, 0, true, true);
    for info in data {
        match info {
            InfoVxlan::Id(vni) => id = *vni,
            InfoVxlan::Local(address) => at = Some(IpAddr::from(*address)),
            InfoVxlan::Local6(address) => at = Some(IpAddr::from(*address)),
            InfoVxlan::Port(port) => to = *port,
            InfoVxlan::Learning(learning) => learns = *learning,
            InfoVxlan::Df(df) => splits = *df != VxlanDf::Set,
            // It answers itself, asks the administrator, takes its orders from each packet, or sends to somebody by default.
            InfoVxlan::Proxy(true)
            | InfoVxlan::Rsc(true)
            | InfoVxlan::L2Miss(true)
            | InfoVxlan::L3Miss(true)
            | InfoVxlan::CollectMetadata(true)
            | InfoVxlan::Vnifilter(true)
            | InfoVxlan::Group(_)
            | InfoVxlan::Group6(_)
            | InfoVxlan::RemCsumTX(true)
            | InfoVxlan::RemCsumRX(true)
            | InfoVxlan::Gbp
            | InfoVxlan::Gpe => return LinkKind::Other,
            InfoVxlan::Link(number) | InfoVxlan::Limit(number) | InfoVxlan::Label(number) if *number != 0 => {
                return LinkKind::Other;
            }
            InfoVxlan::Tos(number) | InfoVxlan::Ttl(number) | InfoVxlan::TtlInherit(number) if *number != 0 => {
                return LinkKind::Other;
            }
            _ => {}
        }
    }
    // Over IPv6 nobody but the sender splits packets (M6).
    if splits && at.is_some_and(|at| at.is_ipv4()) {
        return LinkKind::Other;
    }
    LinkKind::Vxlan { vni: id, local: at, port: to, is_learning: learns }
}

fn bridge(data: &[InfoBridge], link: &mut Link) {
    for info in data {
        match info {
            // A bridge with a spanning tree refuses to forward at once; VLANs cannot be switched off where a kernel has none.
            InfoBridge::StpState(state) if *state != BridgeStpState::Disabled => link.kind = LinkKind::Other,
            InfoBridge::VlanFiltering(true) => link.kind = LinkKind::Other,
            InfoBridge::MulticastSnooping(is_set)
            | InfoBridge::MulticastQuerier(is_set)
            | InfoBridge::NfCallIpTables(is_set)
            | InfoBridge::NfCallIp6Tables(is_set)
            | InfoBridge::NfCallArpTables(is_set) => link.is_plain &= !is_set,
            InfoBridge::GroupFwdMask(mask) => link.is_plain &= *mask == 0,
            _ => {}
        }
    }
}

fn port(data: &[InfoBridgePort], link: &mut Link) {
    let mut port = Port::VXLAN;
    for info in data {
        match info {
            InfoBridgePort::Learning(value) => port.learning = *value,
            InfoBridgePort::UnicastFlood(value) => port.unicast_flood = *value,
            InfoBridgePort::MulticastFlood(value) => port.multicast_flood = *value,
            InfoBridgePort::BroadcastFlood(value) => port.broadcast_flood = *value,
            InfoBridgePort::NeighSupress(value) => port.neigh_suppress = *value,
            InfoBridgePort::ProxyARPWifi(value) => port.proxy_arp = *value,
            InfoBridgePort::HairpinMode(is_set)
            | InfoBridgePort::Guard(is_set)
            | InfoBridgePort::Protect(is_set)
            | InfoBridgePort::FastLeave(is_set)
            | InfoBridgePort::ProxyARP(is_set)
            | InfoBridgePort::MulticastToUnicast(is_set)
            | InfoBridgePort::VlanTunnel(is_set)
            | InfoBridgePort::Isolated(is_set)
            | InfoBridgePort::Locked(is_set)
            | InfoBridgePort::Mab(is_set)
            | InfoBridgePort::NeighVlanSuppress(is_set) => link.is_plain &= !is_set,
            InfoBridgePort::GroupFwdMask(mask) => link.is_plain &= *mask == 0,
            _ => {}
        }
    }
    link.port = Some(port);
}
