//! IPv6 packets, as far as networks carry them.

use core::net::Ipv6Addr;

use super::{Fragment, IPV6_LEN};

/// An IPv6 packet whose lengths hold, and that a network carries.
///
/// Behind its header there may be that of a fragment, and no other extension: such could tell another source (the home address
/// option), another way (routing headers), or hide what follows. Nor is it a message of neighbour discovery: every address and
/// MAC is planned, and an answer that comes from elsewhere is a forged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Packet<'a> {
    octets: &'a [u8],
    protocol: u8,
    fragment: Option<Fragment>,
    /// Where the payload begins.
    header_len: usize,
}

impl<'a> Ipv6Packet<'a> {
    /// Reads a packet; what lies behind its length, as Ethernet's padding does, is left out.
    #[must_use]
    pub fn parse(octets: &'a [u8]) -> Option<Self> {
        let header = octets.first_chunk::<IPV6_LEN>()?;
        let octets = octets.get(..IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]])))?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let mut packet = Self { octets, protocol: header[6], fragment: None, header_len: IPV6_LEN };
        if packet.protocol == FRAGMENT {
            packet.read_fragment()?;
        }
        packet.is_carried().then_some(packet)
    }

    /// Reads the header of a fragment. One that is the whole packet is none (RFC 6946).
    fn read_fragment(&mut self) -> Option<()> {
        let [protocol, _, a, b, id @ ..] = *self.octets[IPV6_LEN..].first_chunk::<FRAGMENT_LEN>()?;
        let word = u16::from_be_bytes([a, b]);
        let (offset, more) = (usize::from(word & !7), word & 1 != 0);
        let fragment = Fragment { identification: u32::from_be_bytes(id), offset, more };
        self.fragment = (more || offset > 0).then_some(fragment);
        (self.protocol, self.header_len) = (protocol, IPV6_LEN + FRAGMENT_LEN);
        Some(())
    }

    fn is_carried(&self) -> bool {
        let is_start = self.fragment.is_none_or(|fragment| fragment.offset == 0);
        match self.protocol {
            ICMPV6 if is_start => self.payload().first().is_some_and(|kind| !NEIGHBOUR_DISCOVERY.contains(kind)),
            protocol => !EXTENSIONS.contains(&protocol),
        }
    }

    /// Returns the whole packet.
    #[must_use]
    pub const fn octets(&self) -> &'a [u8] {
        self.octets
    }

    /// Returns the source address.
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        self.address(8)
    }

    /// Returns the destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv6Addr {
        self.address(24)
    }

    /// Returns the protocol number of the payload.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Returns the place of a fragment; `None` where the packet is whole.
    #[must_use]
    pub const fn fragment(&self) -> Option<Fragment> {
        self.fragment
    }

    /// Returns what the packet carries.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.octets[self.header_len..]
    }

    fn address(&self, at: usize) -> Ipv6Addr {
        let octets = self.octets[at..].first_chunk::<16>().expect("a header has 40 octets");
        Ipv6Addr::from(*octets)
    }
}

/// Length of a fragment's header, in octets.
pub const FRAGMENT_LEN: usize = 8;

/// What stands for a fragment's header where a protocol does (RFC 8200 §4.5).
pub const FRAGMENT: u8 = 44;

/// Protocol number of ICMPv6.
const ICMPV6: u8 = 58;

/// Solicitations and advertisements of routers and neighbours, and redirections (RFC 4861 §4).
const NEIGHBOUR_DISCOVERY: core::ops::RangeInclusive<u8> = 133..=137;

/// Extension headers: hop-by-hop options, routing, fragments, destination options, mobility, host identity, shim6.
const EXTENSIONS: [u8; 7] = [0, 43, FRAGMENT, 60, 135, 139, 140];

#[cfg(test)]
mod tests {
    use super::super::write_ip_header;
    use super::*;

    /// A packet between two addresses with a payload.
    fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let address = |n: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xaf0, n).into();
        let mut packet = vec![0; IPV6_LEN];
        write_ip_header(&mut packet, protocol, address(1), address(2), payload.len());
        packet.extend(payload);
        packet
    }

    fn fragment(protocol: u8, field: u16, payload: &[u8]) -> Vec<u8> {
        let [a, b] = field.to_be_bytes();
        packet(FRAGMENT, &[&[protocol, 0, a, b, 0, 0, 0, 7], payload].concat())
    }

    #[test]
    fn what_is_carried_is_read() {
        for (octets, protocol, place, payload) in [
            (packet(17, b"datagram"), 17, None, &b"datagram"[..]),
            (packet(59, b""), 59, None, b""),
            (packet(ICMPV6, &[128, 0]), ICMPV6, None, &[128, 0]),
            (fragment(17, 1, b"12345678"), 17, Some((0, true)), b"12345678"),
            (fragment(17, 0x5a8, b"end"), 17, Some((0x5a8, false)), b"end"),
            (fragment(17, 0, b"whole"), 17, None, b"whole"),
            (fragment(ICMPV6, 8, &[134]), ICMPV6, Some((8, false)), &[134]),
        ] {
            let padded = [&octets[..], b"padding"].concat();
            let packet = Ipv6Packet::parse(&padded).unwrap();
            assert_eq!((packet.octets(), packet.protocol(), packet.payload()), (&octets[..], protocol, payload));
            assert_eq!(packet.fragment().map(|fragment| (fragment.offset, fragment.more)), place);
            assert!(packet.fragment().is_none_or(|fragment| fragment.identification == 7));
            assert_eq!((packet.source().segments()[7], packet.destination().segments()[7]), (1, 2));
            assert!((0..octets.len()).all(|len| Ipv6Packet::parse(&octets[..len]).is_none()));
        }
    }

    #[test]
    fn what_leads_astray_is_refused() {
        let hidden = |protocol: u8| packet(protocol, &[17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        for extension in EXTENSIONS {
            assert_eq!(Ipv6Packet::parse(&hidden(extension)).is_some(), extension == FRAGMENT, "{extension}");
            assert_eq!(Ipv6Packet::parse(&fragment(extension, 1, b"12345678")), None, "{extension} in a fragment");
        }
        for kind in NEIGHBOUR_DISCOVERY {
            assert_eq!(Ipv6Packet::parse(&packet(ICMPV6, &[kind, 0, 0, 0])), None, "{kind}");
            assert_eq!(Ipv6Packet::parse(&fragment(ICMPV6, 1, &[kind; 8])), None, "{kind} in pieces");
            assert_eq!(Ipv6Packet::parse(&fragment(ICMPV6, 0, &[kind; 8])), None, "{kind} in one piece");
        }
        assert_eq!(Ipv6Packet::parse(&packet(ICMPV6, &[])), None, "a message without a kind");
        let mut odd = packet(17, b"x");
        odd[0] = 0x50;
        assert_eq!(Ipv6Packet::parse(&odd), None);
    }
}
