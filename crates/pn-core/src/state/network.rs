//! A private network and what is in it.
//!
//! A change looks at a little of all of this, so that each part is one piece of memory, in order: in a large region none of it is
//! in a cache when its turn comes.

use core::num::NonZeroU32;
use std::sync::Arc;

use super::planning::{Cached, ZoneCache};
use crate::alloc::{Pool, Reuse};
use crate::container::{Container, Phase, Slot};
use crate::id::{ContainerId, NodeId};
use crate::network::Network;
use crate::plan::{NetworkPlan, TypeKey};
use crate::policy::Policy;
use crate::time::Timestamp;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetworkState {
    pub(super) network: Network,
    pub(super) addresses: Pool<Slot>,
    /// Its containers, in the order of their addresses.
    members: Vec<Member>,
    /// The live containers of each type that has any, in the order of their keys.
    types: Vec<TypeState>,
    /// The nodes its containers run on, in order.
    pub(super) parts: Vec<Part>,
    pub(super) plan: Cached<NetworkPlan>,
    pub(super) zone: ZoneCache,
}

/// A container as it is kept: many share a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: ContainerId,
    pub(super) of: Arc<TypeKey>,
    pub(super) index: u32,
    /// Which address of the network it has.
    pub(super) ordinal: u32,
    pub(super) node: NodeId,
    pub(super) phase: PackedPhase,
}

/// A phase in one word: 0 is starting, 1 ready, everything else the moment since when it drains, two milliseconds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedPhase(u64);

impl PackedPhase {
    pub(super) const STARTING: Self = Self(0);
    pub(super) const READY: Self = Self(1);

    pub(super) const fn draining(since: Timestamp) -> Self {
        Self(since.as_millis().saturating_add(2))
    }

    pub(super) const fn get(self) -> Phase {
        match self.0 {
            0 => Phase::Starting,
            1 => Phase::Ready,
            since => Phase::Draining { since: Timestamp::from_millis(since - 2) },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TypeState {
    of: TypeKey,
    /// The same, for its containers to share.
    shared: Arc<TypeKey>,
    /// Its slots that are filled, in order.
    live: Vec<Live>,
}

/// A slot and the ordinals of its live containers: at least one, and two while one replaces the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) index: u32,
    pub(super) starting: Option<NonZeroU32>,
    pub(super) ready: Option<NonZeroU32>,
}

/// A node that runs containers of a network; how many, the node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) node: NodeId,
    /// What the node leaves of its MTU to the network.
    pub(super) mtu: u16,
}

impl Member {
    pub(super) fn slot(&self) -> Slot {
        Slot::new(self.of.0, self.of.1, self.index).expect("slots are numbered from 1")
    }
}

impl NetworkState {
    /// Makes a network without containers.
    pub(super) fn new(network: Network, policy: &Policy) -> Self {
        Self {
            addresses: Pool::new(network.subnet.capacity(), policy.address_rest, Reuse::Oldest),
            network,
            members: Vec::new(),
            types: Vec::new(),
            parts: Vec::new(),
            plan: Cached::default(),
            zone: ZoneCache::default(),
        }
    }

    /// Returns its containers, in the order of their addresses.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the container with an address that one has.
    pub(super) fn member(&self, ordinal: u32) -> &Member {
        &self.members[self.position(ordinal).expect(HELD)]
    }

    pub(super) fn member_mut(&mut self, ordinal: u32) -> &mut Member {
        let at = self.position(ordinal).expect(HELD);
        &mut self.members[at]
    }

    /// Adds a container whose address is given to it and whose node has a part.
    pub(super) fn insert(&mut self, member: Member) {
        let at = self.position(member.ordinal).expect_err("an address is given once");
        self.members.insert(at, member);
    }

    pub(super) fn remove(&mut self, ordinal: u32) -> Member {
        let at = self.position(ordinal).expect(HELD);
        self.members.remove(at)
    }

    /// Finds a container, or where it would stand.
    fn position(&self, ordinal: u32) -> Result<usize, usize> {
        position(&self.members, ordinal, |member| member.ordinal)
    }

    /// Returns what is told of a container.
    pub(super) fn container(&self, member: &Member) -> Container {
        Container {
            id: member.id,
            slot: member.slot(),
            node: member.node,
            address: self.network.subnet.address(member.ordinal).expect("members have ordinals of the subnet"),
            phase: member.phase.get(),
        }
    }

    /// Finds what it has on a node, or where that would stand.
    pub(super) fn part(&self, node: NodeId) -> Result<usize, usize> {
        self.parts.binary_search_by_key(&node, |part| part.node)
    }

    /// Notes that a node runs containers of it.
    pub(super) fn join(&mut self, node: NodeId, mtu: u16) {
        if let Err(at) = self.part(node) {
            self.parts.insert(at, Part { node, mtu });
        }
    }

    /// Notes that a node runs no container of it any more.
    pub(super) fn leave(&mut self, node: NodeId) {
        self.parts.retain(|part| part.node != node);
    }

    /// Returns the slots of a type that are filled, in order.
    pub(super) fn live_of(&self, of: &TypeKey) -> &[Live] {
        self.of_type(of).map_or(&[], |at| &self.types[at].live)
    }

    /// Returns what fills a slot.
    pub(super) fn live(&self, of: &TypeKey, index: u32) -> Option<&Live> {
        let live = self.live_of(of);
        position(live, index, |live| live.index).ok().map(|at| &live[at])
    }

    /// Returns what all containers of a slot's type share, and which fill the slot.
    pub(super) fn live_mut(&mut self, slot: &Slot) -> (Arc<TypeKey>, &mut Live) {
        let (of, index) = ((slot.app(), slot.container_type()), slot.index());
        let at = self.of_type(&of).unwrap_or_else(|at| {
            self.types.insert(at, TypeState { of, shared: Arc::new(of), live: Vec::new() });
            at
        });
        let TypeState { shared, live, .. } = &mut self.types[at];
        let at = position(live, index, |live| live.index).unwrap_or_else(|at| {
            live.insert(at, Live { index, starting: None, ready: None });
            at
        });
        (Arc::clone(shared), &mut live[at])
    }

    /// Returns what all containers of a slot's type share, without noting anything.
    pub(super) fn key_of(&self, slot: &Slot) -> Arc<TypeKey> {
        let of = (slot.app(), slot.container_type());
        self.of_type(&of).map_or_else(|_| Arc::new(of), |at| Arc::clone(&self.types[at].shared))
    }

    /// Finds the live containers of a type, or where they would stand.
    fn of_type(&self, of: &TypeKey) -> Result<usize, usize> {
        self.types.binary_search_by(|of_type| of_type.of.cmp(of))
    }

    /// Drains every live container of a type whose index is beyond a count.
    pub(super) fn drain_beyond(&mut self, of: &TypeKey, count: u32, now: Timestamp) {
        let Ok(at) = self.of_type(of) else {
            return;
        };
        let live = &mut self.types[at].live;
        let beyond = live.split_off(live.partition_point(|live| live.index <= count));
        if live.is_empty() {
            self.types.remove(at);
        }
        for ordinal in beyond.into_iter().flat_map(|live| [live.starting, live.ready]).flatten() {
            self.drain(ordinal.get(), now);
        }
    }

    pub(super) fn drain(&mut self, ordinal: u32, now: Timestamp) {
        let member = self.member_mut(ordinal);
        if !matches!(member.phase.get(), Phase::Draining { .. }) {
            member.phase = PackedPhase::draining(now);
        }
    }

    /// Takes a container from its slot, if it fills it.
    pub(super) fn forget_live(&mut self, ordinal: u32) {
        let Member { of, index, .. } = self.member(ordinal);
        let (of, index) = (Arc::clone(of), *index);
        let Ok(of_type) = self.of_type(&of) else {
            return;
        };
        let slots = &mut self.types[of_type].live;
        let Ok(at) = position(slots, index, |live| live.index) else {
            return;
        };
        let is_other = |filling: &NonZeroU32| filling.get() != ordinal;
        let live = &mut slots[at];
        live.starting = live.starting.filter(is_other);
        live.ready = live.ready.filter(is_other);
        if live.starting.or(live.ready).is_none() {
            slots.remove(at);
        }
        if slots.is_empty() {
            self.types.remove(of_type);
        }
    }
}

/// Finds a number, or where it would stand, among numbers from 1 that are in order and mostly without gaps: where it stands then
/// is looked at first.
fn position<T>(sorted: &[T], number: u32, number_of: impl Fn(&T) -> u32) -> Result<usize, usize> {
    let dense = (number as usize).wrapping_sub(1);
    match sorted.get(dense) {
        Some(there) if number_of(there) == number => Ok(dense),
        None if sorted.last().is_none_or(|last| number_of(last) < number) => Err(sorted.len()),
        Some(_) | None => sorted.binary_search_by_key(&number, number_of),
    }
}

const HELD: &str = "who asks knows an address that is held";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_wherever_gaps_are() {
        for sorted in [&[][..], &[1], &[2], &[1, 2, 3], &[1, 3, 4], &[2, 3, 4], &[1, 2, 7], &[5, 6, 9]] {
            for number in 0..=10 {
                assert_eq!(position(sorted, number, |n| *n), sorted.binary_search(&number), "{number} of {sorted:?}");
            }
        }
    }
}
