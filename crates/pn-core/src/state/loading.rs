//! Putting a state together from records: every decision is taken as it was made.

use core::num::NonZeroU32;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::planning::ZoneCache;
use super::{Cached, Member, NetworkState, NodeState, PackedPhase, Part, ProjectState, State};
use crate::alloc::Pool;
use crate::container::{Container, Phase};
use crate::id::NetworkId;
use crate::network::Network;
use crate::node::Node;
use crate::plan::Generation;
use crate::policy::Region;
use crate::record::{LoadError, Record};

impl State {
    /// Makes an empty state that records can be put into.
    pub(crate) fn loader(region: Region, generation: Generation) -> Self {
        Self { generation, ..Self::new(region) }
    }

    /// Puts a record in; what it refers to must be there.
    pub(crate) fn load_record(&mut self, record: Record) -> Result<(), LoadError> {
        match record {
            Record::Project(project) => {
                let state = ProjectState { network: None, apps: BTreeSet::new(), project };
                let id = state.project.id;
                refuse_second(self.projects.insert(id, state).is_some(), || format!("project {id}"))
            }
            Record::Node(node) => self.load_node(node),
            Record::Network(network) => self.load_network(network),
            Record::App(app) => {
                let (id, project) = (app.id, app.project);
                let state = self.projects.get_mut(&project).ok_or(LoadError::AppProject { app: id, project })?;
                state.apps.insert(id);
                refuse_second(self.apps.insert(id, app).is_some(), || format!("app {id}"))
            }
            Record::Container(container) => self.load_container(&container),
        }
    }

    fn load_node(&mut self, node: Node) -> Result<(), LoadError> {
        let id = node.id;
        self.index_node(&node);
        let state = NodeState { networks: Vec::new(), node: Arc::new(node) };
        refuse_second(self.nodes.insert(id, state).is_some(), || format!("node {id}"))
    }

    fn load_network(&mut self, network: Network) -> Result<(), LoadError> {
        let Network { id, project, vni, subnet, .. } = network;
        let of = LoadError::NetworkProject { network: id, project };
        let owner = self.projects.get_mut(&project).ok_or_else(|| of.clone())?;
        if owner.network.replace(id).is_some_and(|other| other != id) {
            return Err(of);
        }
        if !self.vnis.occupy(vni.get()) {
            return Err(LoadError::Vni { network: id });
        }
        let addresses = Pool::new(subnet.capacity(), self.policy.address_rest);
        let state = NetworkState {
            network,
            addresses,
            members: BTreeMap::new(),
            types: Vec::new(),
            parts: Vec::new(),
            plan: Cached::default(),
            zone: ZoneCache::default(),
        };
        refuse_second(self.networks.insert(id, state).is_some(), || format!("private network {id}"))
    }

    fn load_container(&mut self, container: &Container) -> Result<(), LoadError> {
        let (id, slot) = (container.id, container.slot);
        let network =
            self.network_of_app(slot.app()).ok_or(LoadError::ContainerApp { container: id, app: slot.app() })?;
        let host = self.nodes.get_mut(&container.node);
        let host = host.ok_or(LoadError::ContainerNode { container: id, node: container.node })?;
        let state = self.networks.get_mut(&network).expect("a project's network exists");
        let ordinal =
            state.network.subnet.ordinal(container.address).filter(|ordinal| state.addresses.occupy(*ordinal));
        let ordinal = ordinal.ok_or(LoadError::Address { container: id })?;
        let phase = match container.phase {
            Phase::Starting => PackedPhase::STARTING,
            Phase::Ready => PackedPhase::READY,
            Phase::Draining { since } => PackedPhase::draining(since),
        };
        let of = match container.phase {
            Phase::Draining { .. } => state.key_of(&slot),
            Phase::Starting | Phase::Ready => {
                let (of, live) = state.live_mut(&slot);
                let filled = if phase == PackedPhase::READY { &mut live.ready } else { &mut live.starting };
                if filled.replace(NonZeroU32::new(ordinal).expect("ordinals start at 1")).is_some() {
                    return Err(LoadError::Slot { container: id });
                }
                of
            }
        };
        state.members.insert(ordinal, Member { id, of, index: slot.index(), node: container.node, phase });
        match state.part(container.node) {
            Ok(at) => state.parts[at].containers += 1,
            Err(at) => {
                let mtu = host.node.network_mtu(state.network.encryption).unwrap_or(0);
                state.parts.insert(at, Part { node: container.node, containers: 1, mtu });
                host.networks.insert(host.networks.partition_point(|other| *other < network), network);
            }
        }
        let second = self.containers.insert(id, (network, ordinal)).is_some();
        refuse_second(second, || format!("container {id}"))
    }

    fn network_of_app(&self, app: crate::AppId) -> Option<NetworkId> {
        self.projects.get(&self.apps.get(&app)?.project)?.network
    }
}

fn refuse_second(is_second: bool, what: impl FnOnce() -> String) -> Result<(), LoadError> {
    if is_second { Err(LoadError::Twice { what: what() }) } else { Ok(()) }
}
