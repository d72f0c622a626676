//! Cutting and putting together against each other.

use pn_backend_userspace::offload::Coalescer;
use proptest::prelude::*;

use super::*;

const DEVICE: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

/// What the kernel hands over: a container's TCP packet of many segments, in VXLAN.
fn whole(is_outer_ipv4: bool, is_inner_ipv4: bool, payload: &[u8], size: u16) -> Vec<u8> {
    let mut inner = Vec::new();
    let tcp_len = (20 + payload.len()) as u16;
    if is_inner_ipv4 {
        inner.extend([0x45, 0]);
        inner.extend((20 + tcp_len).to_be_bytes());
        inner.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 240, 0, 1, 10, 240, 0, 2]);
    } else {
        inner.extend([0x60, 0, 0, 0]);
        inner.extend(tcp_len.to_be_bytes());
        inner.extend([6, 64]);
        inner.extend([0xfd; 32]);
    }
    let ip_len = inner.len() as u16;
    inner.extend([0x80, 1, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    inner.extend(payload);
    let ethertype: u16 = if is_inner_ipv4 { 0x0800 } else { 0x86dd };
    let inside = [&[8, 0, 0, 0, 0, 0, 7, 0, 2, 0, 10, 240, 0, 2, 2, 0, 10, 240, 0, 1][..], &ethertype.to_be_bytes()];
    let (from, to): (IpAddr, IpAddr) = if is_outer_ipv4 {
        ([100, 64, 0, 1].into(), [100, 64, 0, 2].into())
    } else {
        ([0xfd64, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd64, 0, 0, 0, 0, 0, 0, 2].into())
    };
    let kind = if is_inner_ipv4 { 1 } else { 4 };
    let mut header = [0; 10];
    (header[0], header[1]) = (1, kind);
    header[2..4].copy_from_slice(&(ip_len + 20).to_ne_bytes());
    header[4..6].copy_from_slice(&size.to_ne_bytes());
    header[6..8].copy_from_slice(&ip_len.to_ne_bytes());
    header[8..10].copy_from_slice(&16u16.to_ne_bytes());
    let inside = *inside.concat().first_chunk().unwrap();
    let outside = Outside { from: (from, 50_000), to: (to, vxlan::PORT), inside };
    let mut frame = [Head::of(&outside, header, inner.len(), DEVICE).octets(), &inner].concat();
    // As the kernel asks it for.
    frame[0] |= OUTER_CHECKSUM;
    frame
}

fn packets(frame: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut packets = Vec::new();
    let all = &mut packets;
    cut(&mut frame.to_vec(), |to| {
        Ok(move |packet: &[u8]| {
            assert_eq!(UdpPacket::parse(packet).map(|packet| packet.destination), Some(to));
            all.push(packet.to_vec());
        })
    })?;
    Ok(packets)
}

/// Puts packets together as the carrier does.
fn merge(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut buffer = packets.concat();
    let (mut coalescer, mut end) = (Coalescer::below(MAX_OUTSIDE), 0);
    for packet in packets {
        end += packet.len();
        let (outside, octets) = Outside::split(&UdpPacket::parse(packet).unwrap()).unwrap();
        coalescer.push(outside, &buffer, end - octets.len()..end);
    }
    let mut frames = Vec::new();
    coalescer.drain(&mut buffer, |merged, buffer| {
        let rest = merged.rest.iter().map(|range| &buffer[range.clone()]).collect::<Vec<_>>().concat();
        let head = Head::of(merged.place, merged.header, merged.first.len() + rest.len(), DEVICE);
        frames.push([head.octets(), merged.first, &rest].concat());
    });
    frames
}

proptest! {
    #[test]
    fn what_is_cut_is_put_together_again(
        is_outer_ipv4: bool, is_inner_ipv4: bool, size in 500u16..1400, payload in prop::collection::vec(any::<u8>(), 1500..40_000),
    ) {
        let frame = whole(is_outer_ipv4, is_inner_ipv4, &payload, size);
        let cut = packets(&frame).unwrap();
        prop_assert_eq!(cut.len(), payload.len().div_ceil(size.into()));
        let longest = outside_len(if is_outer_ipv4 { [0, 0, 0, 0].into() } else { [0; 16].into() }) + 60 + usize::from(size);
        prop_assert!(cut.iter().all(|packet| packet.len() <= longest));
        let frames = merge(&cut);
        prop_assert_eq!(frames.len(), 1);
        // All but the checksums that are left to the kernel, which a second cut completes.
        prop_assert_eq!(frames[0].len(), frame.len());
        prop_assert_eq!(&frames[0][1..PACKET], &frame[1..PACKET]);
        prop_assert_eq!(packets(&frames[0]).unwrap(), cut);
    }

    #[test]
    fn what_no_tunnel_could_carry_is_not_made(size in 1300u16..1400, payload in prop::collection::vec(any::<u8>(), 60_000..65_400)) {
        // Two of these are more than one packet may be.
        let packets = [packets(&whole(false, false, &payload, size)).unwrap(), packets(&whole(false, false, &payload, size)).unwrap()];
        for frame in merge(&packets.concat()) {
            prop_assert!(frame.len() - PACKET <= 65_535 + IPV6_LEN);
        }
    }

    #[test]
    fn reading_is_total(mut frame in prop::collection::vec(any::<u8>(), 0..300), is_outer_ipv4: bool, at: prop::sample::Index, octet: u8) {
        let _ = packets(&frame);
        frame = whole(is_outer_ipv4, true, &[7; 3000], 1000);
        let at = at.index(frame.len().min(150));
        frame[at] = octet;
        let _ = packets(&frame);
        frame.truncate(at);
        let _ = packets(&frame);
    }
}

#[test]
fn other_networks_senders_and_kinds_stay_apart() {
    let cut = packets(&whole(true, true, &[7; 4000], 1000)).unwrap();
    let mut other = cut.clone();
    // The network of the second packet is another.
    other[1][34] ^= 1;
    assert_eq!((merge(&cut).len(), merge(&other).len() > 1), (1, true));
    // What says that it is IPv6 and is not goes as it is.
    let mut liar = cut[0].clone();
    liar[48..50].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(Outside::split(&UdpPacket::parse(&liar).unwrap()), None);
}
