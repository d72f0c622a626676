//! Fragments of both versions, in any order, twice, and lying.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const FROM: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 240, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xaf0, 1))];
const TO: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 240, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xaf0, 2))];

fn fragments_of(version: usize, payload: &[u8], mtu: u16, identification: u32) -> Vec<Vec<u8>> {
    let envelope = Envelope { source: FROM[version], destination: TO[version], protocol: 17, identification };
    let mut packets = Batch::default();
    // Where a payload is in two is nobody's affair.
    let (first, second) = payload.split_at(payload.len().min(8));
    fragment([first, second], mtu, envelope, &mut packets);
    core::iter::from_fn(|| packets.pop().map(|packet| packets.octets()[packet].to_vec())).collect()
}

fn fragments(payload: &[u8], mtu: u16, identification: u32) -> Vec<Vec<u8>> {
    fragments_of(0, payload, mtu, identification)
}

/// Makes a fragment another source's.
fn from(source: u8, mut packet: Vec<u8>) -> Vec<u8> {
    packet[15] = source;
    packet
}

fn accept(reassembly: &mut Reassembly, packet: &[u8], seconds: u64) -> Option<Vec<u8>> {
    reassembly.accept(&IpPacket::parse(packet).unwrap(), Duration::from_secs(seconds)).map(Cow::into_owned)
}

#[test]
fn what_fits_is_no_fragment() {
    for (version, header) in [(0, IPV4_LEN), (1, IPV6_LEN)] {
        for len in [0, 1, 1390 - header] {
            let packets = fragments_of(version, &vec![7; len], 1390, 1);
            assert_eq!(packets.len(), 1);
            let packet = IpPacket::parse(&packets[0]).unwrap();
            assert_eq!((packet.fragment(), packet.protocol()), (None, 17));
            assert_eq!((packet.source(), packet.destination()), (FROM[version], TO[version]));
            assert_eq!(accept(&mut Reassembly::default(), &packets[0], 0), Some(vec![7; len]));
        }
        assert_eq!(fragments_of(version, &vec![7; 1391 - header], 1390, 1).len(), 2);
    }
}

#[test]
fn incomplete_packets_are_given_up_in_time_and_in_number() {
    let mut reassembly = Reassembly::default();
    let packets = fragments(&[7; 100], 68, 1);
    assert_eq!(accept(&mut reassembly, &packets[0], 0), None);
    for packet in &packets[1..] {
        assert_eq!(accept(&mut reassembly, packet, 10), None, "the first is gone");
    }
    for source in 0..8 {
        for identification in 0..100u32 {
            let packet = from(source, fragments(&[7; 100], 68, identification).swap_remove(0));
            accept(&mut reassembly, &packet, 20);
        }
        assert_eq!(reassembly.incomplete.len(), (64 * (usize::from(source) + 1)).min(256));
    }
    assert_eq!(reassembly.octets, 256 * 48);
    assert_eq!(accept(&mut reassembly, &fragments(&[7; 100], 68, 200)[0], 30), None);
    assert_eq!((reassembly.incomplete.len(), reassembly.octets), (1, 48), "all before were given up");
}

#[test]
fn many_large_packets_are_put_together_at_a_time() {
    let check = |count: usize| {
        let packets: Vec<_> = (0..count).map(|n| fragments(&vec![7; 60_000], 1390, n as u32)).collect();
        let mut reassembly = Reassembly::default();
        let mut made = 0;
        for nth in 0..packets[0].len() {
            for (n, packet) in packets.iter().enumerate() {
                let packet = from(n as u8, packet[nth].clone());
                made += usize::from(accept(&mut reassembly, &packet, 0).is_some());
                assert!(reassembly.octets <= MAX_OCTETS);
            }
        }
        made
    };
    assert_eq!(check(17), 17);
    assert_eq!(check(64), 64);
    // More than there is room for: those that fit are completed all the same.
    let made = check(200);
    assert!((60..=72).contains(&made), "{made}");
}

#[test]
fn a_payload_is_counted_once_and_given_back() {
    let mut reassembly = Reassembly::default();
    let packets = fragments(&[7; 20_000], 1390, 1);
    // Backwards, twice each: the first makes room for all.
    for packet in packets.iter().rev().flat_map(|packet| [packet, packet]) {
        accept(&mut reassembly, packet, 0);
        assert!([0, 20_000, 1368].contains(&reassembly.octets), "{}", reassembly.octets);
    }
}

#[test]
fn overlaps_and_lies_make_a_packet_void() {
    let good = fragments(&(0..100).collect::<Vec<u8>>(), 68, 1);
    assert_eq!(good.len(), 3);
    let edit = |n: usize, at: usize, value: u8| {
        let mut packet = good[n].clone();
        packet[at] = value;
        packet
    };
    let mut too_far = edit(1, 7, 0xff);
    too_far[6] = 0x3f;
    for bad in [edit(1, 7, 5), edit(1, 6, 0), edit(2, 7, 11), edit(1, 3, 67), too_far] {
        let mut reassembly = Reassembly::default();
        accept(&mut reassembly, &good[0], 0);
        accept(&mut reassembly, &good[2], 0);
        assert_eq!(accept(&mut reassembly, &bad, 0), None);
        assert_eq!(accept(&mut reassembly, &good[1], 0), None, "the packet was void, what came after is alone");
    }
}

proptest! {
    #[test]
    fn fragments_in_any_order_and_twice_make_the_payload(
        payload in prop::collection::vec(any::<u8>(), 0..20_000),
        mtu in 68u16..2000,
        seed: u64,
        version in 0usize..2,
    ) {
        let packets = fragments_of(version, &payload, mtu, 9);
        let mut order: Vec<usize> = (0..packets.len()).chain(0..packets.len() / 2).collect();
        let mut random = seed | 1;
        for n in (1..order.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(n, (random >> 33) as usize % (n + 1));
        }
        let (mut reassembly, mut made, mut seen) = (Reassembly::default(), Vec::new(), vec![false; packets.len()]);
        for n in order {
            prop_assert!(packets[n].len() <= usize::from(mtu));
            let was_complete = seen.iter().all(|seen| *seen);
            seen[n] = true;
            let result = accept(&mut reassembly, &packets[n], 0);
            prop_assert_eq!(result.is_some(), seen.iter().all(|seen| *seen) && (!was_complete || packets.len() == 1));
            made.extend(result);
        }
        prop_assert!(made.iter().all(|made| *made == payload) && !made.is_empty());
    }

    #[test]
    fn reassembly_is_total(
        packets in prop::collection::vec((0usize..2, 0u16..128, prop::collection::vec(any::<u8>(), 1..64)), 0..60),
    ) {
        let mut reassembly = Reassembly::default();
        for (version, place, piece) in packets {
            // A fragment that tells any place.
            let mut packet = fragments_of(version, &[0; 200], 136, 0).swap_remove(0);
            let (at, field) = [(6, (place & 1) << 13 | place >> 1), (IPV6_LEN + 2, (place >> 1) << 3 | place & 1)][version];
            packet[at..at + 2].copy_from_slice(&field.to_be_bytes());
            let header = if version == 0 { IPV4_LEN } else { IPV6_LEN + FRAGMENT_LEN };
            packet.truncate(header);
            packet.extend(piece);
            let (at, len) = [(2, packet.len()), (4, packet.len().saturating_sub(IPV6_LEN))][version];
            packet[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
            accept(&mut reassembly, &packet, 0);
        }
    }
}
