//! UDP: datagrams, and the packets that tunnels exchange.

use core::net::{IpAddr, Ipv6Addr};

use super::{IPV4_LEN, IPV6_LEN, Ipv4Packet, UDP, UDP_LEN, set_ipv4_checksum, write_ip_header};

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
        if packet.protocol() != UDP || packet.fragment().is_some() {
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
        let ip_len = write_ip_header(out, UDP, source.0, destination.0, udp_len.into());
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
            set_ipv4_checksum(headers);
        } else {
            headers[4..6].copy_from_slice(&udp_len.to_be_bytes());
        }
        headers[ip_len + 4..ip_len + 6].copy_from_slice(&udp_len.to_be_bytes());
    }
}

/// Answers a UDP datagram of IPv4 with another: a packet from where it was sent, to where it came from, without a checksum.
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
