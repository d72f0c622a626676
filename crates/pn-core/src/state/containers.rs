//! Changes of containers: their slots, addresses and phases.

use core::num::NonZeroU32;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ApplyError, Live, Member, NetworkState, PackedPhase, Part, State, TypeState};
use crate::alloc::Exhausted;
use crate::container::{Phase, Slot};
use crate::id::{ContainerId, NetworkId, NodeId};
use crate::mtu;
use crate::node::{Availability, Node};
use crate::plan::TypeKey;
use crate::time::Timestamp;

impl State {
    pub(super) fn start(
        &mut self,
        now: Timestamp,
        container: ContainerId,
        slot: Slot,
        node: NodeId,
    ) -> Result<(), ApplyError> {
        let app = self.apps.get(&slot.app()).ok_or(ApplyError::UnknownApp { app: slot.app() })?;
        let project = app.project;
        let network = self.projects[&project].network.ok_or(ApplyError::NoPrivateNetwork { project })?;
        let (app, container_type) = (slot.app(), slot.container_type());
        let declared = app_type(&self.apps[&app].formation, slot);
        let (declared, count) = declared.ok_or(ApplyError::UndeclaredType { app, container_type })?;
        if slot.index() > count {
            return Err(ApplyError::BeyondFormation { slot, count });
        }
        let state = &self.networks[&network];
        if let Some(live) = state.live(&(app, container_type), slot.index()) {
            let by = live.ready.or(live.starting).expect("a live entry has a container");
            return Err(ApplyError::SlotTaken { slot, by: state.members[&by.get()].id });
        }
        self.place(now, network, container, declared, node)
    }

    pub(super) fn replace(
        &mut self,
        now: Timestamp,
        container: ContainerId,
        replaces: ContainerId,
        node: NodeId,
    ) -> Result<(), ApplyError> {
        let (network, ordinal) = self.locate(replaces)?;
        let state = &self.networks[&network];
        let old = &state.members[&ordinal];
        if old.phase != PackedPhase::READY {
            return Err(ApplyError::NotReady { container: replaces });
        }
        let slot = old.slot();
        if let Some(Live { starting: Some(by), .. }) = state.live(&old.of, old.index) {
            return Err(ApplyError::SlotTaken { slot, by: state.members[&by.get()].id });
        }
        self.place(now, network, container, slot, node)
    }

    /// Gives a starting container its address; the slot was checked.
    fn place(
        &mut self,
        now: Timestamp,
        network: NetworkId,
        container: ContainerId,
        slot: Slot,
        node: NodeId,
    ) -> Result<(), ApplyError> {
        if self.containers.contains_key(&container) {
            return Err(ApplyError::ContainerExists { container });
        }
        let host = &self.nodes.get(&node).ok_or(ApplyError::UnknownNode { node })?.node;
        if host.availability == Availability::Draining {
            return Err(ApplyError::NodeDraining { node });
        }
        // A node that has a part of the network was found fit when it got it.
        let joins = match self.networks[&network].part(node) {
            Ok(_) => None,
            Err(at) => Some((at, self.check_host(network, host)?)),
        };
        let state = self.networks.get_mut(&network).expect("the caller found the network");
        let subnet = state.network.subnet;
        let ordinal = state.addresses.take(&slot, now).map_err(|exhausted| match exhausted {
            Exhausted::InUse => ApplyError::AddressesInUse { network, subnet },
            Exhausted::Resting { until } => ApplyError::AddressesResting { network, subnet, until },
        })?;
        let of = state.add_live(&slot, ordinal);
        let member = Member { id: container, of, index: slot.index(), node, phase: PackedPhase::STARTING };
        state.members.insert(ordinal, member);
        if let Some((at, mtu)) = joins {
            state.parts.insert(at, Part { node, containers: 1, mtu });
            let networks = &mut self.nodes.get_mut(&node).expect("looked up above").networks;
            networks.insert(networks.partition_point(|other| *other < network), network);
        } else if let Ok(at) = state.part(node) {
            state.parts[at].containers += 1;
        }
        self.containers.insert(container, (network, ordinal));
        self.touch(network);
        Ok(())
    }

    /// Refuses a node that a network cannot use, and returns the MTU it has there.
    pub(super) fn check_host(&self, network: NetworkId, host: &Node) -> Result<u16, ApplyError> {
        let state = &self.networks[&network];
        let node = host.id;
        let mtu = host.network_mtu(state.network.encryption).unwrap_or(0);
        let least = if state.network.ipv6.is_some() { mtu::IPV6_MINIMUM } else { mtu::IPV4_MINIMUM };
        if mtu < least {
            return Err(ApplyError::NodeMtu { node, underlay_mtu: host.underlay_mtu, left: mtu, least });
        }
        // All of a network's nodes are alike, so one of the others tells for all.
        if let Some(Part { node: other, .. }) = state.parts.iter().find(|part| part.node != node) {
            let there = &self.nodes[other].node;
            let is_alike = there.underlay.is_ipv4() == host.underlay.is_ipv4()
                && there.tunnel_address.is_ipv4() == host.tunnel_address.is_ipv4();
            if !is_alike {
                return Err(ApplyError::NodeFamilies { node, other: *other, network });
            }
        }
        Ok(mtu)
    }

    pub(super) fn ready(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let (network, ordinal) = self.locate(id)?;
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        let member = state.members.get_mut(&ordinal).expect("indexed containers exist");
        match member.phase.get() {
            Phase::Ready => return Ok(()),
            Phase::Draining { .. } => return Err(ApplyError::Draining { container: id }),
            Phase::Starting => member.phase = PackedPhase::READY,
        }
        let (of, index) = (Arc::clone(&member.of), member.index);
        let at = state.of_type(&of).expect("a starting container's type is live");
        let live = state.types[at].live.get_mut(&index).expect("a starting container is live");
        let before = core::mem::replace(live, Live { starting: None, ready: NonZeroU32::new(ordinal) }).ready;
        if let Some(before) = before {
            state.drain(before.get(), now);
        }
        self.touch_names(network, of.0);
        Ok(())
    }

    pub(super) fn stop(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let (network, ordinal) = self.locate(id)?;
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        let app = state.members[&ordinal].of.0;
        state.forget_live(ordinal);
        state.drain(ordinal, now);
        self.touch_names(network, app);
        Ok(())
    }

    pub(super) fn remove(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let Some((network, ordinal)) = self.containers.get(&id) else {
            return Ok(());
        };
        let Phase::Draining { since } = self.networks[network].members[ordinal].phase.get() else {
            return Err(ApplyError::Live { container: id });
        };
        let until = since.after(self.policy.drain);
        if now < until {
            return Err(ApplyError::StillDraining { container: id, until });
        }
        self.fail(now, id);
        Ok(())
    }

    pub(super) fn fail(&mut self, now: Timestamp, id: ContainerId) {
        let Some((network, ordinal)) = self.containers.remove(&id) else {
            return;
        };
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        state.forget_live(ordinal);
        let member = state.members.remove(&ordinal).expect("indexed containers exist");
        state.addresses.release(ordinal, member.slot(), now);
        let part = state.part(member.node).expect("its containers are counted");
        state.parts[part].containers -= 1;
        if state.parts[part].containers == 0 {
            state.parts.remove(part);
            let networks = &mut self.nodes.get_mut(&member.node).expect("a container's node exists").networks;
            networks.retain(|other| *other != network);
        }
        if member.phase == PackedPhase::READY {
            self.touch_names(network, member.of.0);
        } else {
            self.touch(network);
        }
    }

    fn locate(&self, container: ContainerId) -> Result<(NetworkId, u32), ApplyError> {
        self.containers.get(&container).copied().ok_or(ApplyError::UnknownContainer { container })
    }
}

impl NetworkState {
    /// Finds what it has on a node, or where that would stand.
    pub(super) fn part(&self, node: NodeId) -> Result<usize, usize> {
        self.parts.binary_search_by_key(&node, |part| part.node)
    }

    /// Finds the live containers of a type, or where they would stand.
    pub(super) fn of_type(&self, of: &TypeKey) -> Result<usize, usize> {
        self.types.binary_search_by(|of_type| of_type.key.as_ref().cmp(of))
    }

    fn live(&self, of: &TypeKey, index: u32) -> Option<Live> {
        self.types[self.of_type(of).ok()?].live.get(&index).copied()
    }

    /// Notes a starting container, and returns what all of its type share.
    fn add_live(&mut self, slot: &Slot, ordinal: u32) -> Arc<TypeKey> {
        let (of, live) = self.live_mut(slot);
        live.starting = NonZeroU32::new(ordinal);
        of
    }

    /// Returns what all containers of a slot's type share, and which fill the slot.
    pub(super) fn live_mut(&mut self, slot: &Slot) -> (Arc<TypeKey>, &mut Live) {
        let of = (slot.app(), slot.container_type());
        let at = self.of_type(&of).unwrap_or_else(|at| {
            self.types.insert(at, TypeState { key: Arc::new(of), live: BTreeMap::new() });
            at
        });
        let of_type = &mut self.types[at];
        (Arc::clone(&of_type.key), of_type.live.entry(slot.index()).or_default())
    }

    /// Returns what all containers of a slot's type share, without noting anything.
    pub(super) fn key_of(&self, slot: &Slot) -> Arc<TypeKey> {
        let of = (slot.app(), slot.container_type());
        self.of_type(&of).map_or_else(|_| Arc::new(of), |at| Arc::clone(&self.types[at].key))
    }

    /// Drains every live container of a type whose index is beyond a count.
    pub(super) fn drain_beyond(&mut self, of: &TypeKey, count: u32, now: Timestamp) {
        let (Ok(at), Some(first)) = (self.of_type(of), count.checked_add(1)) else {
            return;
        };
        let beyond = self.types[at].live.split_off(&first);
        if self.types[at].live.is_empty() {
            self.types.remove(at);
        }
        for ordinal in beyond.into_values().flat_map(|live| [live.starting, live.ready]).flatten() {
            self.drain(ordinal.get(), now);
        }
    }

    fn drain(&mut self, ordinal: u32, now: Timestamp) {
        let member = self.members.get_mut(&ordinal).expect("only known containers drain");
        if !matches!(member.phase.get(), Phase::Draining { .. }) {
            member.phase = PackedPhase::draining(now);
        }
    }

    /// Takes a container from its slot, if it fills it.
    fn forget_live(&mut self, ordinal: u32) {
        let Member { of, index, .. } = &self.members[&ordinal];
        let (of, index) = (Arc::clone(of), *index);
        let Ok(at) = self.of_type(&of) else {
            return;
        };
        let of_type = &mut self.types[at];
        let Some(live) = of_type.live.get_mut(&index) else {
            return;
        };
        let is_other = |filling: &NonZeroU32| filling.get() != ordinal;
        live.starting = live.starting.filter(is_other);
        live.ready = live.ready.filter(is_other);
        if *live == Live::default() {
            of_type.live.remove(&index);
        }
        if of_type.live.is_empty() {
            self.types.remove(at);
        }
    }
}

/// Returns a slot in the spelling of the formation, which is the one that names show, and the count of its type.
fn app_type(formation: &crate::app::Formation, slot: Slot) -> Option<(Slot, u32)> {
    let (declared, count) = formation.declared(&slot.container_type())?;
    let slot = Slot::new(slot.app(), *declared, slot.index()).expect("the index is the slot's own");
    Some((slot, count))
}
