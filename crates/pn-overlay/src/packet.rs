//! IPv4, IPv6, UDP and Ethernet headers: as much of them as tunnels need, read totally.

use core::net::{IpAddr, Ipv4Addr};

use pn_core::MacAddr;

mod ipv6;
mod udp;

pub use ipv6::{FRAGMENT, FRAGMENT_LEN, Ipv6Packet};
pub use udp::{UdpDatagram, UdpPacket, udp_reply};

/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;

/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Length of an Ethernet header without tags, in octets.
pub const ETHERNET_LEN: usize = 14;

/// Length of an IPv4 header without options, in octets.
pub const IPV4_LEN: usize = 20;

/// Length of an IPv6 header without extensions, in octets.
pub const IPV6_LEN: usize = 40;

/// Length of a UDP header, in octets.
pub const UDP_LEN: usize = 8;

/// A packet of either version, as networks carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpPacket<'a> {
    /// Of IPv4.
    V4(Ipv4Packet<'a>),
    /// Of IPv6.
    V6(Ipv6Packet<'a>),
}

/// What a fragment says of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// What the fragments of a packet have in common, besides addresses and protocol.
    pub identification: u32,
    /// Where it begins, in octets.
    pub offset: usize,
    /// Whether others follow it.
    pub more: bool,
}

impl<'a> IpPacket<'a> {
    /// Reads a packet; what lies behind its length, as Ethernet's padding does, is left out.
    #[must_use]
    pub fn parse(octets: &'a [u8]) -> Option<Self> {
        match octets.first()? >> 4 {
            6 => Ipv6Packet::parse(octets).map(Self::V6),
            _ => Ipv4Packet::parse(octets).map(Self::V4),
        }
    }

    /// Returns the whole packet.
    #[must_use]
    pub const fn octets(&self) -> &'a [u8] {
        match self {
            Self::V4(packet) => packet.octets(),
            Self::V6(packet) => packet.octets(),
        }
    }

    /// Returns the source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match self {
            Self::V4(packet) => packet.source().into(),
            Self::V6(packet) => packet.source().into(),
        }
    }

    /// Returns the destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match self {
            Self::V4(packet) => packet.destination().into(),
            Self::V6(packet) => packet.destination().into(),
        }
    }

    /// Returns the protocol number of the payload.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        match self {
            Self::V4(packet) => packet.protocol(),
            Self::V6(packet) => packet.protocol(),
        }
    }

    /// Returns the place of a fragment; `None` where the packet is whole.
    #[must_use]
    pub const fn fragment(&self) -> Option<Fragment> {
        match self {
            Self::V4(packet) => packet.fragment(),
            Self::V6(packet) => packet.fragment(),
        }
    }

    /// Returns what the packet carries.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        match self {
            Self::V4(packet) => packet.payload(),
            Self::V6(packet) => packet.payload(),
        }
    }

    /// Returns the EtherType of a frame that holds it.
    #[must_use]
    pub const fn ethertype(&self) -> u16 {
        match self {
            Self::V4(_) => ETHERTYPE_IPV4,
            Self::V6(_) => ETHERTYPE_IPV6,
        }
    }
}

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

    /// Returns the place of a fragment; `None` where the packet is whole.
    #[must_use]
    pub const fn fragment(&self) -> Option<Fragment> {
        let octets = self.octets;
        // All but the reserved and the don't-fragment bit: more fragments, and the offset.
        let word = u16::from_be_bytes([octets[6] & 0x3f, octets[7]]);
        if word == 0 {
            return None;
        }
        let identification = u16::from_be_bytes([octets[4], octets[5]]) as u32;
        Some(Fragment { identification, offset: (word & 0x1fff) as usize * 8, more: word & 0x2000 != 0 })
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

/// Time to live of what is sent through tunnels.
const HOP_LIMIT: u8 = 64;

/// Writes the header of an IP packet with `payload_len` octets of payload and returns how long it is. One of IPv4 has no
/// options and forbids fragmentation, one of IPv6 has no extensions.
///
/// # Panics
/// If `out` is shorter than the header, the addresses are of two families, or the packet is longer than its header can say.
pub fn write_ip_header(out: &mut [u8], protocol: u8, from: IpAddr, to: IpAddr, payload_len: usize) -> usize {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(IPV4_LEN + payload_len).expect("bounded by the MTU");
            out[..2].copy_from_slice(&[0x45, 0]);
            out[2..4].copy_from_slice(&total.to_be_bytes());
            out[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            out[8..12].copy_from_slice(&[HOP_LIMIT, protocol, 0, 0]);
            out[12..16].copy_from_slice(&from.octets());
            out[16..20].copy_from_slice(&to.octets());
            set_ipv4_checksum(out);
            IPV4_LEN
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let len = u16::try_from(payload_len).expect("bounded by the MTU");
            out[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            out[4..6].copy_from_slice(&len.to_be_bytes());
            out[6..8].copy_from_slice(&[protocol, HOP_LIMIT]);
            out[8..24].copy_from_slice(&from.octets());
            out[24..40].copy_from_slice(&to.octets());
            IPV6_LEN
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            panic!("{from} and {to} are of two families")
        }
    }
}

/// Writes the checksum of an IPv4 header without options.
///
/// # Panics
/// If there is no such header.
pub fn set_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = checksum(&header[..IPV4_LEN]);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
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

    /// Returns the header of the frame that carries a packet from one container to another, whose MAC addresses follow from
    /// their addresses. Of the packet no more is needed than its IP header.
    #[must_use]
    pub fn header_of(packet: &[u8]) -> Option<[u8; ETHERNET_LEN]> {
        // An IPv6 address ends as the container's IPv4 address.
        let (ethertype, from_end, to_end) = match packet.first()? >> 4 {
            4 => (ETHERTYPE_IPV4, 16, 20),
            6 => (ETHERTYPE_IPV6, 24, 40),
            _ => return None,
        };
        let mac = |end: usize| Some(MacAddr::of_ipv4(Ipv4Addr::from(*packet.get(..end)?.last_chunk::<4>()?)));
        Some(Self::header(mac(to_end)?, mac(from_end)?, ethertype))
    }
}

#[cfg(test)]
mod tests;
