//! Interfaces, addresses and routes of one network namespace, over netlink.

use core::net::{IpAddr, Ipv4Addr};
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope};
use netlink_packet_route::{AddressFamily, route::RouteType};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use pn_core::InterfaceName;

/// A netlink socket, which stays in the namespace it was opened in, and one interface there.
#[derive(Debug)]
pub(crate) struct Link {
    socket: Socket,
    index: u32,
    sequence: u32,
}

impl Link {
    /// Finds an interface in the namespace of the calling thread.
    pub(crate) fn open(name: InterfaceName) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut link = Self { socket, index: 0, sequence: 0 };
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.as_str().to_owned()));
        let found = link.request(RouteNetlinkMessage::GetLink(message), 0)?;
        let Some(RouteNetlinkMessage::NewLink(found)) = found else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}")));
        };
        link.index = found.header.index;
        Ok(link)
    }

    /// Sets the MTU, and how many packets the kernel may hand over as one.
    pub(crate) fn set_mtu(&mut self, mtu: u16, segments: u32) -> io::Result<()> {
        self.set(vec![LinkAttribute::Mtu(mtu.into()), LinkAttribute::GsoMaxSegs(segments)], false)
    }

    /// Has the interface make no IPv6 addresses by itself: what it has is planned.
    pub(crate) fn make_no_addresses(&mut self) -> io::Result<()> {
        let inet6 = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
        self.set(vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(inet6)])], false)
    }

    /// Sets the interface up.
    pub(crate) fn set_up(&mut self) -> io::Result<()> {
        self.set(Vec::new(), true)
    }

    fn set(&mut self, attributes: Vec<LinkAttribute>, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.attributes = attributes;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Adds an address, and with it the route to its prefix.
    pub(crate) fn add_address(&mut self, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = prefix_len;
        message.header.index = self.index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if address.is_ipv6() {
            // Nobody else has it, so it need not wait for who might.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewAddress(message), flags).map(drop)
    }

    /// Adds a route through the interface to one address that needs no gateway.
    pub(crate) fn add_route(&mut self, to: Ipv4Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Link;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(to)), RouteAttribute::Oif(self.index)];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewRoute(message), flags).map(drop)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        loop {
            let (reply, _) = self.socket.recv_from_full()?;
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply).map_err(invalid)?;
            if reply.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::InnerMessage(message) = reply.payload {
                return Ok(Some(message));
            }
            let NetlinkPayload::Error(answer) = reply.payload else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is none"));
            };
            return answer.code.map_or(Ok(None), |_| Err(answer.to_io()));
        }
    }
}
