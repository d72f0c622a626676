//! Neighbour discovery: each container is asked for itself and speaks for itself, what is elsewhere is planned, and nobody is
//! led astray by what another container or node says.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use crate::hostile::{Capture, FORGED, IPV6, Rogue, checksum, count, frame, refused, send, udp};
use crate::hosts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hosts::{Region, eventually, is_root, network};
use pn_core::*;
use pn_overlay::{PrivateKey, vxlan};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

const SOLICIT: u8 = 135;
const ADVERT: u8 = 136;

/// Kinds of options of neighbour discovery: the sender's Ethernet address, and that of what is asked for.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An IPv6 packet, with the hop limit of neighbour discovery.
fn packet(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, len[0], len[1], next, 255][..], &from.octets(), &to.octets(), payload].concat()
}

/// An ICMPv6 message with its checksum.
fn message(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let len = (4 + body.len() as u32).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &len, &[0, 0, 0, ICMPV6, kind, 0, 0, 0], body].concat();
    [&[kind, 0][..], &checksum(&pseudo), body].concat()
}

fn icmp(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    packet(from, to, ICMPV6, &message(from, to, kind, body))
}

/// What a solicitation or an advertisement holds: flags (solicited and override), the target, and one option.
fn about(target: Ipv6Addr, option: u8, mac: MacAddr) -> Vec<u8> {
    [&[0x60, 0, 0, 0][..], &target.octets(), &[option, 1], &mac.octets()].concat()
}

/// A message behind an extension header, which says that it is the last.
fn behind(from: Ipv6Addr, to: Ipv6Addr, extension: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let header: [u8; 8] = match extension {
        // More to come, at the start.
        FRAGMENT => [ICMPV6, 0, 0, 1, 0, 0, 0, 7],
        ROUTING => [ICMPV6, 0, 4, 0, 0, 0, 0, 0],
        // Four octets of padding.
        _ => [ICMPV6, 0, 1, 4, 0, 0, 0, 0],
    };
    packet(from, to, extension, &[&header[..], &message(from, to, kind, body)].concat())
}

/// What would tell somebody that `target` is at `mac`, or lead them elsewhere, in every way there is.
fn lies(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: MacAddr) -> Vec<(&'static str, Vec<u8>)> {
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
    let lie = about(target, TARGET, mac);
    // A prefix of which everything is on the link, for ever.
    let prefix = [&[3, 4, 64, 0xc0][..], &[0xff; 8], &[0; 4], &Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 0).octets()];
    let router = [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[SOURCE, 1], &mac.octets(), &prefix.concat()].concat();
    let redirect = [&[0; 4][..], &target.octets(), &target.octets(), &[TARGET, 1], &mac.octets()].concat();
    vec![
        ("another's advertisement", icmp(from, to, ADVERT, &lie)),
        ("another's advertisement to all", icmp(from, ALL_NODES, ADVERT, &lie)),
        ("another's advertisement as the other", icmp(target, to, ADVERT, &lie)),
        ("a solicitation as the other", icmp(target, to, SOLICIT, &about(to, SOURCE, mac))),
        ("a claim to an address", icmp(Ipv6Addr::UNSPECIFIED, ALL_NODES, SOLICIT, &about(to, SOURCE, mac))),
        ("a router", icmp(from, to, 134, &router)),
        ("a router by its link-local address", icmp(link_local, ALL_NODES, 134, &router)),
        ("a redirection", icmp(from, to, 137, &redirect)),
        ("a redirection by a link-local address", icmp(link_local, to, 137, &redirect)),
        ("a question for routers", icmp(from, to, 133, &[0, 0, 0, 0, SOURCE, 1, 2, 0, 0, 0, 0, 9])),
        ("one behind options for each hop", behind(from, to, HOP_BY_HOP, ADVERT, &lie)),
        ("one behind options for the destination", behind(from, to, DESTINATION, ADVERT, &lie)),
        ("one behind a way", behind(from, to, ROUTING, ADVERT, &lie)),
        ("one behind mobility", behind(from, to, MOBILITY, ADVERT, &lie)),
        ("one in pieces", behind(from, to, FRAGMENT, ADVERT, &lie)),
        (
            "options in a fragment",
            packet(from, to, FRAGMENT, &[DESTINATION, 0, 0, 1, 0, 0, 0, 7, 58, 0, 1, 4, 0, 0, 0, 0]),
        ),
        (
            "the rest of a fragment with a way",
            packet(from, to, FRAGMENT, &[ROUTING, 0, 0, 8, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8]),
        ),
        ("another's address", udp(target, to, 9, b"hostile")),
        ("an address from outside", udp(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9), to, 9, b"hostile")),
        ("a link-local address", udp(link_local, to, 9, b"hostile")),
    ]
}

/// What a container's interface has, and by which ways.
fn ways(region: &Region, container: ContainerId) -> String {
    region.netns(container).sh("ip -br addr show dev pn0; ip -6 route show dev pn0")
}

/// Fails where a container believes that a neighbour has another Ethernet address than follows from its address.
fn is_not_deceived(region: &Region, container: ContainerId, by: &str) {
    let known = region.netns(container).sh("ip -6 neigh show dev pn0");
    for line in known.lines() {
        let mut words = line.split_whitespace();
        let address: Ipv6Addr = words.next().unwrap().parse().unwrap();
        let [.., a, b, c, d] = address.octets();
        let planned = MacAddr::of_ipv4(Ipv4Addr::new(a, b, c, d)).to_string();
        let found = words.skip_while(|word| *word != "lladdr").nth(1);
        assert!(found.is_none_or(|mac| mac == planned), "{container} believes {by}: {known}");
    }
}

/// Three nodes' worth of a network with IPv6, whose third node is to be played: the containers, and the prefix.
async fn dual_stack(nodes: &[usize]) -> (Region, Vec<ContainerId>, Ipv6Prefix) {
    let mut region = Region::start(2).await;
    region.add_network(3, |request| request.families = Families::DualStack);
    let mut containers = Vec::new();
    for node in nodes {
        containers.push(region.add(3, *node).await);
    }
    (region, containers, Ipv6Prefix::of_network(network(3)))
}

fn pings(region: &Region, from: ContainerId, to: Ipv6Addr) -> bool {
    region.netns(from).works(&format!("ping -6 -c 1 -W 10 {to}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_container_with_ipv6_gets_nothing_through_and_is_counted() {
    if !is_root() {
        return;
    }
    let (region, containers, prefix) = dual_stack(&[1, 1, 2]).await;
    let [attacker, local, remote] = *containers else { unreachable!("three were started") };
    region.apply().await;
    let (here, own4) = (region.netns(attacker), region.address(attacker));
    let (own, own_mac) = (prefix.address(own4), MacAddr::of_ipv4(own4));
    let [to_local, to_remote] = [local, remote].map(|container| prefix.address(region.address(container)));
    for (from, to) in
        [(attacker, to_local), (attacker, to_remote), (local, to_remote), (remote, to_local), (local, own)]
    {
        assert!(pings(&region, from, to), "{from} to {to}");
    }
    let captures = [Capture::start(region.netns(local), "pn0"), Capture::start(region.netns(remote), "pn0")];
    let at_first = [local, remote].map(|container| ways(&region, container));
    // What kernels say by themselves when a link comes up is not counted.
    let mut forged = 0;
    assert_eq!(count(&region, 0, "forged_source"), forged);

    for (victim, other) in [(local, remote), (remote, local)] {
        let [(mac, to), (other_mac, other)] = [victim, other].map(|container| {
            let address = region.address(container);
            (MacAddr::of_ipv4(address), prefix.address(address))
        });
        let mut lies = lies(own, to, other, own_mac);
        lies.extend([
            ("its own advertisement with another's MAC", icmp(own, to, ADVERT, &about(own, TARGET, other_mac))),
            ("another's advertisement without a MAC", icmp(own, to, ADVERT, &about(other, TARGET, own_mac)[..20])),
            ("a solicitation with another's MAC", icmp(own, to, SOLICIT, &about(to, SOURCE, other_mac))),
        ]);
        let mut frames: Vec<_> = lies.iter().map(|(what, packet)| (*what, frame(mac, own_mac, IPV6, packet))).collect();
        frames.push(("a forged MAC", frame(mac, other_mac, IPV6, &udp(own, to, 9, b"hostile"))));
        for (what, frame) in frames {
            send(here, "pn0", &frame);
            forged += 1;
            assert_eq!(count(&region, 0, "forged_source"), forged, "{what} was not counted, once");
            is_not_deceived(&region, victim, what);
        }
    }
    // To the node, by its link-local address on the underlay and by that of a group.
    let said = region.hosts[0].netns.sh("ip -6 -o addr show dev eth0 scope link");
    let of_the_host: IpAddr = said.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap();
    let bridge = MacAddr::of_ipv4(Ipv4Addr::new(169, 254, 53, 53));
    let link_local: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9).into();
    send(here, "pn0", &frame(bridge, own_mac, IPV6, &udp(link_local, of_the_host, 22, b"hostile")));
    forged += 1;
    let before = count(&region, 0, "to_the_node");
    send(here, "pn0", &frame(bridge, own_mac, IPV6, &udp(own, of_the_host, 22, b"hostile")));
    assert_eq!(count(&region, 0, "to_the_node"), before + 1);
    assert_eq!(count(&region, 0, "forged_source"), forged);

    assert_eq!([local, remote].map(|container| ways(&region, container)), at_first, "somebody was believed");
    for (victim, capture) in [local, remote].into_iter().zip(&captures) {
        let address = region.address(victim);
        let end = udp(own, prefix.address(address), 9, b"the-end");
        send(here, "pn0", &frame(MacAddr::of_ipv4(address), own_mac, IPV6, &end));
        eventually("the end", || capture.text().contains("the-end"));
        let text = capture.text();
        assert!(!text.contains("hostile") && !text.contains("router") && !text.contains("redirect"), "{text}");
    }
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k9_a_hostile_node_tells_nobody_who_their_neighbours_are() {
    if !is_root() {
        return;
    }
    let (mut region, containers, prefix) = dual_stack(&[1, 2, 1]).await;
    let [victim, friend, neighbour] = *containers else { unreachable!("three were started") };
    let (netns, key) = (region.plug(3), PrivateKey::from_bytes([3; 32]));
    let rogue = hosts::node(3, key.public_key());
    region.change(Change::AddNode(rogue.clone()));
    let slot = Slot::new(hosts::app(3), "web".parse().unwrap(), 100).unwrap();
    region.change(Change::Start { container: hosts::container(100), slot, node: rogue.id });
    region.apply().await;
    let target = region.state.node(region.hosts[0].id).unwrap().clone();
    let mut node = Rogue::new(&netns, key, &target);
    let vni = region.state.plan().networks[&network(3)].vni;
    let address = |container| {
        let address = region.address(container);
        (prefix.address(address), MacAddr::of_ipv4(address))
    };
    let ((to, mac), (own, own_mac)) = (address(victim), address(hosts::container(100)));
    let [friend, neighbour] = [friend, neighbour].map(|container| address(container).0);
    for other in [friend, neighbour] {
        assert!(pings(&region, victim, other), "{other}");
    }
    let capture = Capture::start(region.netns(victim), "pn0");
    let mut forged = 0;
    assert_eq!(count(&region, 0, "forged_source"), forged);
    let mut send = |packet: &[u8]| {
        let wrapped = [&vxlan::header(vni)[..], &frame(mac, own_mac, IPV6, packet)].concat();
        node.send(Ipv4Addr::new(100, 64, 0, 3), target.tunnel_address, 4789, &wrapped);
    };
    send(&udp(own, to, 9, b"honest"));
    eventually("what is honest", || capture.text().contains("honest"));
    let of_victim = ways(&region, victim);
    for about in [friend, neighbour, own] {
        for (what, packet) in lies(own, to, about, own_mac) {
            // The transport namespace lets through what ends like an address of that node's; the end of VXLAN in this process does
            // not.
            let from = Ipv6Addr::from(*packet[8..].first_chunk::<16>().unwrap());
            let is_its_own = region.hosts[0].has_transport() && from.octets()[12..] == own.octets()[12..];
            // What a container of that node says as itself is no lie.
            if from == own && packet.ends_with(b"hostile") {
                continue;
            }
            let reason = if is_its_own { "forged_source" } else { "forged_tunnel" };
            let counted = || refused(&region, 0, reason, &FORGED);
            let before = counted();
            send(&packet);
            eventually(what, || counted() > before);
            assert_eq!(counted(), before + 1, "{what}");
            forged += u64::from(is_its_own);
            is_not_deceived(&region, victim, what);
        }
    }
    assert_eq!(count(&region, 0, "forged_source"), forged);
    assert_eq!(ways(&region, victim), of_victim, "somebody was believed");
    send(&udp(own, to, 9, b"the-end"));
    eventually("the end", || capture.text().contains("the-end"));
    assert!(!capture.text().contains("hostile"), "{}", capture.text());
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x2_x3_neighbours_with_ipv6_are_planned_and_no_question_leaves_the_node() {
    if !is_root() {
        return;
    }
    let (region, containers, prefix) = dual_stack(&[1, 1, 2]).await;
    let [a, b, remote] = *containers else { unreachable!("three were started") };
    region.apply().await;
    let (host, place) = (&region.hosts[0], network(3).to_string());
    let path = host.directory.join(host.id.to_string()).join(&place);
    let capture = Capture::at(&path, &host.netns.0, "vxlan0");
    let address = |container| {
        let address = region.address(container);
        (prefix.address(address), MacAddr::of_ipv4(address))
    };
    let ((own, own_mac), (near, near_mac), (far, far_mac)) = (address(a), address(b), address(remote));
    let known = host.sh_in(&place, "ip -6 neigh show dev br0");
    let lines: Vec<Vec<&str>> = known.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines, [vec![&*far.to_string(), "lladdr", &*far_mac.to_string(), "PERMANENT"]], "{known}");
    for (from, to) in [(a, near), (a, far), (b, own), (b, far), (remote, own), (remote, near)] {
        assert!(pings(&region, from, to), "{from} to {to}");
        region.netns(from).sh("ip -6 neigh flush dev pn0");
        assert!(pings(&region, from, to), "{from} to {to} once more");
    }
    // Fragments are the one extension that there is.
    for to in [near, far] {
        assert!(region.netns(a).works(&format!("ping -6 -c 1 -W 10 -s 4000 {to}")), "{to} in pieces");
    }
    // Whoever is near answers whether it is still there, without saying its Ethernet address once more.
    let answers = Capture::start(region.netns(a), "pn0");
    for option in [&about(near, SOURCE, own_mac)[..], &about(near, SOURCE, own_mac)[..20]] {
        let probe = icmp(own, near, SOLICIT, option);
        let before = answers.text().matches("neighbor advertisement").count();
        send(region.netns(a), "pn0", &frame(near_mac, own_mac, IPV6, &probe));
        eventually("an answer", || answers.text().matches("neighbor advertisement").count() > before);
    }
    // As a kernel does to know whether a neighbour is still there.
    let probe = icmp(own, far, SOLICIT, &about(far, SOURCE, own_mac));
    send(region.netns(a), "pn0", &frame(far_mac, own_mac, IPV6, &probe));
    send(region.netns(a), "pn0", &frame(far_mac, own_mac, IPV6, &udp(own, far, 9, b"the-end")));
    eventually("the end", || capture.text().contains("the-end"));
    let text = capture.text();
    assert!(text.contains("ICMP6, echo request") && text.contains("ICMP6, echo reply"), "{text}");
    assert!(!text.contains("neighbor") && !text.contains("ARP") && !text.contains("router"), "{text}");
    for (host, reason) in [(0, "forged_source"), (1, "forged_source"), (0, "to_the_node"), (0, "unknown_destination")] {
        assert_eq!(count(&region, host, reason), 0, "{reason}");
    }
    region.tear_down().await;
}
