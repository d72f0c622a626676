//! Putting segments together again.

use core::ops::Range;

use super::checksum::Sum;
use super::headers::{Headers, TCP, number, short};
use super::virtio::{SegmentKind, Segmentation, VirtioHeader};

/// The longest packet there is.
const MAX_PACKET: usize = 65_535;

/// Datagrams that are merged at most (`UDP_GRO_CNT_MAX`), and segments: what a system call takes in one vector is more.
const MAX_DATAGRAMS: usize = 64;
const MAX_SEGMENTS: usize = 128;

/// Packets back that one of the same flow is looked for, so that many flows cost no more than few. One that is further back is not
/// appended to, and nothing is out of order for it.
const LOOK_BACK: usize = 16;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Merges packets of a batch where they are consecutive segments of one flow.
///
/// It does what Linux does on receipt (`tcp_gro_receive`, `udp_gro_receive`, `inet_gro_receive`): only packets with right
/// checksums, in order, of equal size but for the last, and with equal headers but for what counts up, so that cutting the
/// result gives the same packets again. The order of a flow's packets is kept. `Place` says whom packets are for; those of two
/// are not merged.
#[derive(Debug)]
pub struct Coalescer<Place> {
    /// As many as there ever were at a time; those that are in use come first.
    groups: Vec<Group<Place>>,
    used: usize,
    /// How long a merged packet may be.
    longest: usize,
}

#[derive(Debug)]
struct Group<Place> {
    place: Place,
    first: Range<usize>,
    /// The payloads of those that follow the first.
    pieces: Vec<Range<usize>>,
    /// `None` where it is not known what it is: it goes as it is, and so does what comes behind.
    flow: Option<Flow>,
    /// Whether nothing may follow.
    is_closed: bool,
    /// Whether its checksums were verified.
    is_valid: bool,
}

#[derive(Debug)]
struct Flow {
    headers: Headers,
    /// Payload of each packet but the last.
    size: usize,
    /// Of all.
    payload: usize,
    /// The TCP flags of the last packet.
    last_flags: u8,
    /// Whether IPv4 identifications count up; known from the second on.
    is_counting: Option<bool>,
}

/// A packet as it is given to a kernel.
#[derive(Debug)]
pub struct Merged<'a, Place> {
    /// Whom it is for.
    pub place: &'a Place,
    /// What the kernel is told of it.
    pub header: [u8; VirtioHeader::LEN],
    /// The packet, or what it begins with.
    pub first: &'a [u8],
    /// Where the rest of it lies in the buffer, in at most 127 pieces.
    pub rest: &'a [Range<usize>],
}

impl<Place> Default for Coalescer<Place> {
    fn default() -> Self {
        Self { groups: Vec::new(), used: 0, longest: MAX_PACKET }
    }
}

impl<Place: Copy + PartialEq> Coalescer<Place> {
    /// Makes one without packets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one that leaves so many octets in front of a merged packet, for the headers of a tunnel.
    #[must_use]
    pub fn below(headers: usize) -> Self {
        Self { longest: MAX_PACKET.saturating_sub(headers), ..Self::default() }
    }

    /// Returns whether there are no packets.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Takes the packet that lies at `packet` in the buffer.
    ///
    /// # Panics
    /// Where it does not lie in it.
    pub fn push(&mut self, place: Place, buffer: &[u8], packet: Range<usize>) {
        let octets = &buffer[packet.clone()];
        let headers = Headers::of(octets);
        let is_intact = headers.is_some_and(|headers| headers.is_intact(octets));
        if let Some(headers) = &headers {
            let of_flow = |group: &&mut Group<Place>| {
                group.place == place
                    && group.flow.as_ref().is_some_and(|flow| flow.is_of(headers, &buffer[group.first.clone()], octets))
            };
            if let Some(group) = self.groups[..self.used].iter_mut().rev().take(LOOK_BACK).find(of_flow)
                && !group.is_closed
                && is_intact
                && group.merge(headers, buffer, packet.clone(), self.longest)
            {
                return;
            }
        }
        self.begin((place, packet), headers, octets, is_intact);
    }

    fn begin(&mut self, at: (Place, Range<usize>), headers: Option<Headers>, octets: &[u8], is_valid: bool) {
        let (place, first) = at;
        let flow = headers.map(|headers| {
            let payload = octets.len() - headers.len;
            let last_flags = if headers.protocol == TCP { octets[headers.ip_len + 13] } else { 0 };
            Flow { headers, size: payload, payload, last_flags, is_counting: None }
        });
        let is_closed = flow.as_ref().is_none_or(|flow| {
            let is_plain = !flow.headers.is_ipv4 || flow.headers.ip_len == 20;
            // What carries more than data ends what it is in, and so does PSH.
            flow.payload == 0 || !is_plain || (flow.headers.protocol == TCP && flow.last_flags & !(ECE | CWR) != ACK)
        });
        let group = Group { place, first, pieces: Vec::new(), flow, is_closed: is_closed || !is_valid, is_valid };
        match self.groups.get_mut(self.used) {
            Some(unused) => {
                let mut pieces = core::mem::take(&mut unused.pieces);
                pieces.clear();
                *unused = Group { pieces, ..group };
            }
            None => self.groups.push(group),
        }
        self.used += 1;
    }

    /// Gives every packet to `emit`, with the buffer that they lie in, and forgets them.
    ///
    /// # Panics
    /// With another buffer, if it is shorter.
    pub fn drain(&mut self, buffer: &mut [u8], mut emit: impl FnMut(Merged<'_, Place>, &[u8])) {
        for group in &self.groups[..self.used] {
            let header = group.finish(buffer);
            let first = &buffer[group.first.clone()];
            emit(Merged { place: &group.place, header, first, rest: &group.pieces }, buffer);
        }
        self.used = 0;
    }
}

impl<Place> Group<Place> {
    /// Appends a packet of the same flow, where it is the next segment.
    fn merge(&mut self, headers: &Headers, buffer: &[u8], packet: Range<usize>, longest: usize) -> bool {
        let Some(flow) = &mut self.flow else {
            return false;
        };
        let (first, octets) = (&buffer[self.first.clone()], &buffer[packet.clone()]);
        let payload = octets.len() - headers.len;
        if payload == 0
            || payload > flow.size
            || flow.headers.len + flow.payload + payload > longest
            || *headers != flow.headers
        {
            return false;
        }
        let count = self.pieces.len() + 1;
        let mut is_counting = flow.is_counting;
        if headers.is_ipv4 {
            // Type of service; time to live; all but that, lengths, identification, checksum and addresses.
            if first[1] != octets[1] || first[8] != octets[8] || first[6..8] != octets[6..8] {
                return false;
            }
            let (before, now) = (short(first, 4), short(octets, 4));
            let forbids_fragments = octets[6] & 0x40 != 0;
            let counts = now == before.wrapping_add(count as u16);
            // One that is not to be cut needs no identification (RFC 6864), and then all may have the same.
            let is_fixed = forbids_fragments && now == before;
            if !(counts || is_fixed) || is_counting.is_some_and(|before| before != counts) {
                return false;
            }
            is_counting = Some(counts);
        } else if first[..4] != octets[..4] || first[7] != octets[7] {
            return false;
        }
        let (mut ends, mut last_flags) = (payload < flow.size, 0);
        if headers.protocol == TCP {
            let at = headers.ip_len;
            let (flags, first_flags) = (octets[at + 13], first[at + 13]);
            let is_next = number(octets, at + 4) == number(first, at + 4).wrapping_add(flow.payload as u32);
            // Acknowledgement; flags but those that end and the first's; window; urgent pointer; options.
            if !is_next
                || number(first, at + 8) != number(octets, at + 8)
                || (first_flags & !CWR) != (flags & !(FIN | PSH))
                || first[at + 14..at + 16] != octets[at + 14..at + 16]
                || first[at + 18..headers.len] != octets[at + 18..headers.len]
            {
                return false;
            }
            ends |= flags & (FIN | PSH) != 0;
            last_flags = flags;
        }
        if count >= if headers.protocol == TCP { MAX_SEGMENTS } else { MAX_DATAGRAMS } {
            return false;
        }
        (flow.is_counting, flow.last_flags) = (is_counting, last_flags);
        flow.payload += payload;
        self.is_closed = ends;
        self.pieces.push(packet.start + headers.len..packet.end);
        true
    }

    /// Writes the headers of what was merged, and returns what the kernel is told.
    fn finish(&self, buffer: &mut [u8]) -> [u8; VirtioHeader::LEN] {
        let (Some(flow), false) = (&self.flow, self.pieces.is_empty()) else {
            return VirtioHeader { is_valid: self.is_valid, ..VirtioHeader::default() }.emit(false);
        };
        let headers = &flow.headers;
        let packet = &mut buffer[self.first.clone()];
        let total = headers.len + flow.payload;
        headers.set_lengths(packet, total);
        let mut has_cwr = false;
        let kind = if headers.protocol == TCP {
            let flags = &mut packet[headers.ip_len + 13];
            *flags |= flow.last_flags & (FIN | PSH);
            has_cwr = *flags & CWR != 0;
            if headers.is_ipv4 { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 }
        } else {
            SegmentKind::Udp
        };
        let at = headers.checksum_at();
        let pseudo = headers.pseudo(packet, total - headers.ip_len).folded();
        packet[at..at + 2].copy_from_slice(&pseudo);
        let header = VirtioHeader {
            partial_checksum: Some((headers.ip_len as u16, (at - headers.ip_len) as u16)),
            is_valid: false,
            segmentation: Some(Segmentation { kind, size: flow.size as u16, header_len: headers.len as u16 }),
        };
        header.emit(has_cwr)
    }
}

impl Flow {
    /// Returns whether a packet has the addresses, protocol and ports of this flow, whose first packet is given.
    fn is_of(&self, headers: &Headers, first: &[u8], packet: &[u8]) -> bool {
        let addresses = if headers.is_ipv4 { 12..20 } else { 8..40 };
        let ports = |headers: &Headers, packet: &[u8]| number(packet, headers.ip_len);
        self.headers.is_ipv4 == headers.is_ipv4
            && self.headers.protocol == headers.protocol
            && first[addresses.clone()] == packet[addresses]
            && ports(&self.headers, first) == ports(headers, packet)
    }
}

impl Headers {
    /// Returns whether the checksums of a packet are there and right.
    fn is_intact(&self, packet: &[u8]) -> bool {
        let at = self.checksum_at();
        let is_header_intact = !self.is_ipv4 || Sum::default().add(&packet[..self.ip_len]).is_valid();
        let has_checksum = self.protocol == TCP || packet[at..at + 2] != [0, 0];
        is_header_intact
            && has_checksum
            && self.pseudo(packet, packet.len() - self.ip_len).add(&packet[self.ip_len..]).is_valid()
    }
}
