//! Changes of containers: their slots, addresses and phases.

use core::num::NonZeroU32;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ApplyError, Live, Member, NetworkState, Part, State, TypeState};
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
        if old.phase != Phase::Ready {
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
        let host = Arc::clone(&self.nodes.get(&node).ok_or(ApplyError::UnknownNode { node })?.node);
        if host.availability == Availability::Draining {
            return Err(ApplyError::NodeDraining { node });
        }
        let part_mtu = self.check_host(network, &host)?;
        let state = self.networks.get_mut(&network).expect("the caller found the network");
        let subnet = state.network.subnet;
        let ordinal = state.addresses.take(&slot, now).map_err(|exhausted| match exhausted {
            Exhausted::InUse => ApplyError::AddressesInUse { network, subnet },
            Exhausted::Resting { until } => ApplyError::AddressesResting { network, subnet, until },
        })?;
        let of = state.add_live(&slot, ordinal);
        let member = Member { id: container, of, index: slot.index(), node, phase: Phase::Starting };
        state.members.insert(ordinal, member);
        let part = state.parts.entry(node).or_insert(Part { containers: 0, mtu: part_mtu });
        part.containers += 1;
        if part.containers == 1 {
            self.nodes.get_mut(&node).expect("looked up above").networks.insert(network);
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
        if let Some(other) = state.parts.keys().find(|other| **other != node) {
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
        match member.phase {
            Phase::Ready => return Ok(()),
            Phase::Draining { .. } => return Err(ApplyError::Draining { container: id }),
            Phase::Starting => member.phase = Phase::Ready,
        }
        let (of, index) = (Arc::clone(&member.of), member.index);
        let live = state.types.get_mut(&*of).and_then(|of_type| of_type.live.get_mut(&index));
        let live = live.expect("a starting container is live");
        let before = core::mem::replace(live, Live { starting: None, ready: NonZeroU32::new(ordinal) }).ready;
        if let Some(before) = before {
            state.drain(before.get(), now);
        }
        self.touch_names(network);
        Ok(())
    }

    pub(super) fn stop(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let (network, ordinal) = self.locate(id)?;
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        state.forget_live(ordinal);
        state.drain(ordinal, now);
        self.touch_names(network);
        Ok(())
    }

    pub(super) fn remove(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let Some((network, ordinal)) = self.containers.get(&id) else {
            return Ok(());
        };
        let Phase::Draining { since } = self.networks[network].members[ordinal].phase else {
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
        let part = state.parts.get_mut(&member.node).expect("its containers are counted");
        part.containers -= 1;
        if part.containers == 0 {
            state.parts.remove(&member.node);
            self.nodes.get_mut(&member.node).expect("a container's node exists").networks.remove(&network);
        }
        if member.phase == Phase::Ready {
            self.touch_names(network);
        } else {
            self.touch(network);
        }
    }

    fn locate(&self, container: ContainerId) -> Result<(NetworkId, u32), ApplyError> {
        self.containers.get(&container).copied().ok_or(ApplyError::UnknownContainer { container })
    }
}

impl NetworkState {
    fn live(&self, of: &TypeKey, index: u32) -> Option<Live> {
        self.types.get(of)?.live.get(&index).copied()
    }

    /// Notes a starting container, and returns what all of its type share.
    fn add_live(&mut self, slot: &Slot, ordinal: u32) -> Arc<TypeKey> {
        let of = (slot.app(), slot.container_type());
        let of_type = self.types.entry(of).or_insert_with(|| TypeState { key: Arc::new(of), live: BTreeMap::new() });
        of_type.live.entry(slot.index()).or_default().starting = NonZeroU32::new(ordinal);
        Arc::clone(&of_type.key)
    }

    /// Drains every live container of a type whose index is beyond a count.
    pub(super) fn drain_beyond(&mut self, of: &TypeKey, count: u32, now: Timestamp) {
        let Some(of_type) = self.types.get_mut(of) else {
            return;
        };
        let Some(first) = count.checked_add(1) else {
            return;
        };
        let beyond = of_type.live.split_off(&first);
        if of_type.live.is_empty() {
            self.types.remove(of);
        }
        for ordinal in beyond.into_values().flat_map(|live| [live.starting, live.ready]).flatten() {
            self.drain(ordinal.get(), now);
        }
    }

    fn drain(&mut self, ordinal: u32, now: Timestamp) {
        let member = self.members.get_mut(&ordinal).expect("only known containers drain");
        if !matches!(member.phase, Phase::Draining { .. }) {
            member.phase = Phase::Draining { since: now };
        }
    }

    /// Takes a container from its slot, if it fills it.
    fn forget_live(&mut self, ordinal: u32) {
        let Member { of, index, .. } = &self.members[&ordinal];
        let (of, index) = (Arc::clone(of), *index);
        let Some(of_type) = self.types.get_mut(&*of) else {
            return;
        };
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
            self.types.remove(&*of);
        }
    }
}

/// Returns a slot in the spelling of the formation, which is the one that names show, and the count of its type.
fn app_type(formation: &crate::app::Formation, slot: Slot) -> Option<(Slot, u32)> {
    let (declared, count) = formation.declared(&slot.container_type())?;
    let slot = Slot::new(slot.app(), *declared, slot.index()).expect("the index is the slot's own");
    Some((slot, count))
}
