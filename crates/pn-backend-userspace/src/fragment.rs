//! Fragmentation and reassembly (RFC 791 §3.2, RFC 8200 §4.5), so that UDP datagrams of any size cross a network.
//!
//! Pure: time is a parameter, and memory is bounded whatever arrives.

use core::net::IpAddr;
use core::time::Duration;
use std::borrow::Cow;

use pn_overlay::packet::{
    FRAGMENT, FRAGMENT_LEN, Fragment, IPV4_LEN, IPV6_LEN, IpPacket, set_ipv4_checksum, write_ip_header,
};

use crate::batch::Batch;

/// How long the fragments of a packet wait for each other. Linux lets them for 30 s (`ipfrag_time`); at today's rates an
/// identification comes around much sooner.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many packets may be incomplete at a time, in all and from one source, and the octets kept for them. Beyond that no
/// other is begun: those that are may still be completed, which the eviction of old ones would prevent for all.
const MAX_INCOMPLETE: usize = 256;
const MAX_INCOMPLETE_OF_SOURCE: usize = 64;
const MAX_OCTETS: usize = 4 << 20;

/// What the packets of a datagram have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Envelope {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// What fragments are told apart by; one that travels whole has none.
    pub(crate) identification: u32,
}

/// Returns the most octets that a packet of the version of an address carries behind its header.
pub(crate) const fn max_payload(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 65_535 - IPV4_LEN,
        IpAddr::V6(_) => 65_535,
    }
}

/// Puts a payload, which is in two parts, into packets that fit an MTU: one that is no fragment, where that is enough. Returns
/// whether it was not.
pub(crate) fn fragment(payload: [&[u8]; 2], mtu: u16, envelope: Envelope, out: &mut Batch) -> bool {
    let Envelope { source, destination, protocol, .. } = envelope;
    let (ip_len, extension) = if source.is_ipv4() { (IPV4_LEN, 0) } else { (IPV6_LEN, FRAGMENT_LEN) };
    let len = payload[0].len() + payload[1].len();
    if ip_len + len <= usize::from(mtu) {
        let packet = out.push(ip_len + len);
        write_ip_header(packet, protocol, source, destination, len);
        copy(payload, 0, &mut packet[ip_len..]);
        return false;
    }
    // All but the last carry a multiple of eight octets.
    let step = (usize::from(mtu) - ip_len - extension) & !7;
    for offset in (0..len).step_by(step) {
        let (piece, more) = ((len - offset).min(step), offset + step < len);
        let packet = out.push(ip_len + extension + piece);
        let id = envelope.identification.to_be_bytes();
        if source.is_ipv4() {
            write_ip_header(packet, protocol, source, destination, piece);
            let fields = (offset / 8) as u16 | u16::from(more) << 13;
            packet[4..6].copy_from_slice(&id[2..]);
            packet[6..8].copy_from_slice(&fields.to_be_bytes());
            set_ipv4_checksum(packet);
        } else {
            write_ip_header(packet, FRAGMENT, source, destination, extension + piece);
            packet[ip_len..ip_len + 2].copy_from_slice(&[protocol, 0]);
            packet[ip_len + 2..ip_len + 4].copy_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
            packet[ip_len + 4..ip_len + 8].copy_from_slice(&id);
        }
        copy(payload, offset, &mut packet[ip_len + extension..]);
    }
    true
}

/// Fills `out` with what begins at an offset of two parts, one behind the other.
fn copy([first, second]: [&[u8]; 2], offset: usize, out: &mut [u8]) {
    let of_first = first.get(offset..).unwrap_or_default();
    let (start, rest) = out.split_at_mut(of_first.len().min(out.len()));
    start.copy_from_slice(&of_first[..start.len()]);
    let at = (offset + start.len()).saturating_sub(first.len());
    rest.copy_from_slice(&second[at..at + rest.len()]);
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

/// What the fragments of a packet have in common; the destination is the container itself.
type Key = (IpAddr, u32, u8);

impl Reassembly {
    /// Takes a packet and returns a payload that is complete with it: at once for a packet that is no fragment.
    ///
    /// Fragments that overlap, or disagree on where the packet ends, make the whole packet void: nobody sends such but to
    /// deceive (RFC 5722 has the reasons).
    pub(crate) fn accept<'a>(&mut self, packet: &IpPacket<'a>, now: Duration) -> Option<Cow<'a, [u8]>> {
        let Some(Fragment { identification, offset, more }) = packet.fragment() else {
            return Some(packet.payload().into());
        };
        while let Some(first) = self.incomplete.first()
            && now >= first.deadline
        {
            self.remove(0);
        }
        let key = (packet.source(), identification, packet.protocol());
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
            Some(true) => Some(self.remove(index).into()),
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
            || end > max_payload(self.key.0)
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
mod tests;
