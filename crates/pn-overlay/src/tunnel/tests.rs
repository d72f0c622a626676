//! Two nodes, their datagrams carried by hand.

use core::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::packet::UdpPacket;

struct Side {
    tunnel: Tunnel,
    config: PeerConfig,
    out: Outbox,
}

fn side(n: u8) -> Side {
    let tunnel = Tunnel::new(PrivateKey::from_bytes([n; 32]));
    let config = PeerConfig {
        node: NodeId::from_u128(n.into()),
        public_key: tunnel.public_key(),
        underlay: SocketAddr::from(([192, 0, 2, n], 51820)),
        tunnel_address: tunnel_address(n),
    };
    Side { tunnel, config, out: Outbox::new() }
}

fn tunnel_address(n: u8) -> IpAddr {
    Ipv4Addr::new(100, 64, 0, n).into()
}

fn pair() -> (Side, Side) {
    let (mut a, mut b) = (side(1), side(2));
    assert!(a.tunnel.set_peer(b.config));
    assert!(b.tunnel.set_peer(a.config));
    (a, b)
}

/// A UDP packet inside the tunnel, told apart by its payload.
fn packet(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 28 + payload.len()];
    UdpPacket::write_headers(&mut packet, (tunnel_address(from), 7), (tunnel_address(to), 4789), payload.len());
    packet[28..].copy_from_slice(payload);
    packet
}

impl Side {
    fn seal(&mut self, to: u8, payload: &[u8]) -> Result<(), DropReason> {
        let from = self.config.node.as_u128() as u8;
        self.tunnel.seal(tunnel_address(to), &packet(from, to, payload), &mut self.out)
    }

    /// Takes everything out of the outbox.
    fn take(&mut self) -> Vec<Vec<u8>> {
        let taken = self.out.iter().map(|(_, datagram)| datagram.to_vec()).collect();
        self.out.clear();
        taken
    }

    fn open(&mut self, from: &PeerConfig, datagram: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        let opened = self.tunnel.open(from.underlay, datagram, &mut self.out)?;
        Ok(opened.map(|(node, packet)| {
            assert_eq!(node, from.node);
            packet.udp.payload.to_vec()
        }))
    }
}

/// Carries datagrams to and fro until there are none, and returns the payloads that arrived at each side.
fn settle(a: &mut Side, b: &mut Side) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    loop {
        let (from_a, from_b) = (a.take(), b.take());
        if from_a.is_empty() && from_b.is_empty() {
            return (at_a, at_b);
        }
        at_b.extend(from_a.iter().filter_map(|datagram| b.open(&a.config, datagram).unwrap()));
        at_a.extend(from_b.iter().filter_map(|datagram| a.open(&b.config, datagram).unwrap()));
    }
}

#[test]
fn packets_wait_for_the_handshake_and_arrive_in_order() {
    let (mut a, mut b) = pair();
    for n in 0..5 {
        a.seal(2, &[n]).unwrap();
    }
    assert_eq!(a.out.len(), 1, "one initiation, whatever waits");
    let (at_a, at_b) = settle(&mut a, &mut b);
    assert_eq!((at_a.len(), at_b), (0, (0..5).map(|n| vec![n]).collect()));
    b.seal(1, b"back").unwrap();
    assert_eq!(settle(&mut a, &mut b).0, [b"back".to_vec()]);
    assert!(a.tunnel.peers().all(|peer| peer.handshake_age.is_some()));
}

#[test]
fn k2_simultaneous_initiations_lose_nothing() {
    let (mut a, mut b) = pair();
    a.seal(2, b"to b").unwrap();
    b.seal(1, b"to a").unwrap();
    let (at_a, at_b) = settle(&mut a, &mut b);
    assert_eq!((at_a, at_b), (vec![b"to a".to_vec()], vec![b"to b".to_vec()]));
}

#[test]
fn no_datagram_holds_a_packet_in_clear() {
    let (mut a, mut b) = pair();
    let payload = [b'x'; 200];
    a.seal(2, &payload).unwrap();
    let mut datagrams = a.take();
    b.open(&a.config, &datagrams[0]).unwrap();
    datagrams.extend(b.take());
    a.open(&b.config, datagrams.last().unwrap()).unwrap();
    datagrams.extend(a.take());
    assert!(datagrams.len() >= 4, "initiation, response, keepalive, data");
    for datagram in &datagrams {
        assert!((1..=4).contains(&datagram[0]) && datagram[1..4] == [0; 3], "only WireGuard messages");
        assert!(!datagram.windows(16).any(|window| window == &payload[..16]));
    }
}

#[test]
fn k9_a_source_that_is_not_the_peers_is_dropped() {
    let (mut a, mut b) = pair();
    a.seal(2, b"first").unwrap();
    settle(&mut a, &mut b);
    let forged = packet(3, 2, b"forged");
    a.tunnel.seal(tunnel_address(2), &forged, &mut a.out).unwrap();
    let datagram = a.take().remove(0);
    assert_eq!(b.open(&a.config, &datagram), Err(DropReason::TunnelSource));

    // Another peer's address is no better than nobody's.
    let c = side(3);
    b.tunnel.set_peer(c.config);
    a.tunnel.seal(tunnel_address(2), &forged, &mut a.out).unwrap();
    let datagram = a.take().remove(0);
    assert_eq!(b.open(&a.config, &datagram), Err(DropReason::TunnelSource));
}

#[test]
fn what_is_not_ours_is_dropped_with_its_reason() {
    let (mut a, mut b) = pair();
    a.seal(2, b"first").unwrap();
    settle(&mut a, &mut b);
    let from = a.config;
    let vxlan = [&crate::vxlan::header(pn_core::Vni::new(1).unwrap())[..], &[0; 60]].concat();
    for (datagram, reason) in [
        (vec![], DropReason::NotWireGuard),
        (vec![4], DropReason::NotWireGuard),
        (vxlan, DropReason::NotWireGuard),
        (vec![1; 148], DropReason::NotWireGuard),
        ([&[1, 0, 0, 0][..], &[9; 144]].concat(), DropReason::Handshake),
        ([&[4, 0, 0, 0, 0, 9][..], &[9; 60]].concat(), DropReason::UnknownPeer),
        ([&[4, 0, 0, 0, 1, 0, 0, 0][..], &[9; 60]].concat(), DropReason::Decrypt),
    ] {
        assert_eq!(b.open(&from, &datagram), Err(reason), "{datagram:?}");
    }

    a.seal(2, b"once").unwrap();
    let datagram = a.take().remove(0);
    let mut flipped = datagram.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(b.open(&from, &flipped), Err(DropReason::Decrypt));
    assert_eq!(b.open(&from, &datagram), Ok(Some(b"once".to_vec())));
    assert_eq!(b.open(&from, &datagram), Err(DropReason::Replay));

    let mut stranger = side(9);
    stranger.tunnel.set_peer(b.config);
    stranger.seal(2, b"hello").unwrap();
    let initiation = stranger.take().remove(0);
    assert_eq!(b.open(&stranger.config, &initiation), Err(DropReason::UnknownPeer));
    assert_eq!(b.seal(7, b"nobody"), Err(DropReason::NoRoute));
}

#[test]
fn a_message_that_is_no_udp_packet_is_dropped() {
    let (mut a, mut b) = pair();
    a.seal(2, b"first").unwrap();
    settle(&mut a, &mut b);
    let mut icmp = packet(1, 2, b"ping");
    icmp[9] = 1;
    a.tunnel.seal(tunnel_address(2), &icmp, &mut a.out).unwrap();
    let datagram = a.take().remove(0);
    assert_eq!(b.open(&a.config, &datagram), Err(DropReason::NotVxlan));
}

#[test]
fn a_node_that_was_restarted_begins_where_a_peer_still_believes_in_the_old_session() {
    let (mut a, mut b) = pair();
    a.seal(2, b"before").unwrap();
    assert_eq!(settle(&mut a, &mut b).1, [b"before"]);
    let mut b = side(2);
    b.tunnel.set_peer(a.config);

    a.seal(2, b"lost").unwrap();
    let datagram = a.take().remove(0);
    assert!(b.open(&a.config, &datagram).is_err());
    assert_eq!(b.open(&a.config, &datagram), Err(DropReason::NoSession), "only one handshake is begun");
    assert_eq!(b.out.iter().map(|(to, datagram)| (to, datagram[0])).collect::<Vec<_>>(), [(a.config.underlay, 1)]);
    settle(&mut a, &mut b);
    a.seal(2, b"after").unwrap();
    assert_eq!(settle(&mut a, &mut b).1, [b"after"]);

    let mut stranger = a.config;
    stranger.underlay = ([198, 51, 100, 1], 1).into();
    assert!(b.open(&stranger, &datagram).is_err() && b.take().is_empty(), "nobody is asked who is not known");
}

#[test]
fn a_node_that_was_restarted_is_believed_at_once_by_who_waits_for_it() {
    let (mut a, mut b) = pair();
    a.seal(2, b"before").unwrap();
    assert_eq!(settle(&mut a, &mut b).1, [b"before"]);
    // While b is away a forgets its session and begins a handshake, which it would repeat after 5 s.
    a.tunnel.remove_peer(&b.config.public_key);
    a.tunnel.set_peer(b.config);
    a.seal(2, b"while it was away").unwrap();
    assert_eq!(a.take().len(), 1);

    let mut b = side(2);
    b.tunnel.set_peer(a.config);
    b.tunnel.tick(&mut b.out);
    assert_eq!(settle(&mut a, &mut b).1, [b"while it was away"]);
    b.seal(1, b"back").unwrap();
    assert_eq!(settle(&mut a, &mut b).0, [b"back"]);
}

#[test]
fn k10_handshakes_with_many_new_peers_are_spread_and_every_node_begins_elsewhere() {
    let order = |own: u8| {
        let (mut node, mut order) = (side(own), Vec::new());
        for n in 10..110 {
            node.tunnel.set_peer(side(n).config);
        }
        let gone = side(50).config.public_key;
        node.tunnel.remove_peer(&gone);
        while order.len() < 99 {
            node.tunnel.tick(&mut node.out);
            assert!(node.out.len() <= 16 && !node.out.is_empty());
            order.extend(node.out.iter().map(|(to, _)| to));
            node.out.clear();
        }
        order
    };
    let (first, second) = (order(1), order(2));
    assert_ne!(first, second);
    let distinct: std::collections::HashSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), 99, "every peer once");
}

#[test]
fn an_initiation_that_is_played_again_moves_nobody() {
    let (mut a, b) = pair();
    a.seal(2, b"hello").unwrap();
    let initiation = a.take().remove(0);
    // It remembers nothing of what it was, as after a restart or after long silence.
    let mut b = Side { tunnel: Tunnel::new(PrivateKey::from_bytes([2; 32])), ..b };
    b.tunnel.set_peer(a.config);
    let elsewhere = PeerConfig { underlay: SocketAddr::from(([203, 0, 113, 66], 666)), ..a.config };
    assert_eq!(b.open(&elsewhere, &initiation), Ok(None));
    assert_eq!(b.out.iter().next().unwrap().0, elsewhere.underlay, "who asked is answered");
    assert_eq!(endpoint(&b), a.config.underlay);
}

#[test]
fn k6_a_peer_is_changed_in_place() {
    let (mut a, mut b) = pair();
    a.seal(2, b"first").unwrap();
    settle(&mut a, &mut b);
    assert!(!a.tunnel.set_peer(b.config), "nothing changed");
    b.config.underlay = SocketAddr::from(([192, 0, 2, 77], 1));
    assert!(a.tunnel.set_peer(b.config));
    a.seal(2, b"moved").unwrap();
    assert_eq!(a.out.len(), 1, "the session lives on");
    assert_eq!(a.out.iter().next().unwrap().0, b.config.underlay);
    assert_eq!(settle(&mut a, &mut b).1, [b"moved".to_vec()]);
}

#[test]
fn a_peer_that_roams_is_answered_where_it_is() {
    let (mut a, mut b) = pair();
    a.seal(2, b"first").unwrap();
    settle(&mut a, &mut b);
    let elsewhere = PeerConfig { underlay: SocketAddr::from(([198, 51, 100, 1], 4)), ..a.config };
    a.seal(2, b"from elsewhere").unwrap();
    let datagram = a.take().remove(0);
    b.open(&elsewhere, &datagram).unwrap();
    b.seal(1, b"answer").unwrap();
    assert_eq!(b.out.iter().next().unwrap().0, elsewhere.underlay);
}

#[test]
fn k4_a_new_key_keeps_its_route_when_the_old_one_goes() {
    let (mut a, b) = pair();
    let mut renewed = side(22);
    renewed.config = PeerConfig { public_key: renewed.tunnel.public_key(), ..b.config };
    a.tunnel.set_peer(renewed.config);
    assert!(a.tunnel.remove_peer(&b.config.public_key));
    assert!(!a.tunnel.remove_peer(&b.config.public_key));
    renewed.tunnel.set_peer(a.config);
    a.seal(2, b"to the new key").unwrap();
    assert_eq!(settle(&mut a, &mut renewed).1, [b"to the new key".to_vec()]);
}

#[test]
fn a_removed_peer_is_a_stranger() {
    let (mut a, mut b) = pair();
    a.seal(2, b"first").unwrap();
    settle(&mut a, &mut b);
    assert!(b.tunnel.remove_peer(&a.config.public_key));
    a.seal(2, b"more").unwrap();
    let datagram = a.take().remove(0);
    assert_eq!(b.open(&a.config, &datagram), Err(DropReason::UnknownPeer));
    assert_eq!(b.seal(1, b"back"), Err(DropReason::NoRoute));
}

/// Has a side see so many handshakes of strangers that it asks for cookies, and returns how often it did.
fn flood(target: &mut Side) -> usize {
    let mut replies = 0;
    // Fresh initiations whose first code is right: each costs curve arithmetic until the limit.
    for _ in 0..500 {
        let mut stranger = side(9);
        stranger.tunnel.set_peer(target.config);
        stranger.seal(target.config.node.as_u128() as u8, b"x").unwrap();
        let initiation = stranger.take().remove(0);
        match target.open(&stranger.config, &initiation) {
            Ok(None) => replies += target.take().iter().filter(|reply| reply.len() == 64 && reply[0] == 3).count(),
            Err(reason) => assert_eq!(reason, DropReason::UnknownPeer),
            Ok(Some(_)) => panic!("a stranger's packet arrived"),
        }
    }
    replies
}

#[test]
fn a_flood_of_handshakes_is_met_with_cookies() {
    let (mut a, mut b) = pair();
    let replies = flood(&mut b);
    assert!(replies >= 300, "{replies} cookies");

    // The peer gets through with the cookie it is given, while the flood goes on: at its next attempt, which a tick makes after 5 s.
    a.seal(2, b"legitimate").unwrap();
    let initiation = a.take().remove(0);
    assert_eq!(b.open(&a.config, &initiation), Ok(None));
    let cookie = b.take().remove(0);
    assert_eq!((cookie[0], cookie.len()), (3, 64));
    assert_eq!(a.open(&b.config, &cookie), Ok(None));
    let start = std::time::Instant::now();
    while a.out.iter().next().is_none() {
        assert!(start.elapsed() < Duration::from_secs(10), "it tries again");
        std::thread::sleep(Duration::from_millis(50));
        a.tunnel.tick(&mut a.out);
    }
    assert!(flood(&mut b) >= 500, "still under load");
    assert_eq!(settle(&mut a, &mut b).1, [b"legitimate".to_vec()]);
}

/// Where a side believes its only peer to be.
fn endpoint(side: &Side) -> SocketAddr {
    side.tunnel.peers().next().unwrap().endpoint
}

#[test]
fn a_response_that_is_answered_with_a_cookie_moves_nobody() {
    let (mut a, mut b) = pair();
    b.seal(1, b"hello").unwrap();
    let initiation = b.take().remove(0);
    a.open(&b.config, &initiation).unwrap();
    let response = a.take().remove(0);
    assert_eq!(response[0], 2);
    flood(&mut b);
    let elsewhere = PeerConfig { underlay: SocketAddr::from(([203, 0, 113, 66], 666)), ..a.config };
    assert_eq!(b.open(&elsewhere, &response), Ok(None));
    let (to, cookie) = b.out.iter().next().unwrap();
    assert_eq!((to, cookie[0]), (elsewhere.underlay, 3), "who asked is answered");
    assert_eq!(endpoint(&b), a.config.underlay);
}

#[test]
fn a_cookie_moves_nobody() {
    let (mut a, mut b) = pair();
    flood(&mut b);
    a.seal(2, b"hello").unwrap();
    let initiation = a.take().remove(0);
    b.open(&a.config, &initiation).unwrap();
    let cookie = b.take().remove(0);
    assert_eq!(cookie[0], 3);
    let elsewhere = PeerConfig { underlay: SocketAddr::from(([203, 0, 113, 66], 666)), ..b.config };
    assert_eq!(a.open(&elsewhere, &cookie), Ok(None));
    assert_eq!(endpoint(&a), b.config.underlay);
}

#[test]
fn a_flow_that_floods_a_peer_without_a_session_takes_nothing_from_others() {
    let (mut a, mut b) = pair();
    let (mut dropped, mut slow) = (0, Vec::new());
    for n in 0..10_000u32 {
        let is_slow = n % 500 == 0;
        let mut packet = packet(1, 2, &n.to_be_bytes());
        // Ports tell flows of UDP apart; where it is VXLAN, those inside do.
        packet[20..24].copy_from_slice(&[0, if is_slow { 8 } else { 7 }, 0, 9]);
        dropped += usize::from(a.tunnel.seal(tunnel_address(2), &packet, &mut a.out) == Err(DropReason::QueueFull));
        if is_slow {
            slow.push(n);
        }
    }
    let arrived: Vec<_> = settle(&mut a, &mut b).1;
    let arrived: Vec<u32> = arrived.iter().map(|payload| u32::from_be_bytes(payload[..].try_into().unwrap())).collect();
    assert_eq!((arrived.len(), dropped), (256, 10_000 - 256), "each of the others was counted");
    assert!(arrived.is_sorted() && arrived.last() == Some(&9_999), "in order, and the latest");
    assert!(slow.iter().all(|n| arrived.contains(n)), "{arrived:?}");
}
