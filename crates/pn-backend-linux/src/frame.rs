//! Frames of the tunnel's device: VXLAN packets of up to 64 kB with what the kernel says of them, cut into packets that cross
//! the tunnel, and packets that crossed it, put together again. Pure, but for writing to the device.

use core::net::IpAddr;
use core::ops::Range;

use pn_backend_userspace::offload::{Segments, VirtioHeader, complete_checksum};
use pn_core::MacAddr;
use pn_overlay::DropReason;
use pn_overlay::packet::{ETHERNET_LEN, ETHERTYPE_IPV4, EthernetFrame, IPV4_LEN, IPV6_LEN, UDP_LEN, UdpPacket};
use pn_overlay::vxlan;

use crate::sys::HEADER_LEN;

/// Where the packet of a frame begins: behind what the kernel says of it and the Ethernet header.
pub(crate) const PACKET: usize = HEADER_LEN + ETHERNET_LEN;

/// What VXLAN puts in front of a container's packet, behind UDP.
const INSIDE: usize = vxlan::HEADER_LEN + ETHERNET_LEN;

/// The longest headers in front of a container's packet.
pub(crate) const MAX_OUTSIDE: usize = IPV6_LEN + UDP_LEN + INSIDE;

const ETHERTYPE_IPV6: u16 = 0x86dd;

/// `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`: the outer checksum is to be completed, too. We leave it out instead.
const OUTER_CHECKSUM: u8 = 0x08;

/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4` and `_IPV6`: it is a packet in a tunnel that is to be cut.
const TUNNEL_IPV4: u8 = 0x20;
const TUNNEL_IPV6: u8 = 0x40;

/// Gives every packet that a frame holds to what `take_to` returns for where they are to go, which is one place. The frame is overwritten.
///
/// # Errors
/// [`DropReason::NotIp`] for what is no UDP or not what the kernel says of it, and those of `take_to`.
pub(crate) fn cut<Take: FnMut(&[u8])>(
    frame: &mut [u8],
    take_to: impl FnOnce(IpAddr) -> Result<Take, DropReason>,
) -> Result<(), DropReason> {
    let mut header: [u8; VirtioHeader::LEN] = *frame.first_chunk().ok_or(DropReason::NotIp)?;
    let is_tunnel = header[1] & (TUNNEL_IPV4 | TUNNEL_IPV6) != 0;
    header[0] &= !OUTER_CHECKSUM;
    header[1] &= !(TUNNEL_IPV4 | TUNNEL_IPV6);
    let told = VirtioHeader::parse(header).ok_or(DropReason::NotIp)?;
    let packet = UdpPacket::parse(frame.get(PACKET..).unwrap_or_default()).ok_or(DropReason::NotIp)?;
    let (from, to) = ((packet.source, packet.udp.source), (packet.destination, packet.udp.destination));
    if told.segmentation.is_none() {
        if let Some((start, offset)) = told.partial_checksum {
            let start = start.checked_sub(ETHERNET_LEN as u16).ok_or(DropReason::NotIp)?;
            // One that lies outside leaves the packet with the checksum it has.
            let _ = complete_checksum(&mut frame[PACKET..], (start, offset));
        }
        take_to(to.0)?(&frame[PACKET..]);
        return Ok(());
    }
    let inside: [u8; INSIDE] = *packet.udp.payload.first_chunk().filter(|_| is_tunnel).ok_or(DropReason::NotIp)?;
    let outside = outside_len(to.0);
    let whole = PACKET + outside..frame.len();
    let mut segments = Segments::new(&told, frame, whole).ok_or(DropReason::NotIp)?;
    let mut take = take_to(to.0)?;
    while let Some(Range { start, end }) = segments.next(frame) {
        // Over the end of the packet before, which was taken.
        let begin = start - outside;
        UdpPacket::write_headers(&mut frame[begin..], from, to, end - start + INSIDE);
        frame[start - INSIDE..start].copy_from_slice(&inside);
        take(&frame[begin..end]);
    }
    Ok(())
}

/// Returns how long all headers are in front of a container's packet.
const fn outside_len(to: IpAddr) -> usize {
    (if to.is_ipv4() { IPV4_LEN } else { IPV6_LEN }) + UDP_LEN + INSIDE
}

/// What is in front of containers' packets that crossed the tunnel: those of which it is the same may be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outside {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    inside: [u8; INSIDE],
}

impl Outside {
    /// Splits a packet that crossed the tunnel. `None` for what is no VXLAN with an IP packet in it.
    pub(crate) fn split<'a>(packet: &UdpPacket<'a>) -> Option<(Self, &'a [u8])> {
        let (inside, octets) = packet.udp.payload.split_first_chunk::<INSIDE>()?;
        let ethertype = match octets.first()? >> 4 {
            4 => ETHERTYPE_IPV4,
            6 => ETHERTYPE_IPV6,
            _ => return None,
        };
        let is_ip = inside.last_chunk() == Some(&ethertype.to_be_bytes());
        let (from, to) = ((packet.source, packet.udp.source), (packet.destination, packet.udp.destination));
        (is_ip && to.1 == vxlan::PORT).then_some((Self { from, to, inside: *inside }, octets))
    }
}

/// What a frame begins with.
pub(crate) struct Head {
    octets: [u8; PACKET + MAX_OUTSIDE],
    len: usize,
}

impl Head {
    /// Makes what is in front of a container's packet of so many octets, which the virtio header says how to cut.
    pub(crate) fn of(outside: &Outside, header: [u8; VirtioHeader::LEN], len: usize, device: MacAddr) -> Self {
        let Outside { from, to, inside } = outside;
        let mut head = Self::begin(*from, *to, INSIDE + len, device);
        head.octets[head.len..head.len + INSIDE].copy_from_slice(inside);
        let (udp, inner) = (head.len - HEADER_LEN - UDP_LEN, head.len - HEADER_LEN + INSIDE);
        head.len += INSIDE;
        let mut header = VirtioHeader::shifted(header, inner as i16);
        if header[1] != 0 {
            header[1] |= if to.0.is_ipv4() { TUNNEL_IPV4 } else { TUNNEL_IPV6 };
            head.octets[HEADER_LEN - 4..HEADER_LEN - 2].copy_from_slice(&(udp as u16).to_le_bytes());
            head.octets[HEADER_LEN - 2..HEADER_LEN].copy_from_slice(&(inner as u16).to_le_bytes());
        }
        head.octets[..header.len()].copy_from_slice(&header);
        head
    }

    /// Makes what is in front of a datagram of so many octets.
    pub(crate) fn begin(from: (IpAddr, u16), to: (IpAddr, u16), len: usize, device: MacAddr) -> Self {
        let mut octets = [0; PACKET + MAX_OUTSIDE];
        let ethertype = if to.0.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        octets[HEADER_LEN..PACKET].copy_from_slice(&EthernetFrame::header(device, device, ethertype));
        let headers = UdpPacket::write_headers(&mut octets[PACKET..], from, to, len);
        Self { octets, len: PACKET + headers }
    }

    pub(crate) fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// Cuts a frame, puts together what it was cut to, and cuts that again, for the fuzz target. Returns the packets of the first cut and
/// of the second.
#[cfg(fuzzing)]
pub fn there_and_back(frame: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let packets = |frame: &[u8]| {
        let mut packets = Vec::new();
        let all = &mut packets;
        // Whatever is wrong with it, nothing was made of it before that was found.
        let _: Result<(), DropReason> =
            cut(&mut frame.to_vec(), |_| Ok(move |packet: &[u8]| all.push(packet.to_vec())));
        packets
    };
    let cut = packets(frame);
    let (mut buffer, mut end) = (cut.concat(), 0);
    let mut coalescer = pn_backend_userspace::offload::Coalescer::below(MAX_OUTSIDE);
    for packet in &cut {
        end += packet.len();
        if let Some((outside, octets)) = UdpPacket::parse(packet).and_then(|packet| Outside::split(&packet)) {
            // What is behind the packet is none of its octets.
            let start = end - packet.len() + (octets.as_ptr().addr() - packet.as_ptr().addr());
            coalescer.push(outside, &buffer, start..start + octets.len());
        }
    }
    let mut again = Vec::new();
    coalescer.drain(&mut buffer, |merged, buffer| {
        let rest = merged.rest.iter().flat_map(|range| &buffer[range.clone()]).copied().collect::<Vec<_>>();
        let head = Head::of(merged.place, merged.header, merged.first.len() + rest.len(), MacAddr::new([2; 6]));
        again.extend(packets(&[head.octets(), merged.first, &rest].concat()));
    });
    (cut, again)
}

#[cfg(test)]
mod tests;
