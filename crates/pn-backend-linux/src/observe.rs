//! What the kernel holds, read from dumps into the type that plans are lowered to.
#![expect(clippy::wildcard_enum_match_arm, reason = "the kernel tells more than is looked at")]

mod link;

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::io;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use pn_core::MacAddr;

use crate::kernel::{Link, LinkName, Namespace, Place, parse_alias};
use crate::message::ROUTE_PROTOCOL;
use crate::netlink::Netlink;

/// The links of a namespace by their kernel's index.
pub(crate) type Indexes = BTreeMap<LinkName, u32>;

/// Reads a namespace, but for its firewall.
pub(crate) fn namespace(place: Place, netlink: &mut Netlink) -> io::Result<(Namespace, Indexes)> {
    let (links, indexes) = links(place, netlink)?;
    let names: BTreeMap<u32, LinkName> = indexes.iter().map(|(name, index)| (*index, *name)).collect();
    let mut found = Namespace { links, ..Namespace::default() };
    if names.is_empty() {
        return Ok((found, indexes));
    }
    for message in netlink.dump(|| RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && let Some(name) = names.get(&message.header.index)
            && let Some(address) = address(&message)
        {
            found.addresses.insert((*name, address));
        }
    }
    for message in netlink.dump(|| RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        if let RouteNetlinkMessage::NewRoute(message) = message
            && message.header.protocol == ROUTE_PROTOCOL
            && let Some((index, prefix)) = route(&message)
            && let Some(name) = names.get(&index)
        {
            found.routes.insert((*name, prefix));
        }
    }
    if let Place::Network(_) = place {
        neighbours(netlink, &names, &mut found)?;
    }
    Ok((found, indexes))
}

/// Reads the links of a namespace that are ours, with their indexes.
pub(crate) fn links(place: Place, netlink: &mut Netlink) -> io::Result<(BTreeMap<LinkName, Link>, Indexes)> {
    let (mut links, mut indexes) = (BTreeMap::new(), Indexes::new());
    for message in netlink.dump(all_links)? {
        let RouteNetlinkMessage::NewLink(message) = message else {
            continue;
        };
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => LinkName::parse(name),
            _ => None,
        });
        let Some(name) = name else {
            continue;
        };
        let link = link::read(name, &message);
        // Our own namespaces hold only what is ours; in a container's, the alias tells.
        let is_ours = match place {
            Place::Transport | Place::Network(_) => name != LinkName::Inner,
            Place::Container(container) => {
                let of = link.alias.as_deref().and_then(parse_alias);
                name == LinkName::Inner && of.is_some_and(|(_, of)| of == container)
            }
        };
        if is_ours {
            links.insert(name, link);
            indexes.insert(name, message.header.index);
        }
    }
    Ok((links, indexes))
}

/// Asks for links without what they counted, which is most of what there is to say.
fn all_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Returns the name and the MTU of the interface that has an address, if one has.
pub(crate) fn interface_of(address: IpAddr, netlink: &mut Netlink) -> io::Result<Option<(String, u32)>> {
    let mut owner = None;
    for message in netlink.dump(|| RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && self::address(&message).is_some_and(|found| found.addr() == address)
        {
            owner = Some(message.header.index);
        }
    }
    let Some(owner) = owner else {
        return Ok(None);
    };
    for message in netlink.dump(all_links)? {
        if let RouteNetlinkMessage::NewLink(message) = message
            && message.header.index == owner
        {
            let (mut name, mut mtu) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(found) => name = Some(found),
                    LinkAttribute::Mtu(found) => mtu = Some(found),
                    _ => {}
                }
            }
            return Ok(name.zip(mtu));
        }
    }
    Ok(None)
}

fn address(message: &AddressMessage) -> Option<IpNet> {
    let found = message.attributes.iter().find_map(|attribute| match attribute {
        // For IPv4 the link's own is `Local`; IPv6 has `Address` only.
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let found = found.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    IpNet::new(found?, message.header.prefix_len).ok()
}

fn route(message: &RouteMessage) -> Option<(u32, IpNet)> {
    let (mut index, mut to) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(IpAddr::from(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = Some(IpAddr::from(*address)),
            _ => {}
        }
    }
    let anywhere = if message.header.address_family == AddressFamily::Inet6 {
        IpAddr::from([0_u16; 8])
    } else {
        IpAddr::from([0_u8; 4])
    };
    let prefix = IpNet::new(to.unwrap_or(anywhere), message.header.destination_prefix_length).ok()?;
    Some((index?, prefix))
}

fn neighbours(netlink: &mut Netlink, names: &BTreeMap<u32, LinkName>, found: &mut Namespace) -> io::Result<()> {
    for message in netlink.dump(|| RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))? {
        if let RouteNetlinkMessage::NewNeighbour(message) = message
            && message.header.state == NeighbourState::Permanent
            && let Some(name) = names.get(&message.header.ifindex)
            && let (Some(to), Some(mac)) = (destination(&message), link_layer(&message))
        {
            found.neighbours.insert((*name, to), mac);
        }
    }
    let bridge = || {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        RouteNetlinkMessage::GetNeighbour(message)
    };
    for message in netlink.dump(bridge)? {
        if let RouteNetlinkMessage::NewNeighbour(message) = message
            && let Some(name) = names.get(&message.header.ifindex)
            && let Some(mac) = link_layer(&message)
        {
            if message.header.flags.contains(NeighbourFlags::Own) {
                if let (LinkName::Vxlan, Some(via)) = (*name, destination(&message)) {
                    found.vxlan_fdb.insert(mac, via);
                }
            } else if message.header.state == NeighbourState::Noarp {
                found.bridge_fdb.insert((*name, mac));
            }
        }
    }
    Ok(())
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::from(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        // The forwarding table of a bridge does not say of which family its addresses are.
        NeighbourAttribute::Destination(NeighbourAddress::Other(octets)) => match **octets {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
            _ => <[u8; 16]>::try_from(&**octets).ok().map(IpAddr::from),
        },
        _ => None,
    })
}

fn link_layer(message: &NeighbourMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => mac(octets),
        _ => None,
    })
}

fn mac(octets: &[u8]) -> Option<MacAddr> {
    octets.try_into().ok().map(MacAddr::new)
}
