//! The VXLAN tunnel end point of one node: from containers' packets to tunnel packets and back, with every check between.

use core::net::{IpAddr, Ipv4Addr};
use std::collections::HashMap;
use std::sync::Arc;

use pn_core::{ContainerId, Endpoint, NetworkId, NetworkPlan, NodeId, NodePlan, Vni};

use crate::drops::DropReason;
use crate::packet::{ETHERNET_LEN, EthernetFrame, IPV6_LEN, IpPacket, UDP_LEN, UdpPacket};
use crate::recent::Recent;
use crate::vxlan;

/// The most that is put in front of a container's packet.
pub const MAX_OVERHEAD: usize = IPV6_LEN + UDP_LEN + vxlan::HEADER_LEN + ETHERNET_LEN;

/// Where a container's packet goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Egress<'a> {
    /// To a container on this node.
    Local(ContainerId),
    /// To another node's tunnel address, in this packet.
    Tunnel(IpAddr, &'a [u8]),
    /// To the network's resolver.
    Resolver(IpPacket<'a>),
}

/// Where a container's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To a container on this node.
    Local(ContainerId),
    /// To the network's resolver.
    Resolver,
    /// To another node, wrapped.
    Tunnel(Wrap),
}

/// A packet for a container of this node.
#[derive(Debug, PartialEq, Eq)]
pub struct Ingress<'a> {
    /// The network it arrived in.
    pub network: NetworkId,
    /// The container it is for.
    pub container: ContainerId,
    /// The container's packet.
    pub packet: IpPacket<'a>,
}

/// The end point of a node, made from its plan: a pure function of plan and packet.
///
/// The tables are the plan's own, shared with it.
#[derive(Debug, Clone)]
pub struct Vtep {
    plan: NodePlan,
    by_vni: HashMap<Vni, Arc<NetworkPlan>>,
}

impl Vtep {
    /// Makes the end point that a plan describes.
    #[must_use]
    pub fn new(plan: NodePlan) -> Self {
        let by_vni = plan.networks.values().map(|network| (network.vni, Arc::clone(network))).collect();
        Self { plan, by_vni }
    }

    /// Returns the plan it was made from.
    #[must_use]
    pub const fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Takes a packet that a container of this node sent, checks it and says where it goes; `buffer` is where it is wrapped.
    ///
    /// # Errors
    /// Those of [`route`](Self::route).
    pub fn egress<'a>(
        &self,
        network: NetworkId,
        container: ContainerId,
        packet: &'a [u8],
        buffer: &'a mut Vec<u8>,
    ) -> Result<Egress<'a>, DropReason> {
        let packet = IpPacket::parse(packet).ok_or(DropReason::NotIp)?;
        match self.route(network, container, &packet, packet.octets().len())? {
            Route::Local(container) => Ok(Egress::Local(container)),
            Route::Resolver => Ok(Egress::Resolver(packet)),
            Route::Tunnel(wrap) => {
                buffer.clear();
                buffer.resize(wrap.len(), 0);
                buffer.extend_from_slice(packet.octets());
                wrap.write(buffer, wrap.len());
                Ok(Egress::Tunnel(wrap.via(), buffer))
            }
        }
    }

    /// Checks a packet that a container of this node sent and says where it goes. Of a large packet that is going to be cut
    /// `largest` is how long the longest piece will be, otherwise the packet's own length.
    ///
    /// # Errors
    /// [`DropReason::NotIp`], [`DropReason::ForgedSource`], [`DropReason::TooBig`], [`DropReason::UnknownDestination`], [`DropReason::NoRoute`].
    pub fn route(
        &self,
        network: NetworkId,
        container: ContainerId,
        packet: &IpPacket<'_>,
        largest: usize,
    ) -> Result<Route, DropReason> {
        let network = self.plan.networks.get(&network).ok_or(DropReason::UnknownVni)?;
        if !carries(network, packet) {
            return Err(DropReason::NotIp);
        }
        let from = network.endpoint_at(packet.source()).ok_or(DropReason::ForgedSource)?;
        if from.container != container || from.node != self.plan.node {
            return Err(DropReason::ForgedSource);
        }
        if largest > usize::from(network.mtu) {
            return Err(DropReason::TooBig);
        }
        if packet.destination() == network.resolver {
            return Ok(Route::Resolver);
        }
        let to = network.endpoint_at(packet.destination()).ok_or(DropReason::UnknownDestination)?;
        if to.node == self.plan.node {
            return Ok(Route::Local(to.container));
        }
        let via = self.plan.peers.get(&to.node).ok_or(DropReason::NoRoute)?.tunnel_address;
        let host = self.plan.host.as_ref().ok_or(DropReason::NoRoute)?.tunnel_address;
        if host.is_ipv4() != via.is_ipv4() {
            return Err(DropReason::NoRoute);
        }
        let port = entropy(from.address, to.address, packet.protocol());
        Ok(Route::Tunnel(Wrap::new(network, (from, to), packet.ethertype(), (host, port), via)))
    }

    /// Does what [`route`](Self::route) does, and remembers what was found: a packet that claims what one of the last claimed, and
    /// is no longer, is not looked up again. What is remembered holds for this value alone, and not for one of a later plan.
    ///
    /// # Errors
    /// Those of [`route`](Self::route).
    pub fn route_after(
        &self,
        network: NetworkId,
        container: ContainerId,
        packet: &IpPacket<'_>,
        largest: usize,
        before: &mut Routed,
    ) -> Result<Route, DropReason> {
        let addresses = (packet.source(), packet.destination());
        let claim = (network, container, packet.protocol(), addresses);
        let number = number(network.as_u128() as u64 ^ u64::from(packet.protocol()), addresses);
        if let Some((route, checked)) = before.0.get(number, &claim)
            && largest <= *checked
        {
            return Ok(*route);
        }
        let route = self.route(network, container, packet, largest)?;
        before.0.insert(number, claim, (route, largest));
        Ok(route)
    }

    /// Takes a packet that a peer sent through the tunnel, checks all that it claims and says whom it is for.
    ///
    /// # Errors
    /// The first claim that does not hold.
    pub fn ingress<'a>(&self, from: NodeId, packet: &UdpPacket<'a>) -> Result<Ingress<'a>, DropReason> {
        self.admit(from, packet)?.admit(inner(packet))
    }

    /// Does what [`ingress`](Self::ingress) does, and remembers what was found: a packet that claims what one of the last
    /// claimed is not looked up again. What is remembered holds for this value alone, and not for one of a later plan.
    ///
    /// # Errors
    /// The first claim that does not hold.
    pub fn ingress_after<'a>(
        &self,
        from: NodeId,
        packet: &UdpPacket<'a>,
        before: &mut Admitted,
    ) -> Result<Ingress<'a>, DropReason> {
        let inner = inner(packet);
        let Some((claims, number)) = inner.as_ref().and_then(|inner| Claims::of(from, packet, inner)) else {
            return self.admit(from, packet)?.admit(inner);
        };
        let admission = match before.0.get(number, &claims) {
            Some(admission) => *admission,
            None => {
                let admission = self.admit(from, packet)?;
                before.0.insert(number, claims, admission);
                admission
            }
        };
        admission.admit(inner)
    }

    /// Checks all claims but for lengths.
    fn admit(&self, from: NodeId, packet: &UdpPacket<'_>) -> Result<Admission, DropReason> {
        if self.plan.host.as_ref().is_none_or(|host| host.tunnel_address != packet.destination) {
            return Err(DropReason::TunnelDestination);
        }
        if packet.udp.destination != vxlan::PORT {
            return Err(DropReason::NotVxlan);
        }
        let (vni, frame) = vxlan::decode(packet.udp.payload).ok_or(DropReason::NotVxlan)?;
        let network = self.by_vni.get(&vni).ok_or(DropReason::UnknownVni)?;
        if !network.is_member(from) {
            return Err(DropReason::NotMember);
        }
        let frame = EthernetFrame::parse(frame).ok_or(DropReason::NotVxlan)?;
        let packet = IpPacket::parse(frame.payload).ok_or(DropReason::NotIp)?;
        if frame.ethertype != packet.ethertype() || !carries(network, &packet) {
            return Err(DropReason::NotIp);
        }
        let source = network.endpoint_at(packet.source());
        if source.is_none_or(|source| source.node != from || source.mac() != frame.source) {
            return Err(DropReason::ForgedSource);
        }
        let to = network.endpoint_at(packet.destination());
        let to = to.filter(|to| to.node == self.plan.node && to.mac() == frame.destination);
        let to = to.ok_or(DropReason::UnknownDestination)?;
        Ok(Admission { network: network.id, container: to.container, mtu: network.mtu })
    }
}

/// Returns whether a network has addresses of a packet's version.
const fn carries(network: &NetworkPlan, packet: &IpPacket<'_>) -> bool {
    matches!(packet, IpPacket::V4(_)) || network.ipv6.is_some()
}

/// Returns the packet that one of the tunnel carries, where there is one.
fn inner<'a>(packet: &UdpPacket<'a>) -> Option<IpPacket<'a>> {
    packet.udp.payload.get(vxlan::HEADER_LEN + ETHERNET_LEN..).and_then(IpPacket::parse)
}

/// Where the last packets went: what they claimed, what that came to, and how long one was allowed to be.
#[derive(Debug, Clone, Default)]
pub struct Routed(Recent<Claim, (Route, usize)>);

/// All that a packet's route depends on, but for its length: who sends it, its protocol, source and destination.
type Claim = (NetworkId, ContainerId, u8, (IpAddr, IpAddr));

/// The last packets that were admitted: what they claimed, and what that came to.
#[derive(Debug, Clone, Default)]
pub struct Admitted(Recent<Claims, Admission>);

/// All that a packet's admission depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claims {
    from: NodeId,
    destination: IpAddr,
    port: u16,
    /// VXLAN and Ethernet.
    headers: [u8; vxlan::HEADER_LEN + ETHERNET_LEN],
    /// Source and destination inside.
    addresses: (IpAddr, IpAddr),
}

#[derive(Debug, Clone, Copy)]
struct Admission {
    network: NetworkId,
    container: ContainerId,
    mtu: u16,
}

impl Claims {
    /// Returns what a packet claims, and a number that it is remembered by.
    fn of(from: NodeId, packet: &UdpPacket<'_>, inner: &IpPacket<'_>) -> Option<(Self, u64)> {
        let (headers, vxlan) = (*packet.udp.payload.first_chunk()?, *packet.udp.payload.first_chunk()?);
        let addresses = (inner.source(), inner.destination());
        let number = number(u64::from_be_bytes(vxlan), addresses);
        Some((Self { from, destination: packet.destination, port: packet.udp.destination, headers, addresses }, number))
    }
}

impl Admission {
    /// Admits the packet that it was given for, or another that claims the same.
    fn admit(self, packet: Option<IpPacket<'_>>) -> Result<Ingress<'_>, DropReason> {
        let packet = packet.ok_or(DropReason::NotIp)?;
        if packet.octets().len() > usize::from(self.mtu) {
            return Err(DropReason::TooBig);
        }
        Ok(Ingress { network: self.network, container: self.container, packet })
    }
}

/// Returns a number for a pair of addresses, by which packets are remembered: one that says who sends to whom, and is another for
/// whoever has the next address. What else they differ in moves it.
fn number(other: u64, (source, destination): (IpAddr, IpAddr)) -> u64 {
    // An IPv6 address ends as the container's IPv4 address.
    let low = |address| match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() as u64,
    };
    let moved = other.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    low(destination).wrapping_add(low(source).wrapping_mul(9)).wrapping_add(moved)
}

/// What is put in front of a container's packet: IP and UDP between the nodes' tunnel addresses, VXLAN, Ethernet.
///
/// It is the same for all packets of a pair of containers but for lengths, so it is made once for many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrap {
    via: IpAddr,
    headers: [u8; MAX_OVERHEAD],
    len: usize,
}

impl Wrap {
    fn new(
        network: &NetworkPlan,
        (from, to): (&Endpoint, &Endpoint),
        ethertype: u16,
        host: (IpAddr, u16),
        via: IpAddr,
    ) -> Self {
        let mut headers = [0; MAX_OVERHEAD];
        let mut len = UdpPacket::write_headers(&mut headers, host, (via, vxlan::PORT), 0);
        for header in [&vxlan::header(network.vni)[..], &EthernetFrame::header(to.mac(), from.mac(), ethertype)] {
            headers[len..len + header.len()].copy_from_slice(header);
            len += header.len();
        }
        Self { via, headers, len }
    }

    /// Returns the tunnel address of the node the packets go to.
    #[must_use]
    pub const fn via(&self) -> IpAddr {
        self.via
    }

    /// Returns how many octets are put in front of a packet.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is always something")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Wraps the packet that begins at `at` and goes to the end of the buffer, in place, and returns where the whole begins.
    ///
    /// # Panics
    /// Where `at` leaves less room than [`len`](Self::len) or the packet is longer than 65 000 octets: the caller has bounded
    /// it by the network's MTU.
    pub fn write(&self, buffer: &mut [u8], at: usize) -> usize {
        let start = at - self.len;
        let total = buffer.len() - start;
        buffer[start..at].copy_from_slice(&self.headers[..self.len]);
        UdpPacket::set_len(&mut buffer[start..at], total);
        start
    }
}

/// Returns a source port that is the same for all packets of a pair of containers and a protocol, from the dynamic range, as
/// RFC 7348 §5 recommends so that paths can be balanced. The tunnel hides it; it costs nothing.
fn entropy(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> u16 {
    let mixed = source.to_bits().rotate_left(16) ^ destination.to_bits() ^ u32::from(protocol);
    let mixed = mixed.wrapping_mul(0x9e37_79b1) >> 18;
    0xc000 | (mixed as u16 & 0x3fff)
}

#[cfg(test)]
mod tests;
