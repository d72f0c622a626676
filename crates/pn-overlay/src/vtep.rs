//! The VXLAN tunnel end point of one node: from containers' packets to tunnel packets and back, with every check between.

use core::net::{IpAddr, Ipv4Addr};
use std::collections::HashMap;
use std::sync::Arc;

use pn_core::{ContainerId, Endpoint, NetworkId, NetworkPlan, NodeId, NodePlan, Vni};

use crate::drops::DropReason;
use crate::packet::{ETHERNET_LEN, ETHERTYPE_IPV4, EthernetFrame, IPV6_LEN, Ipv4Packet, UDP_LEN, UdpPacket};
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
    Resolver(Ipv4Packet<'a>),
}

/// A packet for a container of this node.
#[derive(Debug, PartialEq, Eq)]
pub struct Ingress<'a> {
    /// The network it arrived in.
    pub network: NetworkId,
    /// The container it is for.
    pub container: ContainerId,
    /// The container's packet.
    pub packet: Ipv4Packet<'a>,
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
    /// [`DropReason::NotIp`], [`DropReason::ForgedSource`], [`DropReason::TooBig`], [`DropReason::UnknownDestination`],
    /// [`DropReason::NoRoute`].
    pub fn egress<'a>(
        &self,
        network: NetworkId,
        container: ContainerId,
        packet: &'a [u8],
        buffer: &'a mut Vec<u8>,
    ) -> Result<Egress<'a>, DropReason> {
        let network = self.plan.networks.get(&network).ok_or(DropReason::UnknownVni)?;
        let packet = Ipv4Packet::parse(packet).ok_or(DropReason::NotIp)?;
        let from = network.endpoint(packet.source()).ok_or(DropReason::ForgedSource)?;
        if from.container != container || from.node != self.plan.node {
            return Err(DropReason::ForgedSource);
        }
        if packet.octets().len() > usize::from(network.mtu) {
            return Err(DropReason::TooBig);
        }
        if packet.destination() == network.resolver {
            return Ok(Egress::Resolver(packet));
        }
        let to = network.endpoint(packet.destination()).ok_or(DropReason::UnknownDestination)?;
        if to.node == self.plan.node {
            return Ok(Egress::Local(to.container));
        }
        let via = self.plan.peers.get(&to.node).ok_or(DropReason::NoRoute)?.tunnel_address;
        let host = self.plan.host.as_ref().ok_or(DropReason::NoRoute)?.tunnel_address;
        if host.is_ipv4() != via.is_ipv4() {
            return Err(DropReason::NoRoute);
        }
        encapsulate(network, from, to, (host, via), packet, buffer);
        Ok(Egress::Tunnel(via, buffer))
    }

    /// Takes a packet that a peer sent through the tunnel, checks all that it claims and says whom it is for.
    ///
    /// # Errors
    /// The first claim that does not hold.
    pub fn ingress<'a>(&self, from: NodeId, packet: &UdpPacket<'a>) -> Result<Ingress<'a>, DropReason> {
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
        if frame.ethertype != ETHERTYPE_IPV4 {
            return Err(DropReason::NotIp);
        }
        let packet = Ipv4Packet::parse(frame.payload).ok_or(DropReason::NotIp)?;
        let source = network.endpoint(packet.source());
        if source.is_none_or(|source| source.node != from || source.mac() != frame.source) {
            return Err(DropReason::ForgedSource);
        }
        let to = network.endpoint(packet.destination());
        let to = to.filter(|to| to.node == self.plan.node && to.mac() == frame.destination);
        let to = to.ok_or(DropReason::UnknownDestination)?;
        if packet.octets().len() > usize::from(network.mtu) {
            return Err(DropReason::TooBig);
        }
        Ok(Ingress { network: network.id, container: to.container, packet })
    }
}

/// Wraps a packet: IP and UDP between the nodes' tunnel addresses, VXLAN, Ethernet.
fn encapsulate(
    network: &NetworkPlan,
    from: &Endpoint,
    to: &Endpoint,
    (host, via): (IpAddr, IpAddr),
    packet: Ipv4Packet<'_>,
    buffer: &mut Vec<u8>,
) {
    let inner = vxlan::HEADER_LEN + ETHERNET_LEN + packet.octets().len();
    buffer.clear();
    buffer.resize(MAX_OVERHEAD, 0);
    let port = entropy(packet.source(), packet.destination(), packet.protocol());
    let len = UdpPacket::write_headers(buffer, (host, port), (via, vxlan::PORT), inner);
    buffer.truncate(len);
    buffer.extend_from_slice(&vxlan::header(network.vni));
    buffer.extend_from_slice(&EthernetFrame::header(to.mac(), from.mac(), ETHERTYPE_IPV4));
    buffer.extend_from_slice(packet.octets());
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
