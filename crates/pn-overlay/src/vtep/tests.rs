//! Every check on what leaves and what arrives, with plans made by the model.

use core::net::{Ipv4Addr, Ipv6Addr};

use pn_core::{
    App, AppId, Change, ContainerType, Families, Ipv6Prefix, MacAddr, NetworkRequest, Node, Project, ProjectId,
    PublicKey, Region, Slot, State, Terms, Timestamp,
};
use proptest::prelude::*;

use super::*;

/// Two networks with the same IPv4 addresses, and network 2 with IPv6. Network 1: containers 1 and 2 on node 1, 3 on node 2. Network 2: container 4 on
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
        let mut request = NetworkRequest::new(project, network(n), terms);
        request.families = if n == 2 { Families::DualStack } else { Families::Ipv4 };
        apply(Change::EnablePrivateNetwork(request));
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

/// The IPv6 address of network 2 that an IPv4 address has.
fn host6(n: u8) -> Ipv6Addr {
    Ipv6Prefix::of_network(network(2)).address(host(n))
}

const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);

/// A container's UDP packet.
fn packet<A: Into<IpAddr>>(from: A, to: A, len: usize) -> Vec<u8> {
    let (from, to) = (from.into(), to.into());
    let mut packet = vec![0; if from.is_ipv4() { 28 } else { 48 } + len];
    UdpPacket::write_headers(&mut packet, (from, 1000), (to, 53), len);
    packet
}

#[test]
fn what_leaves_is_checked_and_routed() {
    let vtep = Vtep::new(state().node_plan(node(1)));
    let mut before = Routed::default();
    let mut egress = |n, from, packet: &[u8]| {
        if let Some(packet) = IpPacket::parse(packet) {
            let (network, container, len) = (network(n), container(from), packet.octets().len());
            let found = vtep.route(network, container, &packet, len);
            for _ in 0..2 {
                let remembered = vtep.route_after(network, container, &packet, len, &mut before);
                assert_eq!(remembered, found, "what is remembered changes nothing");
            }
        }
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

    assert_eq!(egress(2, 4, &packet(host6(1), host6(2), 10)), Ok("tunnel 100.64.0.3 108".to_owned()));
    assert_eq!(egress(2, 4, &packet(host6(1), host6(1), 10)), Ok(format!("local {}", container(4))));
    assert_eq!(egress(2, 4, &packet(host6(1), host6(2), 1342)), Ok("tunnel 100.64.0.3 1440".to_owned()), "full size");

    let mut ipv6 = packet(host(1), host(2), 20);
    ipv6[0] = 0x65;
    let multicast = |n: u16| Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, n);
    let link_local = |n: u16| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xaf0, n);
    let mapped = |n: u8| host(n).to_ipv6_mapped();
    let mut solicitation = packet(host6(1), host6(2), 16);
    (solicitation[6], solicitation[7], solicitation[40]) = (58, 255, 135);
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
        (1, 1, packet(host6(1), host6(2), 10), DropReason::NotIp),
        (1, 1, packet(mapped(1), mapped(2), 10), DropReason::NotIp),
        (2, 4, packet(host6(2), host6(1), 10), DropReason::ForgedSource),
        (2, 4, packet(host6(9), host6(2), 10), DropReason::ForgedSource),
        (2, 4, packet(mapped(1), host6(2), 10), DropReason::ForgedSource),
        (2, 4, packet(link_local(1), link_local(2), 10), DropReason::ForgedSource),
        (2, 4, packet(Ipv6Addr::UNSPECIFIED, multicast(2), 10), DropReason::ForgedSource),
        (2, 4, packet(host6(1), host6(9), 10), DropReason::UnknownDestination),
        (2, 4, packet(host6(1), mapped(2), 10), DropReason::UnknownDestination),
        (2, 4, packet(host6(1), link_local(2), 10), DropReason::UnknownDestination),
        (2, 4, packet(host6(1), multicast(2), 10), DropReason::UnknownDestination),
        (2, 4, packet(host6(1), RESOLVER.to_ipv6_mapped(), 10), DropReason::UnknownDestination),
        (2, 4, packet(host6(1), host6(2), 1343), DropReason::TooBig),
        (2, 4, solicitation, DropReason::NotIp),
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

/// The tunnel packet that node 3 sends for container 5 by IPv6, with what it says changed by `edit`.
fn from_node_3(edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let vtep = Vtep::new(state().node_plan(node(3)));
    let (mut buffer, packet) = (Vec::new(), packet(host6(2), host6(1), 10));
    let egress = vtep.egress(network(2), container(5), &packet, &mut buffer);
    assert!(matches!(egress, Ok(Egress::Tunnel(via, _)) if via == tunnel_address(1)));
    edit(&mut buffer);
    buffer
}

/// A tunnel packet from node 2 in network 1 that holds any frame.
fn arriving(ethertype: u16, inner: &[u8]) -> Vec<u8> {
    let frame = EthernetFrame::header(MacAddr::of_ipv4(host(1)), MacAddr::of_ipv4(host(3)), ethertype);
    let payload = [&vxlan::header(state().network(network(1)).unwrap().vni)[..], &frame, inner].concat();
    let mut packet = vec![0; 28];
    UdpPacket::write_headers(&mut packet, (tunnel_address(2), 1), (tunnel_address(1), vxlan::PORT), payload.len());
    packet.extend(payload);
    packet
}

#[test]
fn every_claim_of_what_arrives_is_checked() {
    let vtep = Vtep::new(state().node_plan(node(1)));
    let mut before = Admitted::default();
    let mut ingress = |from: u128, packet: &[u8]| {
        let udp = UdpPacket::parse(packet).expect("the tunnel checked that");
        let known = |ingress: Ingress<'_>| (ingress.network, ingress.container, ingress.packet.octets().to_vec());
        let found = vtep.ingress(node(from), &udp).map(known);
        // What was admitted before admits nothing else.
        assert_eq!(vtep.ingress_after(node(from), &udp, &mut before).map(known), found);
        found
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
fn every_claim_of_what_arrives_by_ipv6_is_checked() {
    let vtep = Vtep::new(state().node_plan(node(1)));
    let mut before = Admitted::default();
    let mut ingress = |packet: &[u8]| {
        let udp = UdpPacket::parse(packet).expect("the tunnel checked that");
        let remembered = vtep.ingress_after(node(3), &udp, &mut before);
        assert_eq!(remembered, vtep.ingress(node(3), &udp), "what is remembered changes nothing");
        remembered.map(|ingress| (ingress.network, ingress.container, ingress.packet.octets().to_vec()))
    };
    let good = Ok((network(2), container(4), packet(host6(2), host6(1), 10)));
    assert_eq!(ingress(&from_node_3(|_| ())), good);
    let (frame, inner) = (36, 50);
    let edits: [(&str, Edit, DropReason); 13] = [
        ("said to be IPv4", Box::new(move |p| p[frame + 12..frame + 14].copy_from_slice(&[8, 0])), DropReason::NotIp),
        ("a longer packet than the frame", Box::new(move |p| p[inner + 5] = 200), DropReason::NotIp),
        ("options of every hop", Box::new(move |p| p[inner + 6] = 0), DropReason::NotIp),
        ("a route of its own", Box::new(move |p| p[inner + 6] = 43), DropReason::NotIp),
        (
            "an advertisement of a neighbour",
            Box::new(move |p| (p[inner + 6], p[inner + 40]) = (58, 136)),
            DropReason::NotIp,
        ),
        ("a forged source MAC", Box::new(move |p| p[frame + 11] = 9), DropReason::ForgedSource),
        ("the address of a container on this node", Box::new(move |p| p[inner + 23] = 1), DropReason::ForgedSource),
        ("a source of another prefix", Box::new(move |p| p[inner + 15] ^= 1), DropReason::ForgedSource),
        ("a source between prefix and address", Box::new(move |p| p[inner + 16] ^= 1), DropReason::ForgedSource),
        ("to another MAC", Box::new(move |p| p[frame + 5] = 9), DropReason::UnknownDestination),
        ("to an address nobody has", Box::new(move |p| p[inner + 39] = 77), DropReason::UnknownDestination),
        ("to another prefix", Box::new(move |p| p[inner + 31] ^= 1), DropReason::UnknownDestination),
        ("to everybody", Box::new(move |p| p[inner + 24] = 0xff), DropReason::UnknownDestination),
    ];
    for (what, edit, reason) in edits {
        assert_eq!(ingress(&from_node_3(edit)), Err(reason), "{what}");
        assert_eq!(ingress(&from_node_3(|_| ())), good, "after {what}");
    }
}

#[test]
fn what_a_network_does_not_carry_does_not_arrive_either() {
    let vtep = Vtep::new(state().node_plan(node(1)));
    let mapped = |n| host(n).to_ipv6_mapped();
    for (ethertype, inner, reason) in [
        (0x0800, packet(host(3), host(1), 1363), DropReason::TooBig),
        (0x86dd, packet(host6(3), host6(1), 10), DropReason::NotIp),
        (0x86dd, packet(mapped(3), mapped(1), 10), DropReason::NotIp),
        (0x86dd, packet(host(3), host(1), 10), DropReason::NotIp),
    ] {
        let octets = arriving(ethertype, &inner);
        assert_eq!(vtep.ingress(node(2), &UdpPacket::parse(&octets).unwrap()), Err(reason));
    }
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
    fn egress_then_ingress_gives_the_packet_back(from in 1u128..=5, to in 1u8..=4, len in 0usize..1500, by_ipv6: bool) {
        let state = state();
        let sender = state.container(container(from)).unwrap();
        let n = state.network_of_container(container(from)).unwrap();
        let prefix = state.network(n).unwrap().ipv6.filter(|_| by_ipv6);
        let octets = match prefix {
            Some(prefix) => packet(prefix.address(sender.address), prefix.address(host(to)), len),
            None => packet(sender.address, host(to), len),
        };
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
                let expected = Ingress { network: n, container: target.id, packet: IpPacket::parse(&octets).unwrap() };
                prop_assert_eq!(there.ingress(sender.node, &udp), Ok(expected));
            }
            Ok(Egress::Resolver(_)) => prop_assert!(false, "no container is the resolver"),
        }
    }

    #[test]
    fn ingress_is_total(from in 1u128..=4, at in 0usize..88, octets: Vec<u8>, by_ipv6: bool) {
        let vtep = Vtep::new(state().node_plan(node(1)));
        let edit = |packet: &mut Vec<u8>| {
            let end = packet.len().min(at + octets.len());
            packet[at..end].copy_from_slice(&octets[..end - at]);
        };
        let packet = if by_ipv6 { from_node_3(edit) } else { from_node_2(edit) };
        if let Some(udp) = UdpPacket::parse(&packet) && let Ok(ingress) = vtep.ingress(node(from), &udp) {
            prop_assert_eq!((from, ingress.container), if by_ipv6 { (3, container(4)) } else { (2, container(1)) });
        }
    }
}
