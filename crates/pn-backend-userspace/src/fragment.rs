//! IPv4 fragmentation and reassembly (RFC 791 §3.2), so that UDP datagrams of any size cross a network.
//!
//! Pure: time is a parameter, and memory is bounded whatever arrives.

use core::net::Ipv4Addr;
use core::time::Duration;

use pn_overlay::packet::{IPV4_LEN, Ipv4Packet};

/// How long the fragments of a packet wait for each other. Linux lets them for 30 s (`ipfrag_time`); at today's rates an
/// identification comes around much sooner.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many packets may be incomplete at a time, in all and from one source, and the octets kept for them. Beyond that no
/// other is begun: those that are may still be completed, which the eviction of old ones would prevent for all.
const MAX_INCOMPLETE: usize = 256;
const MAX_INCOMPLETE_OF_SOURCE: usize = 64;
const MAX_OCTETS: usize = 4 << 20;

/// The most octets an IPv4 packet can carry behind its header.
const MAX_PAYLOAD: usize = 65_535 - IPV4_LEN;

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// Cuts what follows an IPv4 header into packets that fit an MTU.
///
/// `write_header` fills the header of each packet, but for total length, fragment fields and checksum, which are 0 then and
/// are filled in here. A payload that fits leaves as one packet that is no fragment.
pub(crate) fn fragment(
    payload: &[u8],
    mtu: u16,
    identification: u16,
    write_header: impl Fn(&mut [u8; IPV4_LEN]),
    mut emit: impl FnMut(Vec<u8>),
) {
    let room = usize::from(mtu) - IPV4_LEN;
    // All but the last carry a multiple of eight octets.
    let step = if payload.len() <= room { payload.len().max(1) } else { room & !7 };
    let mut offset = 0;
    loop {
        let piece = &payload[offset..payload.len().min(offset + step)];
        let more = offset + piece.len() < payload.len();
        let mut header = [0; IPV4_LEN];
        write_header(&mut header);
        let total = u16::try_from(IPV4_LEN + piece.len()).expect("a piece fits an MTU");
        let fields = (offset / 8) as u16 | if more { MORE_FRAGMENTS } else { 0 };
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        header[6..8].copy_from_slice(&fields.to_be_bytes());
        let checksum = !smoltcp::wire::checksum::data(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        emit([&header[..], piece].concat());
        offset += piece.len();
        if !more {
            return;
        }
    }
}

/// Puts the fragments of packets together again.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    /// Oldest first.
    incomplete: Vec<Incomplete>,
    /// The octets of their payloads.
    octets: usize,
}

#[derive(Debug)]
struct Incomplete {
    key: Key,
    deadline: Duration,
    payload: Vec<u8>,
    /// What is there, as disjoint ranges in order.
    ranges: Vec<(usize, usize)>,
    /// How long the payload is, once the last fragment was seen.
    len: Option<usize>,
}

/// What the fragments of a packet have in common (RFC 791 §3.2); the destination is the container itself.
type Key = (Ipv4Addr, u16, u8);

impl Reassembly {
    /// Takes a packet and returns a payload that is complete with it: at once for a packet that is no fragment.
    ///
    /// Fragments that overlap, or disagree on where the packet ends, make the whole packet void: nobody sends such but to
    /// deceive (RFC 5722 has the reasons).
    pub(crate) fn accept(&mut self, packet: &Ipv4Packet<'_>, now: Duration) -> Option<Vec<u8>> {
        if !packet.is_fragment() {
            return Some(packet.payload().to_vec());
        }
        while let Some(first) = self.incomplete.first()
            && now >= first.deadline
        {
            self.remove(0);
        }
        let octets = packet.octets();
        let word = |at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
        let key = (packet.source(), word(4), packet.protocol());
        let (offset, more) = (usize::from(word(6) & OFFSET_MASK) * 8, word(6) & MORE_FRAGMENTS != 0);
        let found = self.incomplete.iter().position(|incomplete| incomplete.key == key);
        let index = match found {
            Some(index) => index,
            None => self.begin(key, now)?,
        };
        let incomplete = &mut self.incomplete[index];
        let before = incomplete.payload.len();
        let is_complete = incomplete.add(offset, packet.payload(), more);
        self.octets += incomplete.payload.len() - before;
        match is_complete {
            Some(false) if self.octets <= MAX_OCTETS => None,
            Some(true) => Some(self.remove(index)),
            // What makes it too much goes itself, and not what others have begun.
            Some(false) | None => {
                self.remove(index);
                None
            }
        }
    }

    /// Begins a packet, where there is room for one more.
    fn begin(&mut self, key: Key, now: Duration) -> Option<usize> {
        let of_source = self.incomplete.iter().filter(|incomplete| incomplete.key.0 == key.0).count();
        let is_full = self.incomplete.len() >= MAX_INCOMPLETE || of_source >= MAX_INCOMPLETE_OF_SOURCE;
        (!is_full && self.octets < MAX_OCTETS).then(|| {
            self.incomplete.push(Incomplete::new(key, now + TIMEOUT));
            self.incomplete.len() - 1
        })
    }

    fn remove(&mut self, index: usize) -> Vec<u8> {
        let payload = self.incomplete.remove(index).payload;
        self.octets -= payload.len();
        payload
    }
}

impl Incomplete {
    const fn new(key: Key, deadline: Duration) -> Self {
        Self { key, deadline, payload: Vec::new(), ranges: Vec::new(), len: None }
    }

    /// Adds a fragment, and returns whether the payload is complete; `None` where it is void.
    fn add(&mut self, offset: usize, piece: &[u8], more: bool) -> Option<bool> {
        let end = offset + piece.len();
        let is_odd = more && !piece.len().is_multiple_of(8);
        if piece.is_empty()
            || is_odd
            || end > MAX_PAYLOAD
            || self.len.is_some_and(|len| end > len || (!more && end != len))
        {
            return None;
        }
        if !more {
            self.len = Some(end);
            if self.ranges.last().is_some_and(|(_, last)| *last > end) {
                return None;
            }
        }
        let at = self.ranges.partition_point(|(start, _)| *start < offset);
        let before = at.checked_sub(1).map_or(0, |before| self.ranges[before].1);
        let after = self.ranges.get(at).map_or(usize::MAX, |(start, _)| *start);
        if self.ranges.get(at) == Some(&(offset, end)) {
            // The same fragment again, as a network may deliver it.
            return Some(false);
        }
        if before > offset || after < end {
            return None;
        }
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        self.payload[offset..end].copy_from_slice(piece);
        self.ranges.insert(at, (offset, end));
        let joined = self.ranges.iter().try_fold(0, |reached, (start, end)| (*start == reached).then_some(*end));
        Some(joined.is_some() && joined == self.len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);

    fn header(header: &mut [u8; IPV4_LEN]) {
        header[0] = 0x45;
        header[8..10].copy_from_slice(&[64, 17]);
        header[12..16].copy_from_slice(&FROM.octets());
        header[16..20].copy_from_slice(&[10, 240, 0, 2]);
    }

    fn fragments(payload: &[u8], mtu: u16, identification: u16) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        fragment(payload, mtu, identification, header, |packet| packets.push(packet));
        packets
    }

    /// Makes a fragment another source's.
    fn from(source: u8, mut packet: Vec<u8>) -> Vec<u8> {
        packet[15] = source;
        packet
    }

    fn accept(reassembly: &mut Reassembly, packet: &[u8], seconds: u64) -> Option<Vec<u8>> {
        reassembly.accept(&Ipv4Packet::parse(packet).unwrap(), Duration::from_secs(seconds))
    }

    #[test]
    fn what_fits_is_no_fragment() {
        for len in [0, 1, 1370] {
            let packets = fragments(&vec![7; len], 1390, 1);
            assert_eq!(packets.len(), 1);
            let packet = Ipv4Packet::parse(&packets[0]).unwrap();
            assert!(!packet.is_fragment());
            assert_eq!(accept(&mut Reassembly::default(), &packets[0], 0), Some(vec![7; len]));
        }
        assert_eq!(fragments(&[7; 1371], 1390, 1).len(), 2);
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
            for identification in 0..100 {
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
            let packets: Vec<_> = (0..count).map(|n| fragments(&vec![7; 60_000], 1390, n as u16)).collect();
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
        ) {
            let packets = fragments(&payload, mtu, 9);
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
        fn reassembly_is_total(packets in prop::collection::vec((0u16..64, prop::collection::vec(any::<u8>(), 0..64)), 0..60)) {
            let mut reassembly = Reassembly::default();
            for (fields, piece) in packets {
                let mut packet = vec![0; IPV4_LEN];
                header(packet.first_chunk_mut().unwrap());
                packet[2..4].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
                packet[6..8].copy_from_slice(&((fields & 1) << 13 | fields >> 1).to_be_bytes());
                packet.extend(piece);
                accept(&mut reassembly, &packet, 0);
            }
        }
    }
}
