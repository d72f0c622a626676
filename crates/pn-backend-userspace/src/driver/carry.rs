//! Packets on their way: out of the tunnel, out of interfaces, out of stacks.

use core::net::SocketAddr;
use core::ops::Range;
use core::sync::atomic::Ordering;
use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;

use pn_core::{ContainerId, NetworkId};
use pn_overlay::packet::{ETHERNET_LEN, EthernetFrame, IpPacket, UDP, UdpDatagram, udp_reply};
use pn_overlay::{DropReason, Opener, Route};

use super::{Attached, Driver, crew};
use crate::offload::{Segments, VirtioHeader, complete_checksum};
use crate::port::{DNS_PORT, Owner, PortInner};
use crate::tap::Direction;

/// Batches of datagrams taken from the underlay before containers get their turn.
const BATCHES: usize = 4;

/// Packets that an interface sends before others get their turn, and octets.
const READS: usize = 64;
const READ_OCTETS: usize = 256 * 1024;

/// Packets of a stack that are carried before others get their turn, and what an answer of the resolver counts for: one
/// may cost as much as many packets.
const BUDGET: usize = 128;
const ANSWER_COST: usize = 16;

/// How many whole turns stacks get before the underlay has one, where there are not more that wait.
const LOCAL_TURNS: usize = 8;

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
const FLUSH: usize = 60_000;

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
        self.write_merged();
    }

    fn open(
        &mut self,
        opener: &mut Opener<'_>,
        from: SocketAddr,
        message: usize,
        datagram: Range<usize>,
    ) -> Result<(), DropReason> {
        if self.opened.len() - self.opened_to < datagram.len().max(MIN_BUFFER) {
            self.write_merged();
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
        let place = match self.last_tun {
            Some((last, place)) if last == container => place,
            _ => match place_of(&self.tun_of, &self.tap_of, network, container) {
                Some(place) => place,
                None => {
                    let packet = packet.to_vec();
                    return self.deliver(network, Owner::Container(container), packet);
                }
            },
        };
        self.last_tun = Some((container, place));
        // It waits for those that follow it, where it lies.
        let start = self.opened_to + (packet.as_ptr().addr() - base);
        let packet = start..start + packet.len();
        self.opened_to = packet.end;
        self.coalescer.push(place, &self.opened, packet);
        Ok(())
    }

    /// Gives interfaces what was opened for them, as few packets.
    fn write_merged(&mut self) {
        let (tuns, drops) = (&self.tuns, &self.shared.drops);
        self.coalescer.drain(&mut self.opened, |merged, buffer| {
            let rest = merged.rest.iter().map(|range| &buffer[range.clone()]);
            if let Err(reason) = write(tuns, *merged.place, merged.header, merged.first, rest) {
                (0..=merged.rest.len()).for_each(|_| drops.count(reason));
            }
        });
        self.opened_to = 0;
    }

    /// Gives a packet to a container or resolver of this node.
    pub(super) fn deliver(&mut self, network: NetworkId, to: Owner, packet: Vec<u8>) -> Result<(), DropReason> {
        if let Owner::Container(container) = to
            && let Some(place) = place_of(&self.tun_of, &self.tap_of, network, container)
        {
            return write(&self.tuns, place, VirtioHeader::default().emit(false), &packet, [].into_iter());
        }
        let packet = match self.hand_over(network, to, packet) {
            Ok(result) => return result,
            Err(packet) => packet,
        };
        let stack = self.stacks.get(&to).ok_or(DropReason::UnknownDestination)?;
        let dropped = stack.lock().ingress(packet, self.epoch.elapsed());
        if !stack.is_queued.swap(true, Ordering::AcqRel) {
            self.due.push_back(Arc::clone(stack));
        }
        (0..dropped).for_each(|_| self.shared.drops.count(DropReason::QueueFull));
        Ok(())
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
        let attached = self.tuns.get_mut(place).and_then(Option::as_mut).ok_or(DropReason::UnknownDestination)?;
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
        let claim = (packet.protocol(), packet.source(), packet.destination());
        let largest = pieces.largest();
        let route = match attached.last {
            Some((last, wrap, checked)) if last == claim && largest <= checked => Route::Tunnel(wrap),
            _ => {
                let route = self.vtep.route(network, container, &packet, largest)?;
                if let Route::Tunnel(wrap) = route {
                    attached.last = Some((claim, wrap, largest));
                }
                route
            }
        };
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
            Route::Local(to) => match place_of(&self.tun_of, &self.tap_of, network, to) {
                // A bridge that sends us what its own port is for would have it back for ever.
                Some(same) if same == place => return Err(DropReason::UnknownDestination),
                // From kernel to kernel it needs no cutting.
                Some(place) => return write(&self.tuns, place, header, &self.packet[whole], [].into_iter()),
                None => Owner::Container(to),
            },
            Route::Resolver => match self.answer(network, &packet) {
                Some(None) => return Ok(()),
                Some(Some(reply)) => return self.deliver(network, Owner::Container(container), reply),
                None => Owner::Resolver(network),
            },
        };
        self.deliver_pieces(network, to, pieces);
        Ok(())
    }

    fn deliver_pieces(&mut self, network: NetworkId, to: Owner, mut pieces: Pieces) {
        while let Some(piece) = pieces.next(&mut self.packet) {
            let packet = self.packet[piece].to_vec();
            // What is dropped for one may be another's.
            if let Err(reason) = self.deliver(network, to, packet) {
                self.shared.drops.count(reason);
            }
        }
    }

    /// Polls stacks and forwards what they send, until a turn of all that are due is over.
    pub(super) fn carry(&mut self) {
        let mut packets = VecDeque::new();
        // Local traffic makes stacks due again. A few turns of those that are alone spare them the way around the loop;
        // otherwise they get their next turn after the underlay had one.
        let mut budget = LOCAL_TURNS * BUDGET;
        let mut turns = self.due.len();
        while turns > 0 || budget > 0 {
            let Some(stack) = self.due.pop_front() else {
                return;
            };
            turns = turns.saturating_sub(1);
            budget = budget.saturating_sub(self.turn(&stack, &mut packets).max(1));
        }
    }

    /// Polls a stack and forwards what it sends, as far as its budget goes, and returns what that came to.
    fn turn(&mut self, stack: &Arc<PortInner>, packets: &mut VecDeque<Vec<u8>>) -> usize {
        stack.is_queued.store(false, Ordering::Release);
        let next = stack.lock().poll(self.epoch.elapsed(), BUDGET, packets);
        let is_current = self.stacks.get(&stack.owner).is_some_and(|current| Arc::ptr_eq(current, stack));
        if !is_current {
            packets.clear();
            return 0;
        }
        self.set_deadline(stack.owner, next);
        let mut cost = 0;
        while cost < BUDGET
            && let Some(packet) = packets.pop_front()
        {
            match self.forward(stack, packet) {
                Ok(more) => cost += more,
                Err(reason) => {
                    cost += 1;
                    self.shared.drops.count(reason);
                }
            }
        }
        // What is left waits behind the others.
        if stack.lock().put_back(packets) && !stack.is_queued.swap(true, Ordering::AcqRel) {
            self.due.push_back(Arc::clone(stack));
        }
        cost
    }

    /// Sends a packet of a stack on its way, and returns how many it counts for.
    fn forward(&mut self, from: &PortInner, packet: Vec<u8>) -> Result<usize, DropReason> {
        let parsed = IpPacket::parse(&packet).ok_or(DropReason::NotIp)?;
        let container = match from.owner {
            Owner::Container(container) => container,
            Owner::Resolver(network) => {
                let network = self.vtep.plan().networks.get(&network).ok_or(DropReason::UnknownVni)?;
                let to = network.endpoint_at(parsed.destination()).ok_or(DropReason::UnknownDestination)?.container;
                return self.deliver(from.network, Owner::Container(to), packet).map(|()| 1);
            }
        };
        match self.vtep.route(from.network, container, &parsed, parsed.octets().len()) {
            Ok(Route::Tunnel(wrap)) => {
                self.buffer.clear();
                self.buffer.resize(wrap.len(), 0);
                self.buffer.extend_from_slice(parsed.octets());
                wrap.write(&mut self.buffer, wrap.len());
                crew::read(&self.tunnel).seal(wrap.via(), &self.buffer, &mut self.outbox).map(|()| 1)
            }
            Ok(Route::Local(to)) => self.deliver(from.network, Owner::Container(to), packet).map(|()| 1),
            Ok(Route::Resolver) => match self.answer(from.network, &parsed) {
                Some(reply) => {
                    reply.map_or(Ok(()), |reply| self.deliver(from.network, from.owner, reply)).map(|()| ANSWER_COST)
                }
                None => self.deliver(from.network, Owner::Resolver(from.network), packet).map(|()| 1),
            },
            Err(reason) => {
                if reason == DropReason::UnknownDestination {
                    from.lock().unreachable(parsed.destination());
                }
                Err(reason)
            }
        }
    }

    /// Answers a DNS query over UDP in place. `None` where the packet is none, or others have to be asked.
    fn answer(&self, network: NetworkId, packet: &IpPacket<'_>) -> Option<Option<Vec<u8>>> {
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

    /// Sends what waits for the underlay.
    pub(super) fn flush(&mut self) {
        if let Some(tap) = &self.tap {
            self.outbox.iter().for_each(|(to, datagram)| tap.datagram(Direction::Sent, to, datagram));
        }
        self.underlay.send(&mut self.outbox, &self.shared.drops);
    }
}

/// Gives a packet, in pieces, to an interface; `header` says what there is to say of it.
fn write<'a>(
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

/// Finds the interface that packets for a container are written to.
fn place_of(
    tun_of: &HashMap<ContainerId, usize>,
    tap_of: &HashMap<NetworkId, usize>,
    network: NetworkId,
    container: ContainerId,
) -> Option<usize> {
    tun_of.get(&container).or_else(|| tap_of.get(&network)).copied()
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
