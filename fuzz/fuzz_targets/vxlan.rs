//! What arrives: tunnel packets with a right start and anything behind it, datagrams of any kind, and anything that a peer
//! with its right key seals.
//!
//! Only a packet that makes every claim right is delivered, and it is delivered as it is.

#![no_main]

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use pn_core::*;
use pn_overlay::packet::{EthernetFrame, IpPacket, UdpDatagram, UdpPacket};
use pn_overlay::{DropReason, Egress, Outbox, PeerConfig, PrivateKey, Tunnel, Vtep, vxlan};

struct Node1 {
    vtep: Vtep,
    tunnel: Tunnel,
    out: Outbox,
    /// Node 2's end, which is in session with this one.
    peer: Tunnel,
}

thread_local! {
    static NODE: RefCell<Node1> = RefCell::new(node_1());
}

/// What one datagram of the underlay surely holds.
const MAX_PAYLOAD: usize = 60_000;

fn underlay(node: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node], 51820))
}

fn tunnel_address(node: u8) -> IpAddr {
    Ipv4Addr::new(100, 64, 0, node).into()
}

/// Node 1 with a container at 10.240.0.1; node 2 has one at 10.240.0.2. Their network has IPv6, too.
fn node_1() -> Node1 {
    let mut state = State::new(Region::default());
    let mut apply = |change| state.apply(Timestamp::ZERO, change).map(drop).expect("the changes hold");
    let keys = [1, 2].map(|n| PrivateKey::from_bytes([n; 32]));
    let label = || "x".parse().expect("a label");
    for n in [1, 2u8] {
        let key = keys[usize::from(n) - 1].public_key();
        apply(Change::AddNode(Node::new(NodeId::from_u128(n.into()), label(), underlay(n), tunnel_address(n), key)));
    }
    let (project, network, app) = (ProjectId::from_u128(1), NetworkId::from_u128(1), AppId::from_u128(1));
    let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
    apply(Change::AddProject(Project::new(project, label())));
    let mut request = NetworkRequest::new(project, network, terms);
    request.families = Families::DualStack;
    apply(Change::EnablePrivateNetwork(request));
    apply(Change::AddApp(App::new(app, project, label())));
    apply(Change::Scale { app, formation: "web:2".parse().expect("a formation") });
    for n in [1, 2] {
        let slot = Slot::new(app, ContainerType::web(), n).expect("indexes from 1");
        let (container, node) = (ContainerId::from_u128(n.into()), NodeId::from_u128(n.into()));
        apply(Change::Start { container, slot, node });
    }
    let config = |n: u8| PeerConfig {
        node: NodeId::from_u128(n.into()),
        public_key: keys[usize::from(n) - 1].public_key(),
        underlay: underlay(n),
        tunnel_address: tunnel_address(n),
    };
    let (mut tunnel, mut peer) = (Tunnel::new(keys[0].clone()), Tunnel::new(keys[1].clone()));
    tunnel.set_peer(config(2));
    peer.set_peer(config(1));
    shake_hands(&mut peer, &mut tunnel);
    Node1 { vtep: Vtep::new(state.node_plan(NodeId::from_u128(1))), tunnel, out: Outbox::new(), peer }
}

/// Has node 2 begin a session with node 1.
fn shake_hands(peer: &mut Tunnel, tunnel: &mut Tunnel) {
    let (mut there, mut back) = (Outbox::new(), Outbox::new());
    let mut first = [0; 28];
    UdpPacket::write_headers(&mut first, (tunnel_address(2), 1), (tunnel_address(1), vxlan::PORT), 0);
    peer.seal(tunnel_address(1), &first, &mut there).expect("a way to node 1");
    while !there.is_empty() {
        for (_, datagram) in there.iter() {
            tunnel.open(underlay(2), datagram, &mut back).expect("a message of the peer's");
        }
        there.clear();
        for (_, datagram) in back.iter() {
            peer.open(underlay(1), datagram, &mut there).expect("a message of the node's");
        }
        back.clear();
    }
}

impl Node1 {
    /// Has the peer seal a packet, opens it, and returns whether it is one that tunnels carry; what comes out is checked.
    fn receive_sealed(&mut self, packet: &[u8]) -> bool {
        let mut sealed = Outbox::new();
        self.peer.seal(tunnel_address(1), packet, &mut sealed).expect("a way to node 1");
        let (_, datagram) = sealed.iter().next().expect("a session");
        assert_eq!(datagram[0], 4, "the session lives on");
        match self.tunnel.open(underlay(2), datagram, &mut self.out) {
            Ok(None) => packet.is_empty(),
            Ok(Some((node, opened))) => {
                assert_eq!((node, opened.source), (NodeId::from_u128(2), tunnel_address(2)));
                check_ingress(&self.vtep, &opened);
                true
            }
            Err(reason) => {
                let of_packets = [DropReason::Decrypt, DropReason::NotVxlan, DropReason::TunnelSource];
                assert!(of_packets.contains(&reason), "{reason:?}");
                false
            }
        }
    }
}

/// Checks that what is delivered makes every claim right.
fn check_ingress(vtep: &Vtep, packet: &UdpPacket<'_>) {
    if let Ok(ingress) = vtep.ingress(NodeId::from_u128(2), packet) {
        assert_eq!(ingress.container, ContainerId::from_u128(1));
        check_addresses(&ingress.packet, 2, 1);
        assert!(ingress.packet.octets().len() <= 1390);
    }
}

/// Checks whom a packet is from and for, and that it is none of neighbour discovery.
fn check_addresses(packet: &IpPacket<'_>, from: u8, to: u8) {
    let address = |n: u8| {
        let v4 = Ipv4Addr::new(10, 240, 0, n);
        let v6 = Ipv6Prefix::of_network(NetworkId::from_u128(1)).address(v4);
        if matches!(packet, IpPacket::V4(_)) { IpAddr::from(v4) } else { v6.into() }
    };
    assert_eq!((packet.source(), packet.destination()), (address(from), address(to)));
    let is_discovery = |kind: &u8| (133..=137).contains(kind);
    let is_icmpv6 = matches!(packet, IpPacket::V6(_)) && packet.protocol() == 58 && packet.fragment().is_none();
    assert!(!is_icmpv6 || !packet.payload().first().is_some_and(is_discovery));
}

fuzz_target!(|octets: &[u8]| {
    if let Some((vni, frame)) = vxlan::decode(octets) {
        assert_eq!(&vxlan::header(vni)[4..7], &octets[4..7]);
        assert_eq!(frame.len() + vxlan::HEADER_LEN, octets.len());
    }
    let _ = (EthernetFrame::parse(octets), EthernetFrame::header_of(octets), UdpPacket::parse(octets));
    NODE.with_borrow_mut(|node| {
        let udp = UdpDatagram { source: 50_000, destination: vxlan::PORT, payload: octets };
        check_ingress(&node.vtep, &UdpPacket { source: tunnel_address(2), destination: tunnel_address(1), udp });
        let (network, container) = (NetworkId::from_u128(1), ContainerId::from_u128(1));
        if let Ok(Egress::Tunnel(via, _)) = node.vtep.egress(network, container, octets, &mut Vec::new()) {
            assert_eq!(via, tunnel_address(2));
            check_addresses(&IpPacket::parse(octets).expect("it was sent on"), 1, 2);
        }
        let opened = node.tunnel.open(underlay(2), octets, &mut node.out);
        assert!(!matches!(opened, Ok(Some(_))), "nobody without the key makes a packet");
        if octets.len() <= MAX_PAYLOAD {
            node.receive_sealed(octets);
            let mut wrapped = vec![0; 28];
            let (from, to) = ((tunnel_address(2), 50_000), (tunnel_address(1), vxlan::PORT));
            UdpPacket::write_headers(&mut wrapped, from, to, octets.len());
            wrapped.extend(octets);
            assert!(node.receive_sealed(&wrapped), "a peer's packet arrives, whatever is in it");
        }
        node.out.clear();
    });
});
