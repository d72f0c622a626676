//! Every check on what leaves and what arrives, with plans made by the model.

use core::net::Ipv4Addr;

use pn_core::{
    App, AppId, Change, ContainerType, MacAddr, NetworkRequest, Node, Project, ProjectId, PublicKey, Region, Slot,
    State, Terms, Timestamp,
};
use proptest::prelude::*;

use super::*;

/// Two networks with the same addresses. Network 1: containers 1 and 2 on node 1, 3 on node 2. Network 2: container 4 on
/// node 1, 5 on node 3, so that nodes 2 and 3 are each a member of one network only.
fn state() -> State {
    let mut state = State::new(Region::default());
    let mut apply = |change| assert!(state.apply(Timestamp::ZERO, change).is_ok());
    let label = || "x".parse().unwrap();
    for n in 1..=3u8 {
        apply(Change::AddNode(Node::new(
            node(n.into()),
            label(),
            format!("192.0.2.{n}:51820").parse().unwrap(),
            tunnel_address(n),
            PublicKey::new([n; 32]),
        )));
    }
    for n in [1, 2] {
        let (project, app) = (ProjectId::from_u128(n), AppId::from_u128(n));
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        apply(Change::AddProject(Project::new(project, label())));
        apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, network(n), terms)));
        apply(Change::AddApp(App::new(app, project, label())));
        apply(Change::Scale { app, formation: "web:9".parse().unwrap() });
    }
    for (id, app, index, on) in [(1, 1, 1, 1), (2, 1, 2, 1), (3, 1, 3, 2), (4, 2, 1, 1), (5, 2, 2, 3)] {
        let slot = Slot::new(AppId::from_u128(app), ContainerType::web(), index).unwrap();
        apply(Change::Start { container: container(id), slot, node: node(on) });
    }
    state
}

fn node(n: u128) -> NodeId {
    NodeId::from_u128(n)
}

fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

fn container(n: u128) -> ContainerId {
    ContainerId::from_u128(n)
}

fn tunnel_address(n: u8) -> IpAddr {
    Ipv4Addr::new(100, 64, 0, n).into()
}

fn host(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 240, 0, n)
}

const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);

/// A container's UDP packet.
fn packet(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> Vec<u8> {
    let mut packet = vec![0; 28 + len];
    UdpPacket::write_headers(&mut packet, (from.into(), 1000), (to.into(), 53), len);
    packet
}

#[test]
fn what_leaves_is_checked_and_routed() {
    let vtep = Vtep::new(state().node_plan(node(1)));
    let egress = |n, from, packet: &[u8]| {
        let mut buffer = Vec::new();
        vtep.egress(network(n), container(from), packet, &mut buffer).map(|egress| match egress {
            Egress::Local(to) => format!("local {to}"),
            Egress::Tunnel(via, packet) => format!("tunnel {via} {}", packet.len()),
            Egress::Resolver(packet) => format!("resolver {}", packet.source()),
        })
    };
    assert_eq!(egress(1, 1, &packet(host(1), host(2), 10)), Ok(format!("local {}", container(2))));
    assert_eq!(egress(1, 1, &packet(host(1), host(3), 10)), Ok("tunnel 100.64.0.2 88".to_owned()));
    assert_eq!(egress(1, 1, &packet(host(1), RESOLVER, 10)), Ok("resolver 10.240.0.1".to_owned()));
    assert_eq!(
        egress(2, 4, &packet(host(1), host(2), 10)),
        Ok("tunnel 100.64.0.3 88".to_owned()),
        "the same addresses"
    );
    assert_eq!(egress(1, 1, &packet(host(1), host(3), 1362)), Ok("tunnel 100.64.0.2 1440".to_owned()), "full size");

    let mut ipv6 = packet(host(1), host(2), 20);
    ipv6[0] = 0x65;
    for (n, from, packet, reason) in [
        (1, 1, packet(host(2), host(3), 10), DropReason::ForgedSource),
        (1, 1, packet(host(3), host(2), 10), DropReason::ForgedSource),
        (1, 1, packet(host(9), host(2), 10), DropReason::ForgedSource),
        (1, 1, packet(RESOLVER, host(2), 10), DropReason::ForgedSource),
        (2, 1, packet(host(1), host(2), 10), DropReason::ForgedSource),
        (1, 1, packet(host(1), host(9), 10), DropReason::UnknownDestination),
        (1, 1, packet(host(1), Ipv4Addr::new(10, 240, 3, 255), 10), DropReason::UnknownDestination),
        (1, 1, packet(host(1), Ipv4Addr::new(10, 240, 0, 0), 10), DropReason::UnknownDestination),
        (1, 1, packet(host(1), Ipv4Addr::BROADCAST, 10), DropReason::UnknownDestination),
        (1, 1, packet(host(1), Ipv4Addr::new(224, 0, 0, 1), 10), DropReason::UnknownDestination),
        (1, 1, packet(host(1), Ipv4Addr::new(192, 0, 2, 1), 10), DropReason::UnknownDestination),
        (1, 1, packet(host(1), Ipv4Addr::new(100, 64, 0, 2), 10), DropReason::UnknownDestination),
        (1, 1, packet(host(1), host(3), 1363), DropReason::TooBig),
        (1, 1, ipv6, DropReason::NotIp),
        (1, 1, vec![], DropReason::NotIp),
        (3, 1, packet(host(1), host(2), 10), DropReason::UnknownVni),
    ] {
        assert_eq!(egress(n, from, &packet), Err(reason), "{packet:?}");
    }
}

/// A change to a tunnel packet.
type Edit = Box<dyn FnOnce(&mut Vec<u8>)>;

/// The tunnel packet that node 2 sends for container 3, with what it says changed by `edit`.
fn from_node_2(edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let vtep = Vtep::new(state().node_plan(node(2)));
    let (mut buffer, packet) = (Vec::new(), packet(host(3), host(1), 10));
    let egress = vtep.egress(network(1), container(3), &packet, &mut buffer);
    assert!(matches!(egress, Ok(Egress::Tunnel(via, _)) if via == tunnel_address(1)));
    edit(&mut buffer);
    buffer
}

#[test]
fn every_claim_of_what_arrives_is_checked() {
    let vtep = Vtep::new(state().node_plan(node(1)));
    let ingress = |from: u128, packet: &[u8]| {
        let udp = UdpPacket::parse(packet).expect("the tunnel checked that");
        vtep.ingress(node(from), &udp)
            .map(|ingress| (ingress.network, ingress.container, ingress.packet.octets().to_vec()))
    };
    let good = from_node_2(|_| ());
    assert_eq!(ingress(2, &good), Ok((network(1), container(1), packet(host(3), host(1), 10))));
    // Behind the outer headers (28) and VXLAN's (8) stands the frame: destination, source, type, packet.
    let (vxlan, frame, inner) = (28, 36, 50);
    let other_network = state().plan().networks[&network(2)].vni.get().to_be_bytes();
    let edits: [(&str, u128, Edit, DropReason); 15] = [
        ("for another node", 2, Box::new(|p| p[19] = 9), DropReason::TunnelDestination),
        ("to another port", 2, Box::new(|p| p[23] = 0), DropReason::NotVxlan),
        ("without a VNI", 2, Box::new(move |p| p[vxlan] = 0), DropReason::NotVxlan),
        ("of a network that is not here", 2, Box::new(move |p| p[vxlan + 4] = 9), DropReason::UnknownVni),
        (
            "of a network its node is no member of",
            2,
            Box::new(move |p| p[vxlan + 4..vxlan + 7].copy_from_slice(&other_network[1..])),
            DropReason::NotMember,
        ),
        ("from a node that is no member", 3, Box::new(|_| ()), DropReason::NotMember),
        ("ARP", 2, Box::new(move |p| p[frame + 13] = 6), DropReason::NotIp),
        ("IPv6 in disguise", 2, Box::new(move |p| p[inner] = 0x65), DropReason::NotIp),
        ("a longer packet than the frame", 2, Box::new(move |p| p[inner + 3] = 200), DropReason::NotIp),
        ("a forged source MAC", 2, Box::new(move |p| p[frame + 11] = 9), DropReason::ForgedSource),
        ("the address of a container on this node", 2, Box::new(move |p| p[inner + 15] = 2), DropReason::ForgedSource),
        ("an address nobody has", 2, Box::new(move |p| p[inner + 15] = 77), DropReason::ForgedSource),
        ("to another MAC", 2, Box::new(move |p| p[frame + 5] = 9), DropReason::UnknownDestination),
        ("broadcast", 2, Box::new(move |p| p[frame..frame + 6].fill(0xff)), DropReason::UnknownDestination),
        ("to an address nobody has", 2, Box::new(move |p| p[inner + 19] = 77), DropReason::UnknownDestination),
    ];
    for (what, from, edit, reason) in edits {
        assert_eq!(ingress(from, &from_node_2(edit)), Err(reason), "{what}");
    }
}

#[test]
fn a_packet_above_the_mtu_does_not_arrive_either() {
    let vtep = Vtep::new(state().node_plan(node(1)));
    let inner = packet(host(3), host(1), 1363);
    let frame = EthernetFrame::header(MacAddr::of_ipv4(host(1)), MacAddr::of_ipv4(host(3)), ETHERTYPE_IPV4);
    let payload = [&vxlan::header(state().network(network(1)).unwrap().vni)[..], &frame, &inner].concat();
    let udp = crate::packet::UdpDatagram { source: 1, destination: vxlan::PORT, payload: &payload };
    let packet = UdpPacket { source: tunnel_address(2), destination: tunnel_address(1), udp };
    assert_eq!(vtep.ingress(node(2), &packet), Err(DropReason::TooBig));
}

#[test]
fn the_empty_plan_passes_nothing() {
    let vtep = Vtep::new(NodePlan::empty(node(1), pn_core::Generation::ZERO));
    let good = from_node_2(|_| ());
    let udp = UdpPacket::parse(&good).unwrap();
    assert_eq!(vtep.ingress(node(2), &udp), Err(DropReason::TunnelDestination));
    let (packet, mut buffer) = (packet(host(1), host(2), 1), Vec::new());
    let egress = vtep.egress(network(1), container(1), &packet, &mut buffer);
    assert_eq!(egress, Err(DropReason::UnknownVni));
}

proptest! {
    /// What any container may send arrives unchanged at the container that has the address, and at no other.
    #[test]
    fn egress_then_ingress_gives_the_packet_back(from in 1u128..=5, to in 1u8..=4, len in 0usize..1500) {
        let state = state();
        let sender = state.container(container(from)).unwrap();
        let n = state.network_of_container(container(from)).unwrap();
        let octets = packet(sender.address, host(to), len);
        let mut buffer = Vec::new();
        let vtep = Vtep::new(state.node_plan(sender.node));
        let target = state.containers(n).find(|container| container.address == host(to));
        match vtep.egress(n, container(from), &octets, &mut buffer) {
            Err(DropReason::TooBig) => prop_assert!(octets.len() > 1390),
            Err(reason) => prop_assert!(reason == DropReason::UnknownDestination && target.is_none()),
            Ok(Egress::Local(id)) => {
                prop_assert_eq!(target.map(|to| (to.id, to.node)), Some((id, sender.node)));
            }
            Ok(Egress::Tunnel(_, tunnel_packet)) => {
                let target = target.unwrap();
                prop_assert_eq!(tunnel_packet.len(), octets.len() + 50);
                let udp = UdpPacket::parse(tunnel_packet).unwrap();
                let there = Vtep::new(state.node_plan(target.node));
                let expected = Ingress { network: n, container: target.id, packet: Ipv4Packet::parse(&octets).unwrap() };
                prop_assert_eq!(there.ingress(sender.node, &udp), Ok(expected));
            }
            Ok(Egress::Resolver(_)) => prop_assert!(false, "no container is the resolver"),
        }
    }

    #[test]
    fn ingress_is_total(from in 1u128..=4, at in 0usize..88, octets: Vec<u8>) {
        let vtep = Vtep::new(state().node_plan(node(1)));
        let packet = from_node_2(|packet| {
            let end = packet.len().min(at + octets.len());
            packet[at..end].copy_from_slice(&octets[..end - at]);
        });
        if let Some(udp) = UdpPacket::parse(&packet) && let Ok(ingress) = vtep.ingress(node(from), &udp) {
            prop_assert_eq!((from, ingress.container), (2, container(1)));
        }
    }
}
