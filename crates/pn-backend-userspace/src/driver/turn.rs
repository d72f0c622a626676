//! Turns of stacks: what they send, in batches, on its way.

use core::iter::once;
use core::ops::Range;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use pn_core::ContainerId;
use pn_overlay::packet::IpPacket;
use pn_overlay::{DropReason, Route, Wrap};

use super::carry::{FLUSH, write};
use super::{Driver, crew};
use crate::batch::Batch;
use crate::offload::VirtioHeader;
use crate::port::{Owner, PortInner};

/// Packets of a stack that are carried before others get their turn, and what an answer of the resolver counts for: one
/// may cost as much as many packets.
const BUDGET: usize = 128;
const ANSWER_COST: usize = 16;

/// How many whole turns stacks get before the underlay has one, where there are not more that wait.
const LOCAL_TURNS: usize = 8;

/// What a stack sends in a turn.
struct Sending<'a> {
    from: &'a PortInner,
    batch: &'a mut Batch,
    budget: usize,
}

/// A packet of a batch, and where it goes.
type Next = (Range<usize>, Result<Route, DropReason>);

impl Driver {
    /// Polls stacks and forwards what they send, until a turn of all that are due is over.
    pub(super) fn carry(&mut self) {
        // Local traffic makes stacks due again. A few turns of those that are alone spare them the way around the loop;
        // otherwise they get their next turn after the underlay had one.
        let mut budget = LOCAL_TURNS * BUDGET;
        let mut turns = self.due.len();
        while turns > 0 || budget > 0 {
            let Some(stack) = self.due.pop_front() else {
                return;
            };
            turns = turns.saturating_sub(1);
            budget = budget.saturating_sub(self.turn(&stack).max(1));
        }
    }

    /// Polls a stack and forwards what it sends, as far as its budget goes, and returns what that came to. TCP and UDP each have
    /// theirs.
    fn turn(&mut self, stack: &Arc<PortInner>) -> usize {
        stack.is_queued.store(false, Ordering::Release);
        let (mut leaving, next) = stack.lock().poll(self.epoch.elapsed(), BUDGET);
        let is_current = self.stacks.get(&stack.owner).is_some_and(|current| Arc::ptr_eq(current, stack));
        if !is_current {
            return 0;
        }
        self.set_deadline(stack.owner, next);
        let cost = self.forward(stack, &mut leaving.segments, usize::MAX)
            + self.forward(stack, &mut leaving.datagrams, BUDGET);
        // What is left waits behind the others.
        if stack.lock().put_back(leaving) && !stack.is_queued.swap(true, Ordering::AcqRel) {
            self.due.push_back(Arc::clone(stack));
        }
        cost
    }

    /// Sends packets of a stack on their way, as far as a budget goes, and returns what they came to.
    fn forward(&mut self, from: &PortInner, batch: &mut Batch, budget: usize) -> usize {
        let mut sending = Sending { from, batch, budget };
        let mut next = self.next(&mut sending);
        while let Some((packet, route)) = next {
            let sent = match route {
                Ok(Route::Tunnel(wrap)) => self.seal(packet, wrap, &mut sending),
                Ok(Route::Local(to)) => self.pass_on(packet, to, &mut sending),
                Ok(Route::Resolver) => self.ask(&packet, &mut sending),
                Err(reason) => {
                    let refused = IpPacket::parse(&sending.batch.octets()[packet]);
                    if let (DropReason::UnknownDestination, Some(refused)) = (reason, refused) {
                        from.lock().unreachable(refused.destination());
                    }
                    Err(reason)
                }
            };
            next = match sent {
                Ok(next) => next,
                Err(reason) => {
                    self.shared.drops.count(reason);
                    self.next(&mut sending)
                }
            };
        }
        budget - sending.budget
    }

    /// Takes the next packet that a stack sends, and says where it goes.
    fn next(&mut self, sending: &mut Sending<'_>) -> Option<Next> {
        sending.budget = sending.budget.checked_sub(1)?;
        let Some(packet) = sending.batch.pop() else {
            sending.budget += 1;
            return None;
        };
        let Some(parsed) = IpPacket::parse(&sending.batch.octets()[packet.clone()]) else {
            return Some((packet, Err(DropReason::NotIp)));
        };
        let len = parsed.octets().len();
        let network = sending.from.network;
        let route = match sending.from.owner {
            Owner::Container(container) => self.vtep.route_after(network, container, &parsed, len, &mut self.routed),
            Owner::Resolver(_) => {
                let network = self.vtep.plan().networks.get(&network);
                let to = network.and_then(|network| network.endpoint_at(parsed.destination()));
                to.map(|to| Route::Local(to.container)).ok_or(DropReason::UnknownDestination)
            }
        };
        Some((packet.start..packet.start + len, route))
    }

    /// Seals a packet and those behind it that go to the same node.
    fn seal(
        &mut self,
        mut packet: Range<usize>,
        mut wrap: Wrap,
        sending: &mut Sending<'_>,
    ) -> Result<Option<Next>, DropReason> {
        let tunnel = Arc::clone(&self.tunnel);
        let tunnel = crew::read(&tunnel);
        let mut sealer = tunnel.sealer(wrap.via())?;
        loop {
            let octets = &mut sending.batch.octets_mut()[..packet.end];
            let start = wrap.write(octets, packet.start);
            if let Err(reason) = sealer.seal(&octets[start..], &mut self.outbox) {
                self.shared.drops.count(reason);
            }
            if self.outbox.octets() >= FLUSH {
                // As with interfaces, before another thread seals for that peer.
                self.flush();
            }
            match self.next(sending) {
                Some((next, Ok(Route::Tunnel(same)))) if same.via() == wrap.via() => (packet, wrap) = (next, same),
                next => return Ok(next),
            }
        }
    }

    /// Gives a packet and those behind it that are for the same container of this node to it.
    fn pass_on(
        &mut self,
        mut packet: Range<usize>,
        to: ContainerId,
        sending: &mut Sending<'_>,
    ) -> Result<Option<Next>, DropReason> {
        let network = sending.from.network;
        if let Some(place) = self.place_of(network, to) {
            let header = VirtioHeader::default().emit(false);
            write(&self.tuns, place, header, &sending.batch.octets()[packet], [].into_iter())?;
            return Ok(self.next(sending));
        }
        let mut following = None;
        self.give(network, Owner::Container(to), |driver, take| {
            loop {
                take(&sending.batch.octets()[packet]);
                match driver.next(sending) {
                    Some((next, Ok(Route::Local(same)))) if same == to => packet = next,
                    next => break following = next,
                }
            }
        });
        Ok(following)
    }

    /// Gives a packet to the resolver of its network, and its answer back.
    fn ask(&mut self, packet: &Range<usize>, sending: &mut Sending<'_>) -> Result<Option<Next>, DropReason> {
        let (from, octets) = (sending.from, &sending.batch.octets()[packet.clone()]);
        let query = IpPacket::parse(octets).ok_or(DropReason::NotIp)?;
        match self.answer(from.network, &query) {
            Some(reply) => {
                sending.budget = sending.budget.saturating_sub(ANSWER_COST - 1);
                if let Some(reply) = reply {
                    self.deliver(from.network, from.owner, once(&reply[..]));
                }
            }
            None => self.deliver(from.network, Owner::Resolver(from.network), once(octets)),
        }
        Ok(self.next(sending))
    }
}
