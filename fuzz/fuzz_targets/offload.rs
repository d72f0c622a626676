//! What a container's kernel hands over, header and packet, cut in place; and packets that are put together.
//!
//! Whatever is cut has right lengths and checksums, and is put together again; whatever is put together is cut to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pn_backend_userspace::offload::{Coalescer, Segments, VirtioHeader, complete_checksum};

/// Room in front of a packet, which is overwritten as a driver does.
const ROOM: usize = 128;
const WRAP: usize = 70;

/// Cuts a packet, if it is one that can be cut.
fn cut(header: &VirtioHeader, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut buffer = [&[0xee; ROOM][..], packet].concat();
    let end = buffer.len();
    let mut segments = Segments::new(header, &buffer, ROOM..end)?;
    let (count, largest, mut made) = (segments.remaining(), segments.largest(), Vec::new());
    while let Some(segment) = segments.next(&mut buffer) {
        assert!(segment.end <= end && segment.len() <= largest);
        made.push(buffer[segment.clone()].to_vec());
        buffer[segment.start - WRAP..segment.start].fill(0xee);
    }
    assert_eq!(made.len(), count);
    Some(made)
}

/// Puts packets together.
fn merge(packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let (mut buffer, mut at) = (packets.concat(), 0);
    let mut coalescer = Coalescer::new();
    for packet in packets {
        coalescer.push((), &buffer, at..at + packet.len());
        at += packet.len();
    }
    let mut merged = Vec::new();
    coalescer.drain(&mut buffer, |packet, buffer| {
        let rest = packet.rest.iter().flat_map(|range| &buffer[range.clone()]);
        let whole = packet.first.iter().chain(rest).copied().collect();
        merged.push((VirtioHeader::parse(packet.header).expect("what is written is read"), whole));
    });
    merged
}

/// Blanks what may differ after a packet was put together and cut: the identification of IPv4, which means nothing where
/// fragments are forbidden, and checksums, where 0 and its complement are the same.
fn blank(mut packet: Vec<u8>) -> Vec<u8> {
    let (protocol, at) = match packet.first().map(|first| first >> 4) {
        Some(4) => (packet.get(9).copied(), usize::from(packet[0] & 0x0f) * 4),
        Some(6) => (packet.get(6).copied(), 40),
        _ => return packet,
    };
    let mut fields = if at == 40 && packet[0] >> 4 == 6 { vec![] } else { vec![4..6, 10..12] };
    match protocol {
        Some(6) => fields.push(at + 16..at + 18),
        Some(17) => fields.push(at + 6..at + 8),
        _ => {}
    }
    for field in fields {
        if let Some(octets) = packet.get_mut(field) {
            octets.fill(0);
        }
    }
    packet
}

fuzz_target!(|octets: &[u8]| {
    let Some((header, packet)) = octets.split_first_chunk() else {
        return;
    };
    let Some(header) = VirtioHeader::parse(*header) else {
        return;
    };
    if let Some(partial) = header.partial_checksum {
        let _ = complete_checksum(&mut packet.to_vec(), partial);
    }
    if let Some(segments) = cut(&header, packet) {
        let payload: usize = segments.iter().map(Vec::len).sum();
        assert!(payload >= packet.len(), "nothing is lost");
        for (merged, whole) in merge(&segments) {
            if merged.segmentation.is_some() {
                let again = cut(&merged, &whole).expect("what was put together can be cut");
                let segments: Vec<_> = segments.iter().cloned().map(blank).collect();
                assert!(again.into_iter().all(|piece| segments.contains(&blank(piece))));
            } else {
                assert!(segments.contains(&whole));
            }
        }
    }
    // The octets as packets of a length that they begin with.
    let mut packets = Vec::new();
    let mut rest = packet;
    while let Some((len, more)) = rest.split_first() {
        let (packet, more) = more.split_at(more.len().min(usize::from(*len)));
        packets.push(packet.to_vec());
        rest = more;
    }
    packets.retain(|packet| !packet.is_empty());
    let mut again = Vec::new();
    for (header, packet) in merge(&packets) {
        match header.segmentation {
            Some(_) => again.extend(cut(&header, &packet).expect("what was put together can be cut")),
            None => again.push(packet),
        }
    }
    let sorted = |packets: Vec<Vec<u8>>| {
        let mut packets: Vec<_> = packets.into_iter().map(blank).collect();
        packets.sort();
        packets
    };
    assert_eq!(sorted(again), sorted(packets));
});
