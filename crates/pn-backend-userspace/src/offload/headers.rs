//! Where the headers of a TCP or UDP packet lie.

use pn_overlay::packet::{IPV4_LEN, IPV6_LEN, UDP_LEN};

use super::checksum::Sum;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// Where the checksums of TCP and UDP are in their headers.
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;

/// The headers of an IP packet that carries TCP or UDP, is no fragment, and whose lengths hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) is_ipv4: bool,
    /// [`TCP`] or [`UDP`].
    pub(super) protocol: u8,
    /// Length of the IP header: where TCP or UDP begins.
    pub(super) ip_len: usize,
    /// Length of both headers: where the payload begins.
    pub(super) len: usize,
}

impl Headers {
    /// Finds them. IPv6 extensions are not looked behind.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        let (is_ipv4, protocol, ip_len) = match packet.first()? >> 4 {
            4 => {
                let ip_len = usize::from(packet[0] & 0x0f) * 4;
                let is_fragment = word(6)? & 0x3fff != 0;
                if ip_len < IPV4_LEN || is_fragment || usize::from(word(2)?) != packet.len() {
                    return None;
                }
                (true, *packet.get(9)?, ip_len)
            }
            6 if usize::from(word(4)?) + IPV6_LEN == packet.len() => (false, *packet.get(6)?, IPV6_LEN),
            _ => return None,
        };
        let len = match protocol {
            TCP => {
                let len = usize::from(*packet.get(ip_len + 12)? >> 4) * 4;
                if len < 20 {
                    return None;
                }
                ip_len + len
            }
            UDP if usize::from(word(ip_len + 4)?) == packet.len() - ip_len => ip_len + UDP_LEN,
            _ => return None,
        };
        (len <= packet.len()).then_some(Self { is_ipv4, protocol, ip_len, len })
    }

    /// Sums the pseudo header of a packet whose IP payload is so long (RFC 793, RFC 8200 §8.1).
    pub(super) fn pseudo(&self, packet: &[u8], payload_len: usize) -> Sum {
        let addresses = if self.is_ipv4 { 12..20 } else { 8..40 };
        // No packet is longer than 16 bits say.
        Sum::default().add(&packet[addresses]).add_number(self.protocol.into()).add_number(payload_len as u16)
    }

    /// Returns where the checksum of TCP or UDP is.
    pub(super) const fn checksum_at(&self) -> usize {
        self.ip_len + if self.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }

    /// Writes the lengths that follow from the packet's, and the IP checksum.
    pub(super) fn set_lengths(&self, headers: &mut [u8], packet_len: usize) {
        let total = packet_len as u16;
        if self.is_ipv4 {
            headers[2..4].copy_from_slice(&total.to_be_bytes());
            headers[10..12].fill(0);
            let checksum = Sum::default().add(&headers[..self.ip_len]).checksum();
            headers[10..12].copy_from_slice(&checksum);
        } else {
            headers[4..6].copy_from_slice(&(total - IPV6_LEN as u16).to_be_bytes());
        }
        if self.protocol == UDP {
            let at = self.ip_len + 4;
            headers[at..at + 2].copy_from_slice(&(total - self.ip_len as u16).to_be_bytes());
        }
    }
}

/// Reads four octets as the network writes numbers.
pub(super) fn number(octets: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}

/// Reads two octets as the network writes numbers.
pub(super) fn short(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}
