//! Cutting and merging against each other.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::checksum::Sum;
use super::*;

/// What a flow's packets have in common.
#[derive(Debug, Clone)]
struct Flow {
    is_ipv4: bool,
    is_tcp: bool,
    options: Vec<u8>,
    traffic_class: u8,
    forbids_fragments: bool,
    sequence: u32,
    identification: u16,
    port: u16,
}

fn flow() -> impl Strategy<Value = Flow> {
    let options = prop_oneof![Just(vec![]), Just(vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8])];
    (any::<(bool, bool, u8, bool, u32, u16)>(), options, 1u16..4).prop_map(
        |((is_ipv4, is_tcp, traffic_class, forbids_fragments, sequence, identification), options, port)| Flow {
            is_ipv4,
            is_tcp,
            options,
            traffic_class,
            forbids_fragments,
            sequence,
            identification,
            port,
        },
    )
}

impl Flow {
    /// Makes a packet with right lengths, and right checksums where `partial` is not asked for.
    fn packet(&self, nth: u16, at: u32, flags: u8, payload: &[u8], partial: bool) -> Vec<u8> {
        let l4 = if self.is_tcp { 20 + self.options.len() } else { 8 };
        let mut packet = Vec::new();
        let inner = (l4 + payload.len()) as u16;
        let protocol = if self.is_tcp { 6 } else { 17 };
        if self.is_ipv4 {
            packet.extend([0x45, self.traffic_class]);
            packet.extend((inner + 20).to_be_bytes());
            packet.extend(self.identification.wrapping_add(nth).to_be_bytes());
            packet.extend([u8::from(self.forbids_fragments) << 6, 0, 64, protocol, 0, 0, 10, 240, 0, 1, 10, 240, 0, 2]);
            let checksum = Sum::default().add(&packet).checksum();
            packet[10..12].copy_from_slice(&checksum);
        } else {
            packet.extend([0x60, self.traffic_class & 0x0f, 1, 2]);
            packet.extend(inner.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend([0xfd; 32]);
        }
        let ip_len = packet.len();
        packet.extend(self.port.to_be_bytes());
        packet.extend(80u16.to_be_bytes());
        if self.is_tcp {
            packet.extend(self.sequence.wrapping_add(at).to_be_bytes());
            packet.extend([9, 9, 9, 9, (l4 as u8 / 4) << 4, flags, 1, 0, 0, 0, 0, 0]);
            packet.extend(&self.options);
        } else {
            packet.extend(inner.to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(payload);
        let addresses = if self.is_ipv4 { 12..20 } else { 8..40 };
        let pseudo = Sum::default().add(&packet[addresses]).add_number(protocol.into()).add_number(inner);
        let checksum = if partial { pseudo.folded() } else { pseudo.add(&packet[ip_len..]).checksum() };
        let checksum = if !partial && !self.is_tcp && checksum == [0; 2] { [0xff; 2] } else { checksum };
        let field = ip_len + if self.is_tcp { 16 } else { 6 };
        packet[field..field + 2].copy_from_slice(&checksum);
        packet
    }

    fn header(&self, size: u16) -> VirtioHeader {
        let ip_len: u16 = if self.is_ipv4 { 20 } else { 40 };
        let kind = match (self.is_tcp, self.is_ipv4) {
            (true, true) => SegmentKind::Tcp4,
            (true, false) => SegmentKind::Tcp6,
            (false, _) => SegmentKind::Udp,
        };
        let header_len = ip_len + if self.is_tcp { 20 + self.options.len() as u16 } else { 8 };
        VirtioHeader {
            partial_checksum: Some((ip_len, if self.is_tcp { 16 } else { 6 })),
            is_valid: false,
            segmentation: Some(Segmentation { kind, size, header_len }),
        }
    }
}

const ROOM: usize = 200;

/// Cuts a packet as a driver does: each segment is wrapped in place, which destroys what lies in front of it.
fn cut(header: &VirtioHeader, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut buffer = [&[0xee; ROOM][..], packet].concat();
    let end = buffer.len();
    let mut segments = Segments::new(header, &buffer, ROOM..end)?;
    let (count, largest, mut cut) = (segments.remaining(), segments.largest(), Vec::new());
    while let Some(segment) = segments.next(&mut buffer) {
        cut.push(buffer[segment.clone()].to_vec());
        buffer[segment.start - 70..segment.start].fill(0xee);
    }
    assert_eq!(cut.len(), count);
    assert_eq!(cut.iter().map(Vec::len).max(), Some(largest));
    Some(cut)
}

/// Has packets merged, and returns what comes out.
fn merge(packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut buffer = packets.concat();
    let (mut coalescer, mut at) = (Coalescer::new(), 0);
    for packet in packets {
        coalescer.push((), &buffer, at..at + packet.len());
        at += packet.len();
    }
    let mut merged = Vec::new();
    coalescer.drain(&mut buffer, |packet, buffer| {
        let rest: Vec<_> = packet.rest.iter().map(|range| &buffer[range.clone()]).collect();
        assert!(rest.len() < 128);
        merged.push((VirtioHeader::parse(packet.header).unwrap(), [&[packet.first][..], &rest].concat().concat()));
    });
    assert!(coalescer.is_empty());
    merged
}

/// Cuts what is large among packets.
fn cut_all(merged: Vec<(VirtioHeader, Vec<u8>)>) -> Vec<Vec<u8>> {
    let cut_one = |(header, packet): (VirtioHeader, Vec<u8>)| match header.segmentation {
        Some(_) => cut(&header, &packet).unwrap(),
        None => vec![packet],
    };
    merged.into_iter().flat_map(cut_one).collect()
}

proptest! {
    #[test]
    fn what_is_cut_is_merged_again(
        flow in flow(), payload in prop::collection::vec(any::<u8>(), 1..20_000), size in 300u16..9000, flags in 0u8..2, ecn: bool,
    ) {
        let size = size.max(payload.len().div_ceil(64) as u16);
        let flags = 0x10 | flags << 3 | if ecn { 0xc0 } else { 0 };
        let whole = flow.packet(0, 0, flags, &payload, true);
        let segments = cut(&flow.header(size), &whole).unwrap();
        prop_assert_eq!(segments.len(), payload.len().div_ceil(size.into()));
        for (n, segment) in segments.iter().enumerate() {
            // Each is what the flow's own sender would have made.
            let at = n * usize::from(size);
            let piece = &payload[at..payload.len().min(at + usize::from(size))];
            let psh = if n + 1 < segments.len() { 0x08 } else { 0 };
            let cwr = if n > 0 { 0x80 } else { 0 };
            prop_assert_eq!(segment, &flow.packet(n as u16, at as u32, flags & !psh & !cwr, piece, false));
        }
        let merged = merge(&segments);
        prop_assert_eq!(merged.len(), 1);
        if segments.len() > 1 {
            prop_assert_eq!(&merged[0].0, &flow.header(size));
            prop_assert_eq!(&merged[0].1, &whole);
        } else {
            prop_assert_eq!(merged[0].0, VirtioHeader { is_valid: true, ..VirtioHeader::default() });
            prop_assert_eq!(&merged[0].1, &segments[0]);
        }
    }

    #[test]
    fn whatever_is_merged_is_cut_to_the_same(
        flows in prop::collection::vec(flow(), 1..4),
        // Flow, payload, and what is odd about a packet.
        packets in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4, 0u8..24), 1..60),
    ) {
        let (mut made, mut at, mut nth) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (index, len, odd) in packets {
            let n = index.index(flows.len());
            let (flow, at, nth) = (&flows[n], at.entry(n).or_insert(0u32), nth.entry(n).or_insert(0u16));
            let len = [100, 100, 40, 0][len];
            let flags = match odd { 0 => 0x18, 1 => 0x11, 2 => 0x02, 3 => 0x14, 4 => 0x90, 5 => 0x50, _ => 0x10 };
            let mut packet = flow.packet(*nth, *at, flags, &vec![odd; len], false);
            match odd {
                6 => *at = at.wrapping_add(1),
                7 => *nth = nth.wrapping_add(5),
                8 => *packet.last_mut().unwrap() ^= 1,
                9 => packet[8] ^= 1,
                10 => packet.truncate(packet.len() - 1),
                11 if flow.is_ipv4 => packet[6] |= 0x20,
                _ => {}
            }
            if (10..12).contains(&odd) {
                // What is cut short or a fragment has no ports: nobody can tell what it comes behind.
                let ports = if flow.is_ipv4 { 20 } else { 40 };
                packet[ports..ports + 2].fill(0xff);
            }
            *at = at.wrapping_add(len as u32);
            *nth = nth.wrapping_add(1);
            made.push((n, packet));
        }
        let only: Vec<_> = made.iter().map(|(_, packet)| packet.clone()).collect();
        let again = cut_all(merge(&only));
        prop_assert_eq!(again.len(), only.len());
        // All of them, and those of each pair of ports in order.
        let key = |packet: &Vec<u8>| {
            let (protocol, source, at) = if packet[0] >> 4 == 4 { (9, 12, 20) } else { (6, 8, 40) };
            (packet[0] >> 4, packet[protocol], packet[source..at + 2].to_vec())
        };
        for (_, packet) in &made {
            let of = |packets: &[Vec<u8>]| packets.iter().filter(|other| key(other) == key(packet)).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of(&again), of(&only));
        }
    }

    #[test]
    fn both_ways_are_total(header: [u8; 10], mut packet in prop::collection::vec(any::<u8>(), 0..200), start: [u8; 4], swap: bool) {
        if swap && packet.len() >= 20 {
            let len = packet.len() as u16;
            packet[..4].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
            packet[6..10].copy_from_slice(&[0x40, 0, 64, if start[0] & 1 == 0 { 6 } else { 17 }]);
        }
        if let Some(header) = VirtioHeader::parse(header) {
            cut(&header, &packet);
            if let Some(partial) = header.partial_checksum {
                let _ = complete_checksum(&mut packet.clone(), partial);
            }
        }
        let merged = merge(&[packet.clone(), packet.clone(), packet.clone()]);
        prop_assert!(!merged.is_empty());
    }
}

#[test]
fn fixed_identifications_are_merged_where_fragments_are_forbidden() {
    for forbids_fragments in [true, false] {
        let flow = Flow { forbids_fragments, ..udp(1) };
        let packets: Vec<_> = (0..10).map(|n| flow.packet(0, 0, 0, &[n; 64], false)).collect();
        assert_eq!(merge(&packets).len(), if forbids_fragments { 1 } else { 10 });
    }
}

/// A container may say of a packet whatever it likes, and this node would send a datagram for each segment.
#[test]
fn nobody_has_thousands_of_datagrams_sent_for_one_packet() {
    let flow = Flow { is_tcp: true, ..udp(1) };
    let packet = flow.packet(0, 0, 0x10, &[7; 60_000], true);
    assert_eq!(cut(&flow.header(48), &packet).map(|segments| segments.len()), Some(1250));
    assert_eq!(cut(&flow.header(1), &packet), None);
    assert_eq!(cut(&flow.header(43), &packet), None);
}

#[test]
fn among_many_flows_each_keeps_its_order() {
    let flows: Vec<_> = (1..=1000).map(udp).collect();
    let packets: Vec<_> =
        (0..3).flat_map(|n| flows.iter().map(move |flow| flow.packet(n, 0, 0, &[n as u8; 64], false))).collect();
    assert_eq!(merge(&packets).len(), 3000, "they are too far apart");
    let packets: Vec<_> =
        flows.iter().flat_map(|flow| (0..3).map(|n| flow.packet(n, 0, 0, &[n as u8; 64], false))).collect();
    let merged = merge(&packets);
    assert_eq!(merged.len(), 1000);
    assert_eq!(cut_all(merged), packets);
}

/// A flow of UDP from a port.
fn udp(port: u16) -> Flow {
    Flow {
        is_ipv4: true,
        is_tcp: false,
        options: vec![],
        traffic_class: 0,
        forbids_fragments: true,
        sequence: 0,
        identification: 7,
        port,
    }
}

#[test]
fn a_checksum_that_was_left_to_us_is_completed() {
    let flow = udp(1);
    let mut packet = flow.packet(0, 0, 0, b"some octets", true);
    assert!(complete_checksum(&mut packet, (20, 6)));
    assert_eq!(packet, flow.packet(0, 0, 0, b"some octets", false));
    assert!(!complete_checksum(&mut packet, (20, 100)));
    assert!(!complete_checksum(&mut packet, (u16::MAX, u16::MAX)));
}
