//! Changes of containers: their slots, addresses and phases.

use core::num::NonZeroU32;

use super::index::Place;
use super::network::{Live, Member, PackedPhase, Part};
use super::{ApplyError, State};
use crate::alloc::Exhausted;
use crate::container::{Phase, Slot};
use crate::id::{ContainerId, NetworkId, NodeId};
use crate::mtu;
use crate::node::{Availability, Node};
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
            return Err(ApplyError::SlotTaken { slot, by: state.member(by.get()).id });
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
        let old = state.member(ordinal);
        if old.phase != PackedPhase::READY {
            return Err(ApplyError::NotReady { container: replaces });
        }
        let slot = old.slot();
        if let Some(Live { starting: Some(by), .. }) = state.live(&old.of, old.index) {
            return Err(ApplyError::SlotTaken { slot, by: state.member(by.get()).id });
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
        let host = self.nodes.get(&node).ok_or(ApplyError::UnknownNode { node })?;
        if host.node.availability == Availability::Draining {
            return Err(ApplyError::NodeDraining { node });
        }
        // A node that runs containers of the network was found fit when it got the first.
        let joins = host.share(network).is_err().then(|| self.check_host(network, &host.node)).transpose()?;
        let state = &self.networks[&network];
        let subnet = state.network.subnet;
        let choice = state.addresses.choose(&slot, now).map_err(|exhausted| match exhausted {
            Exhausted::InUse => ApplyError::AddressesInUse { network, subnet },
            Exhausted::Resting { until } => ApplyError::AddressesResting { network, subnet, until },
        })?;
        // Looked at last: since the change came, where the id would stand is being fetched.
        if self.find(container).is_some() {
            return Err(ApplyError::ContainerExists { container });
        }
        let state = self.networks.get_mut(&network).expect("the caller found the network");
        state.addresses.give(choice);
        let ordinal = choice.number;
        let place = Place { vni: state.network.vni, ordinal };
        let (of, live) = state.live_mut(&slot);
        live.starting = NonZeroU32::new(ordinal);
        state.insert(Member { id: container, of, index: slot.index(), ordinal, node, phase: PackedPhase::STARTING });
        if let Some(mtu) = joins {
            state.join(node, mtu);
        }
        self.nodes.get_mut(&node).expect("looked up above").add(network);
        self.containers.insert(container, place);
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
        let member = state.member_mut(ordinal);
        match member.phase.get() {
            Phase::Ready => return Ok(()),
            Phase::Draining { .. } => return Err(ApplyError::Draining { container: id }),
            Phase::Starting => member.phase = PackedPhase::READY,
        }
        let (slot, app) = (member.slot(), member.of.0);
        let (_, live) = state.live_mut(&slot);
        live.starting = None;
        let before = live.ready.replace(NonZeroU32::new(ordinal).expect("ordinals start at 1"));
        if let Some(before) = before {
            state.drain(before.get(), now);
        }
        self.touch_names(network, app);
        Ok(())
    }

    pub(super) fn stop(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let (network, ordinal) = self.locate(id)?;
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        let app = state.member(ordinal).of.0;
        state.forget_live(ordinal);
        state.drain(ordinal, now);
        self.touch_names(network, app);
        Ok(())
    }

    pub(super) fn remove(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let Some((_, member)) = self.find(id) else {
            return Ok(());
        };
        let Phase::Draining { since } = member.phase.get() else {
            return Err(ApplyError::Live { container: id });
        };
        let until = self.policy.drained_at(since);
        if now < until {
            return Err(ApplyError::StillDraining { container: id, until });
        }
        self.fail(now, id);
        Ok(())
    }

    pub(super) fn fail(&mut self, now: Timestamp, id: ContainerId) {
        let Ok((network, ordinal)) = self.locate(id) else {
            return;
        };
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        state.forget_live(ordinal);
        let member = state.remove(ordinal);
        self.containers.remove(id, Place { vni: state.network.vni, ordinal });
        state.addresses.release(ordinal, member.slot(), now);
        if self.nodes.get_mut(&member.node).expect("a container's node exists").remove(network) {
            state.leave(member.node);
        }
        if member.phase == PackedPhase::READY {
            self.touch_names(network, member.of.0);
        } else {
            self.touch(network);
        }
    }

    fn locate(&self, container: ContainerId) -> Result<(NetworkId, u32), ApplyError> {
        let found = self.find(container).map(|(state, member)| (state.network.id, member.ordinal));
        found.ok_or(ApplyError::UnknownContainer { container })
    }
}

/// Returns a slot in the spelling of the formation, which is the one that names show, and the count of its type.
fn app_type(formation: &crate::app::Formation, slot: Slot) -> Option<(Slot, u32)> {
    let (declared, count) = formation.declared(&slot.container_type())?;
    let slot = Slot::new(slot.app(), *declared, slot.index()).expect("the index is the slot's own");
    Some((slot, count))
}
