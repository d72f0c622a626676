//! Cutting large packets.

use core::ops::Range;

use super::checksum::Sum;
use super::headers::{Headers, TCP, UDP, number, short};
use super::virtio::{SegmentKind, VirtioHeader};

/// The longest IP and TCP headers there are, without IPv6 extensions.
const MAX_HEADERS: usize = 60 + 60;

/// More segments than anybody sends: a TCP segment has at least 48 octets, options included (`tcp_min_snd_mss`). A container that
/// makes its own would have this node send thousands of datagrams for one packet.
const MAX_SEGMENTS: usize = 65_535 / 48;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Cuts a large packet into those that cross the network, in place and in order.
///
/// The headers of each segment are written right in front of its payload, over the end of the one before, which its taker is
/// done with by then. So no octet of payload is moved.
#[derive(Debug)]
pub struct Segments {
    headers: Headers,
    template: [u8; MAX_HEADERS],
    size: usize,
    /// Where the next segment's payload begins, and where the last one's ends.
    next: usize,
    end: usize,
    index: u32,
}

impl Segments {
    /// Begins to cut the packet that lies at `packet` in a buffer.
    ///
    /// `None` where the packet is not what its virtio header says, does not have to be cut, or would be cut to more segments
    /// than anybody sends.
    #[must_use]
    pub fn new(header: &VirtioHeader, buffer: &[u8], packet: Range<usize>) -> Option<Self> {
        let segmentation = header.segmentation?;
        let octets = buffer.get(packet.clone())?;
        let headers = Headers::of(octets)?;
        let is_kind = match segmentation.kind {
            SegmentKind::Tcp4 => headers.is_ipv4 && headers.protocol == TCP,
            SegmentKind::Tcp6 => !headers.is_ipv4 && headers.protocol == TCP,
            SegmentKind::Udp => headers.protocol == UDP,
        };
        if !is_kind || segmentation.size == 0 {
            return None;
        }
        let mut template = [0; MAX_HEADERS];
        template[..headers.len].copy_from_slice(&octets[..headers.len]);
        let size = segmentation.size.into();
        let segments = Self { headers, template, size, next: packet.start + headers.len, end: packet.end, index: 0 };
        (segments.remaining() <= MAX_SEGMENTS).then_some(segments)
    }

    /// Returns how long the longest segment is.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.headers.len + self.size.min(self.end - self.next)
    }

    /// Returns how many segments are still to come.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        let rest = (self.end - self.next).div_ceil(self.size);
        if rest == 0 && self.index == 0 { 1 } else { rest }
    }

    /// Makes the next segment in the buffer that the packet lies in, and returns where it is.
    ///
    /// # Panics
    /// In another buffer, if it is shorter.
    pub fn next(&mut self, buffer: &mut [u8]) -> Option<Range<usize>> {
        if self.remaining() == 0 {
            return None;
        }
        let Headers { is_ipv4, protocol, ip_len, len } = self.headers;
        let end = self.end.min(self.next + self.size);
        let segment = self.next - len..end;
        let (header, payload) = buffer[segment.clone()].split_at_mut(len);
        header.copy_from_slice(&self.template[..len]);
        if is_ipv4 {
            let identification = short(header, 4).wrapping_add(self.index as u16);
            header[4..6].copy_from_slice(&identification.to_be_bytes());
        }
        if protocol == TCP {
            let before = self.index.wrapping_mul(self.size as u32);
            let sequence = number(header, ip_len + 4).wrapping_add(before);
            header[ip_len + 4..ip_len + 8].copy_from_slice(&sequence.to_be_bytes());
            let only_last = if end < self.end { FIN | PSH } else { 0 };
            let only_first = if self.index > 0 { CWR } else { 0 };
            header[ip_len + 13] &= !(only_last | only_first);
        }
        self.headers.set_lengths(header, segment.len());
        let at = self.headers.checksum_at();
        header[at..at + 2].fill(0);
        let sum = self.headers.pseudo(header, segment.len() - ip_len).add(&header[ip_len..]).add(payload);
        header[at..at + 2].copy_from_slice(&written(sum, protocol));
        self.next = end;
        self.index += 1;
        Some(segment)
    }
}

/// Computes the checksum that a kernel left to whoever sends the packet on: of what begins at `start`, into the field that is
/// `offset` behind, which holds the sum of the pseudo header. Returns whether the field is in the packet.
#[must_use]
pub fn complete_checksum(packet: &mut [u8], (start, offset): (u16, u16)) -> bool {
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    if at + 2 > packet.len() {
        return false;
    }
    let protocol = if offset == super::headers::UDP_CHECKSUM as u16 { UDP } else { TCP };
    let checksum = written(Sum::default().add(&packet[start..]), protocol);
    packet[at..at + 2].copy_from_slice(&checksum);
    true
}

/// Returns a checksum as it is written: UDP's is not 0, which means that there is none (RFC 768).
const fn written(sum: Sum, protocol: u8) -> [u8; 2] {
    match sum.checksum() {
        [0, 0] if protocol == UDP => [0xff, 0xff],
        checksum => checksum,
    }
}
