//! IPv4, IPv6, UDP and Ethernet headers: as much of them as tunnels need, read totally.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pn_core::MacAddr;

/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;

/// Length of an Ethernet header without tags, in octets.
pub const ETHERNET_LEN: usize = 14;

/// Length of an IPv4 header without options, in octets.
pub const IPV4_LEN: usize = 20;

/// Length of an IPv6 header without extensions, in octets.
pub const IPV6_LEN: usize = 40;

/// Length of a UDP header, in octets.
pub const UDP_LEN: usize = 8;

/// An IPv4 packet whose lengths hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Packet<'a> {
    octets: &'a [u8],
    header_len: usize,
}

impl<'a> Ipv4Packet<'a> {
    /// Reads a packet; what lies behind its total length, as Ethernet's padding does, is left out.
    #[must_use]
    pub fn parse(octets: &'a [u8]) -> Option<Self> {
        let header = octets.first_chunk::<IPV4_LEN>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] >> 4 != 4 || header_len < IPV4_LEN || header_len > total_len || total_len > octets.len() {
            return None;
        }
        Some(Self { octets: &octets[..total_len], header_len })
    }

    /// Returns the whole packet.
    #[must_use]
    pub const fn octets(&self) -> &'a [u8] {
        self.octets
    }

    /// Returns the source address.
    #[must_use]
    pub fn source(&self) -> Ipv4Addr {
        self.address(12)
    }

    /// Returns the destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        self.address(16)
    }

    /// Returns the protocol number of the payload.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.octets[9]
    }

    /// Returns whether this is one of several fragments.
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        // All but the reserved and the don't-fragment bit: more fragments, and the offset.
        self.octets[6] & 0x3f != 0 || self.octets[7] != 0
    }

    /// Returns what the packet carries.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.octets[self.header_len..]
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        let octets = self.octets[at..].first_chunk::<4>().expect("a header has 20 octets");
        Ipv4Addr::from(*octets)
    }
}

/// A UDP datagram whose lengths hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpDatagram<'a> {
    /// The port it comes from.
    pub source: u16,
    /// The port it is for.
    pub destination: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> UdpDatagram<'a> {
    /// Reads a datagram. The checksum is not looked at: whoever needs it knows what it covers.
    #[must_use]
    pub fn parse(octets: &'a [u8]) -> Option<Self> {
        let [a, b, c, d, e, f, _, _] = *octets.first_chunk::<UDP_LEN>()?;
        let payload = octets.get(UDP_LEN..usize::from(u16::from_be_bytes([e, f])))?;
        Some(Self { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]), payload })
    }
}

/// A UDP datagram in an unfragmented IP packet without options or extensions, as tunnels exchange it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpPacket<'a> {
    /// The address it comes from.
    pub source: IpAddr,
    /// The address it is for.
    pub destination: IpAddr,
    /// The datagram.
    pub udp: UdpDatagram<'a>,
}

impl<'a> UdpPacket<'a> {
    /// Reads a packet of either version.
    #[must_use]
    pub fn parse(octets: &'a [u8]) -> Option<Self> {
        if octets.first()? >> 4 == 6 {
            let header = octets.first_chunk::<IPV6_LEN>()?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let address =
                |at: usize| header[at..].first_chunk::<16>().map(|octets| IpAddr::from(Ipv6Addr::from(*octets)));
            let payload = octets.get(IPV6_LEN..IPV6_LEN + len)?;
            if header[6] != UDP {
                return None;
            }
            return Some(Self { source: address(8)?, destination: address(24)?, udp: UdpDatagram::parse(payload)? });
        }
        let packet = Ipv4Packet::parse(octets)?;
        if packet.protocol() != UDP || packet.is_fragment() {
            return None;
        }
        let udp = UdpDatagram::parse(packet.payload())?;
        Some(Self { source: packet.source().into(), destination: packet.destination().into(), udp })
    }

    /// Writes the IP and UDP headers of a packet with `payload_len` octets of payload and returns how long they are.
    ///
    /// The UDP checksum of IPv4 is 0, "not computed" (RFC 768). For IPv6 it is 0 as well, which RFC 6935 allows to tunnels.
    ///
    /// # Panics
    /// If `out` is shorter than the headers, the addresses are of two families, or the packet is longer than 65 535 octets:
    /// the caller has bounded it by the network's MTU.
    pub fn write_headers(
        out: &mut [u8],
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
        payload_len: usize,
    ) -> usize {
        let udp_len = u16::try_from(UDP_LEN + payload_len).expect("bounded by the MTU");
        let ip_len = match (source.0, destination.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let total = u16::try_from(IPV4_LEN).expect("20").checked_add(udp_len).expect("bounded by the MTU");
                write_ipv4_header(out, UDP, from, to, total);
                IPV4_LEN
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                out[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                out[4..6].copy_from_slice(&udp_len.to_be_bytes());
                out[6..8].copy_from_slice(&[UDP, HOP_LIMIT]);
                out[8..24].copy_from_slice(&from.octets());
                out[24..40].copy_from_slice(&to.octets());
                IPV6_LEN
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("{} and {} are of two families", source.0, destination.0)
            }
        };
        let udp = &mut out[ip_len..ip_len + UDP_LEN];
        udp[..2].copy_from_slice(&source.1.to_be_bytes());
        udp[2..4].copy_from_slice(&destination.1.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
        udp[6..].fill(0);
        ip_len + UDP_LEN
    }

    /// Sets the lengths, and the IPv4 checksum with them, in headers that [`write_headers`](Self::write_headers) wrote.
    ///
    /// # Panics
    /// If there are no such headers, or `total` is less than them or more than 65 535.
    pub(crate) fn set_len(headers: &mut [u8], total: usize) {
        let total = u16::try_from(total).expect("bounded by the MTU");
        let ip_len = if headers[0] >> 4 == 4 { IPV4_LEN } else { IPV6_LEN };
        let udp_len = total - ip_len as u16;
        if ip_len == IPV4_LEN {
            headers[2..4].copy_from_slice(&total.to_be_bytes());
            headers[10..12].fill(0);
            let checksum = checksum(&headers[..IPV4_LEN]);
            headers[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            headers[4..6].copy_from_slice(&udp_len.to_be_bytes());
        }
        headers[ip_len + 4..ip_len + 6].copy_from_slice(&udp_len.to_be_bytes());
    }
}

/// Time to live of what is sent through tunnels.
const HOP_LIMIT: u8 = 64;

/// Writes an IPv4 header without options that forbids fragmentation.
fn write_ipv4_header(out: &mut [u8], protocol: u8, from: Ipv4Addr, to: Ipv4Addr, total_len: u16) {
    out[..2].copy_from_slice(&[0x45, 0]);
    out[2..4].copy_from_slice(&total_len.to_be_bytes());
    out[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
    out[8..12].copy_from_slice(&[HOP_LIMIT, protocol, 0, 0]);
    out[12..16].copy_from_slice(&from.octets());
    out[16..20].copy_from_slice(&to.octets());
    let checksum = checksum(&out[..IPV4_LEN]);
    out[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Returns the Internet checksum (RFC 1071) of an even number of octets.
fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An Ethernet frame without tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetFrame<'a> {
    /// Who it is for.
    pub destination: MacAddr,
    /// Who it comes from.
    pub source: MacAddr,
    /// What it carries.
    pub ethertype: u16,
    /// The packet it carries.
    pub payload: &'a [u8],
}

impl<'a> EthernetFrame<'a> {
    /// Reads a frame.
    #[must_use]
    pub fn parse(octets: &'a [u8]) -> Option<Self> {
        let (header, payload) = octets.split_first_chunk::<ETHERNET_LEN>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        let (destination, source) = (MacAddr::new([d0, d1, d2, d3, d4, d5]), MacAddr::new([s0, s1, s2, s3, s4, s5]));
        Some(Self { destination, source, ethertype: u16::from_be_bytes([t0, t1]), payload })
    }

    /// Returns the header of a frame.
    #[must_use]
    pub fn header(destination: MacAddr, source: MacAddr, ethertype: u16) -> [u8; ETHERNET_LEN] {
        let mut header = [0; ETHERNET_LEN];
        header[..6].copy_from_slice(&destination.octets());
        header[6..12].copy_from_slice(&source.octets());
        header[12..].copy_from_slice(&ethertype.to_be_bytes());
        header
    }
}

/// Answers a UDP datagram with another: an IPv4 packet from where it was sent, to where it came from.
///
/// `None` where the reply does not fit into one packet of 65 535 octets.
#[must_use]
pub fn udp_reply(request: &Ipv4Packet<'_>, udp: &UdpDatagram<'_>, payload: &[u8]) -> Option<Vec<u8>> {
    let headers = IPV4_LEN + UDP_LEN;
    if headers + payload.len() > usize::from(u16::MAX) {
        return None;
    }
    let mut reply = vec![0; headers + payload.len()];
    let (from, to) = ((request.destination().into(), udp.destination), (request.source().into(), udp.source));
    UdpPacket::write_headers(&mut reply, from, to, payload.len());
    reply[headers..].copy_from_slice(payload);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
            any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pair in addresses(), ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut octets = vec![0; 48];
            let (source, destination) = pair;
            let len = UdpPacket::write_headers(&mut octets, (source, ports.0), (destination, ports.1), payload.len());
            octets.truncate(len);
            octets.extend(&payload);
            let udp = UdpDatagram { source: ports.0, destination: ports.1, payload: &payload };
            prop_assert_eq!(UdpPacket::parse(&octets), Some(UdpPacket { source, destination, udp }));
            if source.is_ipv4() {
                prop_assert_eq!(checksum(&octets[..IPV4_LEN]), 0, "a header with its checksum sums to zero");
            }
            for cut in 0..octets.len() {
                prop_assert_eq!(UdpPacket::parse(&octets[..cut]), None, "cut to {}", cut);
            }
        }

        #[test]
        fn reading_is_total(octets: Vec<u8>) {
            if let Some(packet) = Ipv4Packet::parse(&octets) {
                prop_assert!(packet.payload().len() + IPV4_LEN <= octets.len());
            }
            let _ = (UdpPacket::parse(&octets), UdpDatagram::parse(&octets), EthernetFrame::parse(&octets));
        }

        #[test]
        fn frames_round_trip(destination: [u8; 6], source: [u8; 6], ethertype: u16, payload: Vec<u8>) {
            let (destination, source) = (MacAddr::new(destination), MacAddr::new(source));
            let octets = [&EthernetFrame::header(destination, source, ethertype)[..], &payload].concat();
            prop_assert_eq!(EthernetFrame::parse(&octets), Some(EthernetFrame { destination, source, ethertype, payload: &payload }));
        }
    }

    #[test]
    fn lies_about_lengths_and_fragments_are_refused() {
        let (from, to) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let mut good = vec![0; 28];
        UdpPacket::write_headers(&mut good, (from.into(), 1), (to.into(), 2), 0);
        assert!(UdpPacket::parse(&good).is_some());
        for (at, value) in
            [(0, 0x44), (0, 0x46), (0, 0x55), (3, 29), (3, 19), (6, 0x20), (7, 1), (9, 6), (25, 7), (25, 9)]
        {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(UdpPacket::parse(&bad), None, "octet {at} = {value:#x}");
        }
    }
}
