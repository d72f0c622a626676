//! What arrives: tunnel packets with a right start and anything behind it, and datagrams of any kind.
//!
//! Only a packet that makes every claim right is delivered, and it is delivered as it is.

#![no_main]

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use pn_core::*;
use pn_overlay::packet::{EthernetFrame, Ipv4Packet, UdpDatagram, UdpPacket};
use pn_overlay::{Outbox, PeerConfig, PrivateKey, Tunnel, Vtep, vxlan};

struct Node1 {
    vtep: Vtep,
    tunnel: Tunnel,
    out: Outbox,
}

thread_local! {
    static NODE: RefCell<Node1> = RefCell::new(node_1());
}

/// Node 1 with a container at 10.240.0.1; node 2 has one at 10.240.0.2.
fn node_1() -> Node1 {
    let mut state = State::new(Region::default());
    let mut apply = |change| state.apply(Timestamp::ZERO, change).map(drop).expect("the changes hold");
    let keys = [1, 2].map(|n| PrivateKey::from_bytes([n; 32]));
    let label = || "x".parse().expect("a label");
    for n in [1, 2u8] {
        apply(Change::AddNode(Node::new(NodeId::from_u128(n.into()), label(), SocketAddr::from(([192, 0, 2, n], 51820)), Ipv4Addr::new(100, 64, 0, n).into(), keys[usize::from(n) - 1].public_key())));
    }
    let (project, network, app) = (ProjectId::from_u128(1), NetworkId::from_u128(1), AppId::from_u128(1));
    let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
    apply(Change::AddProject(Project::new(project, label())));
    apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)));
    apply(Change::AddApp(App::new(app, project, label())));
    apply(Change::Scale { app, formation: "web:2".parse().expect("a formation") });
    for n in [1, 2] {
        let slot = Slot::new(app, ContainerType::web(), n).expect("indexes from 1");
        let (container, node) = (ContainerId::from_u128(n.into()), NodeId::from_u128(n.into()));
        apply(Change::Start { container, slot, node });
    }
    let mut tunnel = Tunnel::new(keys[0].clone());
    tunnel.set_peer(PeerConfig {
        node: NodeId::from_u128(2),
        public_key: keys[1].public_key(),
        underlay: SocketAddr::from(([192, 0, 2, 2], 51820)),
        tunnel_address: Ipv4Addr::new(100, 64, 0, 2).into(),
    });
    Node1 { vtep: Vtep::new(state.node_plan(NodeId::from_u128(1))), tunnel, out: Outbox::new() }
}

fuzz_target!(|octets: &[u8]| {
    if let Some((vni, frame)) = vxlan::decode(octets) {
        assert_eq!(&vxlan::header(vni)[4..7], &octets[4..7]);
        assert_eq!(frame.len() + vxlan::HEADER_LEN, octets.len());
    }
    let _ = (EthernetFrame::parse(octets), Ipv4Packet::parse(octets), UdpPacket::parse(octets));
    NODE.with_borrow_mut(|node| {
        let (from, host): (IpAddr, IpAddr) = (Ipv4Addr::new(100, 64, 0, 2).into(), Ipv4Addr::new(100, 64, 0, 1).into());
        let udp = UdpDatagram { source: 50_000, destination: vxlan::PORT, payload: octets };
        let packet = UdpPacket { source: from, destination: host, udp };
        if let Ok(ingress) = node.vtep.ingress(NodeId::from_u128(2), &packet) {
            assert_eq!(ingress.container, ContainerId::from_u128(1));
            assert_eq!(ingress.packet.source(), Ipv4Addr::new(10, 240, 0, 2));
            assert_eq!(ingress.packet.destination(), Ipv4Addr::new(10, 240, 0, 1));
            assert!(ingress.packet.octets().len() <= 1390);
        }
        let (network, container) = (NetworkId::from_u128(1), ContainerId::from_u128(1));
        let _ = node.vtep.egress(network, container, octets, &mut Vec::new());
        let opened = node.tunnel.open(SocketAddr::from(([192, 0, 2, 2], 51820)), octets, &mut node.out);
        assert!(!matches!(opened, Ok(Some(_))), "nobody without the key makes a packet");
        node.out.clear();
    });
});
