//! Packets on their way: out of the tunnel, out of interfaces.

use core::iter::once;
use core::net::SocketAddr;
use core::ops::Range;
use core::sync::atomic::Ordering;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use pn_core::{ContainerId, NetworkId};
use pn_overlay::packet::{ETHERNET_LEN, EthernetFrame, IPV6_LEN, IpPacket, UDP, UdpDatagram, udp_reply};
use pn_overlay::{DropReason, Opener, Route};

use super::{Attached, Crew, Driver, crew};
use crate::offload::{Segments, VirtioHeader, complete_checksum};
use crate::port::{DNS_PORT, Owner};
use crate::tap::Direction;

/// Batches of datagrams taken from the underlay before containers get their turn.
const BATCHES: usize = 4;

/// Packets that an interface sends before others get their turn, and octets.
const READS: usize = 64;
const READ_OCTETS: usize = 256 * 1024;

/// Room in front of a packet for all that it is wrapped into.
const HEADROOM: usize = 128;

/// What a packet of an interface is read to.
pub(super) const PACKET_BUFFER: usize = HEADROOM + 65_536;

/// What datagrams are opened to: twice the longest, so that what one batch brings is seldom written in two.
pub(super) const OPENED_BUFFER: usize = 2 * 65_536;

/// What a handshake message needs.
const MIN_BUFFER: usize = 148;

/// Pieces that a packet is merged from, besides its first.
const MAX_PIECES: usize = 127;

/// Octets that wait for the underlay before they are sent, though there may be more to come.
pub(super) const FLUSH: usize = 60_000;

impl Driver {
    /// Takes datagrams from the underlay.
    pub(super) fn receive(&mut self) {
        for _ in 0..BATCHES {
            // An error is an ICMP message that some earlier datagram caused; the next call takes the next datagrams.
            let (count, more) = self.underlay.receive().unwrap_or((0, true));
            let tunnel = Arc::clone(&self.tunnel);
            let tunnel = crew::read(&tunnel);
            let mut opener = tunnel.opener();
            for message in 0..count {
                let (received, _) = self.underlay.message(message);
                let mut start = 0;
                // An empty message is an empty datagram.
                while start < received.len.max(1) {
                    let end = start + received.segment.max(1);
                    let datagram = start..end.min(received.len);
                    if let Err(reason) = self.open(&mut opener, received.from, message, datagram) {
                        self.shared.drops.count(reason);
                    }
                    start = end;
                }
            }
            if !more {
                break;
            }
        }
        // Not before: where each datagram is a message of its own, a batch is little to put together.
        self.give_opened();
    }

    fn open(
        &mut self,
        opener: &mut Opener<'_>,
        from: SocketAddr,
        message: usize,
        datagram: Range<usize>,
    ) -> Result<(), DropReason> {
        if self.opened.len() - self.opened_to < datagram.len().max(MIN_BUFFER) {
            self.give_opened();
        }
        let datagram = &self.underlay.message(message).1[datagram];
        if let Some(tap) = &self.tap {
            tap.datagram(Direction::Received, from, datagram);
        }
        let buffer = &mut self.opened[self.opened_to..];
        let base = buffer.as_ptr().addr();
        let opened = opener.open(from, datagram, &mut self.outbox, buffer)?;
        let Some((node, packet)) = opened else {
            return Ok(());
        };
        let ingress = self.vtep.ingress_after(node, &packet, &mut self.admitted)?;
        let (network, container, packet) = (ingress.network, ingress.container, ingress.packet.octets());
        let (number, key) = (container.as_u128() as u64, (network, container));
        let place = match self.places.get(number, &key) {
            Some(place) => *place,
            None => {
                let place = place_of(&self.tuns, &self.tun_of, &self.tap_of, key);
                self.places.insert(number, key, place);
                place
            }
        };
        // It waits for those that follow it, where it lies.
        let start = self.opened_to + (packet.as_ptr().addr() - base);
        let packet = start..start + packet.len();
        self.opened_to = packet.end;
        match place {
            Some(place) => self.coalescer.push(place, &self.opened, packet),
            None => self.arrived.push((key, packet)),
        }
        Ok(())
    }

    /// Gives interfaces what was opened for them, as few packets, and stacks what was opened for each, at once.
    fn give_opened(&mut self) {
        let mut arrived = core::mem::take(&mut self.arrived);
        // What is for one lies together then, in its order.
        arrived.sort_unstable_by_key(|(key, packet)| (*key, packet.start));
        for packets in arrived.chunk_by(|(a, _), (b, _)| a == b) {
            let ((network, container), _) = packets[0];
            self.give(network, Owner::Container(container), |driver, take| {
                packets.iter().for_each(|(_, packet)| take(&driver.opened[packet.clone()]));
            });
        }
        arrived.clear();
        self.arrived = arrived;
        let (tuns, drops) = (&self.tuns, &self.shared.drops);
        self.coalescer.drain(&mut self.opened, |merged, buffer| {
            let rest = merged.rest.iter().map(|range| &buffer[range.clone()]);
            if let Err(reason) = write(tuns, *merged.place, merged.header, merged.first, rest) {
                (0..=merged.rest.len()).for_each(|_| drops.count(reason));
            }
        });
        self.opened_to = 0;
    }

    /// Gives packets to a container or resolver of this node.
    pub(super) fn deliver<'a>(&mut self, network: NetworkId, to: Owner, packets: impl Iterator<Item = &'a [u8]>) {
        if let Owner::Container(container) = to
            && let Some(place) = self.place_of(network, container)
        {
            let header = VirtioHeader::default().emit(false);
            let results = packets.map(|packet| write(&self.tuns, place, header, packet, [].into_iter()));
            return results.filter_map(Result::err).for_each(|reason| self.shared.drops.count(reason));
        }
        self.give(network, to, |_, take| packets.for_each(take));
    }

    /// Gives packets to a stack of this node, which is locked once for all that `each` has it take; or to the thread that has it.
    pub(super) fn give(&mut self, network: NetworkId, to: Owner, each: impl FnOnce(&mut Self, &mut dyn FnMut(&[u8]))) {
        let (mut dropped, mut lost) = (0, 0);
        if let Crew::Other(first) = &self.crew {
            dropped = Arc::clone(first).hand_over(network, to, |take| each(self, take));
        } else if let Some(stack) = self.stacks.get(&to).filter(|stack| stack.network == network).map(Arc::clone) {
            let now = self.now();
            let mut taking = stack.lock();
            each(self, &mut |packet| dropped += taking.ingress(packet, now));
            taking.announce();
            drop(taking);
            if !stack.is_queued.swap(true, Ordering::AcqRel) {
                self.due.push_back(stack);
            }
        } else {
            each(self, &mut |_| lost += 1);
        }
        (0..dropped).for_each(|_| self.shared.drops.count(DropReason::QueueFull));
        (0..lost).for_each(|_| self.shared.drops.count(DropReason::UnknownDestination));
    }

    /// Takes packets that a container's interface sends.
    pub(super) fn read(&mut self, place: usize) {
        let mut octets = 0;
        for _ in 0..READS {
            if octets >= READ_OCTETS {
                return;
            }
            let Some(attached) = self.tuns.get(place).and_then(Option::as_ref) else {
                return;
            };
            let start = HEADROOM - attached.link_len() - VirtioHeader::LEN;
            let len = match attached.tun.read(&mut self.packet[start..]) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // Its namespace is gone, and it with it.
                    tracing::warn!(network = %attached.network, %error, "an interface is broken");
                    self.remove_at(place);
                    return;
                }
            };
            octets += len;
            if let Err(reason) = self.forward_read(place, start..start + len) {
                self.shared.drops.count(reason);
            }
            if self.outbox.octets() >= FLUSH {
                self.flush();
            }
        }
    }

    /// Sends a packet that was read from an interface on its way.
    fn forward_read(&mut self, place: usize, read: Range<usize>) -> Result<(), DropReason> {
        let attached = self.tuns.get(place).and_then(Option::as_ref).ok_or(DropReason::UnknownDestination)?;
        let (network, link) = (attached.network, attached.link_len());
        let header = *self.packet[read.start..].first_chunk().expect("there is room for a header");
        let header = VirtioHeader::shifted(header, -(link as i16));
        let told = VirtioHeader::parse(header).ok_or(DropReason::NotIp)?;
        let whole = HEADROOM..read.end.max(HEADROOM);
        let packet = IpPacket::parse(&self.packet[whole.clone()]).ok_or(DropReason::NotIp)?;
        let container = match attached.container {
            Some(container) => container,
            None => {
                let network = self.vtep.plan().networks.get(&network).ok_or(DropReason::UnknownVni)?;
                let frame = EthernetFrame::parse(&self.packet[HEADROOM - link..read.end]).ok_or(DropReason::NotIp)?;
                if frame.ethertype != packet.ethertype() {
                    return Err(DropReason::NotIp);
                }
                let endpoint = network.endpoint_at(packet.source()).filter(|endpoint| endpoint.mac() == frame.source);
                endpoint.ok_or(DropReason::ForgedSource)?.container
            }
        };
        let mut pieces = Pieces::new(&told, &self.packet, whole.clone())?;
        let largest = pieces.largest();
        let route = self.vtep.route_after(network, container, &packet, largest, &mut self.routed)?;
        let to = match route {
            Route::Tunnel(wrap) => {
                let tunnel = Arc::clone(&self.tunnel);
                let tunnel = crew::read(&tunnel);
                let mut sealer = tunnel.sealer(wrap.via())?;
                while let Some(piece) = pieces.next(&mut self.packet) {
                    let start = wrap.write(&mut self.packet[..piece.end], piece.start);
                    if let Err(reason) = sealer.seal(&self.packet[start..piece.end], &mut self.outbox) {
                        self.shared.drops.count(reason);
                    }
                }
                if self.outbox.octets() >= FLUSH {
                    // Before another thread seals for that peer: what comes much later than that is taken for a replay.
                    self.flush();
                }
                return Ok(());
            }
            Route::Local(to) => match self.place_of(network, to) {
                // A bridge that sends us what its own port is for would have it back for ever.
                Some(same) if same == place => return Err(DropReason::UnknownDestination),
                // From kernel to kernel it needs no cutting.
                Some(place) => return write(&self.tuns, place, header, &self.packet[whole], [].into_iter()),
                None => Owner::Container(to),
            },
            Route::Resolver => match self.answer(network, &packet) {
                Some(None) => return Ok(()),
                Some(Some(reply)) => {
                    self.deliver(network, Owner::Container(container), once(&reply[..]));
                    return Ok(());
                }
                None => Owner::Resolver(network),
            },
        };
        self.give(network, to, |driver, take| {
            while let Some(piece) = pieces.next(&mut driver.packet) {
                take(&driver.packet[piece]);
            }
        });
        Ok(())
    }

    /// Answers a DNS query over UDP in place. `None` where the packet is none, or others have to be asked.
    pub(super) fn answer(&self, network: NetworkId, packet: &IpPacket<'_>) -> Option<Option<Vec<u8>>> {
        let IpPacket::V4(packet) = packet else { return None };
        let answerer = self.answerer.as_ref()?;
        let udp = (packet.protocol() == UDP && packet.fragment().is_none())
            .then(|| UdpDatagram::parse(packet.payload()))??;
        if udp.destination != DNS_PORT {
            return None;
        }
        let reply = answerer.answer(network, udp.payload)?;
        Some(reply.and_then(|reply| udp_reply(packet, &udp, &reply)))
    }

    /// Finds the interface that packets of a network for a container are written to.
    pub(super) fn place_of(&self, network: NetworkId, container: ContainerId) -> Option<usize> {
        place_of(&self.tuns, &self.tun_of, &self.tap_of, (network, container))
    }

    /// Sends what waits for the underlay.
    pub(super) fn flush(&mut self) {
        if let Some(tap) = &self.tap {
            self.outbox.iter().for_each(|(to, datagram)| tap.datagram(Direction::Sent, to, datagram));
        }
        self.underlay.send(&mut self.outbox, &self.shared.drops);
    }
}

/// Gives a packet, in pieces, to an interface; `header` says what there is to say of it.
pub(super) fn write<'a>(
    tuns: &[Option<Attached>],
    place: usize,
    header: [u8; VirtioHeader::LEN],
    first: &'a [u8],
    rest: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Result<(), DropReason> {
    let attached = tuns.get(place).and_then(Option::as_ref).ok_or(DropReason::UnknownDestination)?;
    let header = VirtioHeader::shifted(header, attached.link_len() as i16);
    let mut frame = [0; ETHERNET_LEN];
    if attached.container.is_none() {
        // The packet is not whole here, but its header is.
        frame = EthernetFrame::header_of(first).ok_or(DropReason::NotIp)?;
    }
    let mut pieces = [IoSlice::new(&[]); 3 + MAX_PIECES];
    pieces[..3].copy_from_slice(&[
        IoSlice::new(&header),
        IoSlice::new(&frame[..attached.link_len()]),
        IoSlice::new(first),
    ]);
    let count = 3 + rest.len();
    for (piece, octets) in pieces[3..].iter_mut().zip(rest) {
        *piece = IoSlice::new(octets);
    }
    attached.tun.write(&pieces[..count.min(pieces.len())]).map_err(|_| DropReason::NotTaken)
}

/// Finds the interface that packets of a network for a container are written to. While a network is held back, its plan may have a
/// container that has gone to another since.
fn place_of(
    tuns: &[Option<Attached>],
    tun_of: &HashMap<ContainerId, usize>,
    tap_of: &HashMap<NetworkId, usize>,
    (network, container): (NetworkId, ContainerId),
) -> Option<usize> {
    let is_in = |place: &&usize| matches!(tuns.get(**place), Some(Some(attached)) if attached.network == network);
    tun_of.get(&container).filter(is_in).or_else(|| tap_of.get(&network)).copied()
}

impl Attached {
    /// Returns how long the header is that a packet has in front of it here.
    const fn link_len(&self) -> usize {
        if self.container.is_some() { 0 } else { ETHERNET_LEN }
    }
}

/// The packets that one of an interface is sent as.
enum Pieces {
    One { packet: Range<usize>, partial_checksum: Option<(u16, u16)>, is_done: bool },
    Many(Segments),
}

impl Pieces {
    fn new(told: &VirtioHeader, buffer: &[u8], packet: Range<usize>) -> Result<Self, DropReason> {
        let partial_checksum = told.partial_checksum;
        // What was checked is not completed to something else.
        let header = match buffer[packet.start] >> 4 {
            4 => usize::from(buffer[packet.start] & 0x0f) * 4,
            _ => IPV6_LEN,
        };
        if partial_checksum.is_some_and(|(start, _)| usize::from(start) < header) {
            return Err(DropReason::NotIp);
        }
        match told.segmentation {
            None => Ok(Self::One { packet, partial_checksum, is_done: false }),
            Some(_) => Segments::new(told, buffer, packet).map(Self::Many).ok_or(DropReason::NotIp),
        }
    }

    fn largest(&self) -> usize {
        match self {
            Self::One { packet, .. } => packet.len(),
            Self::Many(segments) => segments.largest(),
        }
    }

    fn next(&mut self, buffer: &mut [u8]) -> Option<Range<usize>> {
        match self {
            Self::One { is_done: true, .. } => None,
            Self::One { packet, partial_checksum, is_done } => {
                *is_done = true;
                if let Some(partial) = partial_checksum {
                    // One that lies outside leaves the packet with the checksum it has.
                    let _ = complete_checksum(&mut buffer[packet.clone()], *partial);
                }
                Some(packet.clone())
            }
            Self::Many(segments) => segments.next(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was checked, such as an IPv6 source, is not completed to something else.
    #[test]
    fn no_checksum_is_completed_in_an_ip_header() {
        for (first, len) in [(0x45, 20), (0x46, 24), (0x60, 40)] {
            let mut packet = [0; 100];
            packet[0] = first;
            let pieces = |start| {
                let told = VirtioHeader { partial_checksum: Some((start, 2)), ..VirtioHeader::default() };
                Pieces::new(&told, &packet, 0..packet.len()).map(drop)
            };
            assert_eq!(pieces(len), Ok(()));
            for start in [0, 20, len - 1].into_iter().filter(|start| *start < len) {
                assert_eq!(pieces(start), Err(DropReason::NotIp), "{first:x} {start}");
            }
        }
    }
}
