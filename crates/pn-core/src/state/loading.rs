//! Putting a state together from records: every decision is taken as it was made.

use core::num::NonZeroU32;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::index::Place;
use super::network::{Member, NetworkState, PackedPhase};
use super::nodes::NodeState;
use super::{Clock, ProjectState, State};
use crate::app::App;
use crate::container::{Container, Phase};
use crate::id::{NetworkId, NodeId, ProjectId};
use crate::net::Vni;
use crate::network::Network;
use crate::node::Node;
use crate::plan::Generation;
use crate::policy::Region;
use crate::record::{LoadError, Numbers, Record, Rest};

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
                refuse_second(self.projects.contains_key(&id), || format!("project {id}"))?;
                self.projects.insert(id, state);
                Ok(())
            }
            Record::Node(node) => self.load_node(node),
            Record::Network(network) => self.load_network(network),
            Record::App(app) => {
                let (id, project) = (app.id, app.project);
                refuse_second(self.apps.contains_key(&id), || format!("app {id}"))?;
                let state = self.projects.get_mut(&project).ok_or(LoadError::AppProject { app: id, project })?;
                state.apps.insert(id);
                self.apps.insert(id, app);
                Ok(())
            }
            Record::Container(container) => self.load_container(&container),
            Record::Rest(rest) => self.load_rest(rest),
            Record::Next(of, number) => {
                let is_there = match of {
                    Numbers::Vnis => self.vnis.set_next(number),
                    Numbers::Addresses(network) => {
                        self.networks.get_mut(&network).is_some_and(|state| state.addresses.set_next(number))
                    }
                };
                if is_there { Ok(()) } else { Err(LoadError::Next { of, number }) }
            }
        }
    }

    /// Adds what rests of a network's addresses, and whose turn it is.
    pub(crate) fn push_rests(&self, network: NetworkId, records: &mut Vec<Record>) {
        let Some(state) = self.networks.get(&network) else {
            return;
        };
        records.extend(state.addresses.rests().filter_map(|(ordinal, slot, since)| {
            let address = state.network.subnet.address(ordinal)?;
            Some(Record::Rest(Rest::Address { network, address, slot: *slot, since }))
        }));
        push_next(Numbers::Addresses(network), state.addresses.next(), records);
    }

    /// Adds what rests of the region's VNIs, and whose turn it is.
    pub(crate) fn push_vni_rests(&self, records: &mut Vec<Record>) {
        records.extend(self.vnis.rests().filter_map(|(vni, network, since)| {
            Some(Record::Rest(Rest::Vni { vni: Vni::new(vni)?, network: *network, since }))
        }));
        push_next(Numbers::Vnis, self.vnis.next(), records);
    }

    /// Returns the apps of a project.
    pub fn apps_of(&self, project: ProjectId) -> impl Iterator<Item = &App> {
        let apps = self.projects.get(&project).into_iter().flat_map(|state| &state.apps);
        apps.filter_map(|app| self.apps.get(app))
    }

    /// Keeps a VNI from being given: a network has it that is not in this share of the region.
    pub fn reserve_vni(&mut self, vni: Vni) {
        // It is in use or rests already, and then it is not given either.
        let _ = self.vnis.occupy(vni.get());
    }

    /// Puts other records in the place of everything that is recorded of a project, as of a generation.
    ///
    /// # Errors
    /// [`LoadError`] where a record is not of the project, or where the records contradict each other or the nodes of this
    /// state, which is then as it was.
    pub fn replace_project(
        &mut self,
        generation: Generation,
        project: ProjectId,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(), LoadError> {
        let records: Vec<Record> = records.into_iter().collect();
        refuse_foreign(project, &records)?;
        let (before, clock) = (self.records_of(project), self.clock);
        self.unload_project(project);
        let loaded = self.load_records(records);
        if loaded.is_err() {
            // Nothing of another project was touched, so that this takes away all that was put in.
            self.unload_project(project);
            self.load_records(before).expect("they were loaded before");
            self.clock = clock;
        }
        if let Some(network) = self.projects.get(&project).and_then(|state| state.network) {
            self.touch(network);
        }
        if loaded.is_ok() {
            self.generation = generation;
        }
        loaded
    }

    /// Puts a node in, or another in its place, as of a generation.
    pub fn replace_node(&mut self, generation: Generation, node: Node) {
        let id = node.id;
        if let Some(known) = self.nodes.get(&id).map(|state| Arc::clone(&state.node)) {
            self.unindex_node(&known);
        }
        self.index_node(&node);
        let shares = self.nodes.remove(&id).map(|state| state.shares).unwrap_or_default();
        for share in &shares {
            let state = self.networks.get_mut(&share.network).expect("a node's networks exist");
            let at = state.part(id).expect("a node is a part of its networks");
            state.parts[at].mtu = node.network_mtu(state.network.encryption).unwrap_or(0);
            self.touch(share.network);
        }
        self.nodes.insert(id, NodeState { node: Arc::new(node), shares });
        self.log_node(id);
        self.generation = generation;
    }

    /// Forgets a node that runs no container, as of a generation; one that runs some stays.
    pub fn forget_node(&mut self, generation: Generation, id: NodeId) {
        if self.nodes.get(&id).is_some_and(|state| state.shares.is_empty())
            && let Some(state) = self.nodes.remove(&id)
        {
            self.unindex_node(&state.node);
            self.log_node(id);
        }
        self.generation = generation;
    }

    /// Says that nothing else changed up to a generation.
    pub const fn advance(&mut self, generation: Generation) {
        self.generation = generation;
    }

    fn unload_project(&mut self, project: ProjectId) {
        let Some(state) = self.projects.remove(&project) else {
            return;
        };
        for app in &state.apps {
            self.apps.remove(app);
        }
        let Some(id) = state.network else {
            return;
        };
        self.touch(id);
        let removed = self.networks.remove(&id).expect("a project's network exists");
        let vni = removed.network.vni;
        self.networks_by_vni.remove(&vni);
        self.vnis.vacate(vni.get());
        for Member { id, ordinal, .. } in removed.members() {
            self.containers.remove(*id, Place { vni, ordinal: *ordinal });
        }
        for part in &removed.parts {
            let host = self.nodes.get_mut(&part.node).expect("a container's node exists");
            host.shares.retain(|share| share.network != id);
        }
    }

    /// Puts records in, those first that others refer to.
    pub(crate) fn load_records(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), LoadError> {
        let mut rest: [Vec<Record>; 4] = Default::default();
        for record in records {
            match &record {
                Record::Node(_) | Record::Project(_) => self.load_record(record)?,
                Record::Network(_) => rest[0].push(record),
                Record::App(_) => rest[1].push(record),
                Record::Container(_) => rest[2].push(record),
                Record::Rest(_) | Record::Next(..) => rest[3].push(record),
            }
        }
        rest.into_iter().flatten().try_for_each(|record| self.load_record(record))
    }

    fn load_rest(&mut self, rest: Rest) -> Result<(), LoadError> {
        let (is_there, since) = match rest {
            Rest::Address { network, address, slot, since } => {
                let state = self.networks.get_mut(&network);
                let rests = state.and_then(|state| {
                    let ordinal = state.network.subnet.ordinal(address)?;
                    Some(state.addresses.rest(ordinal, slot, since))
                });
                (rests == Some(true), since)
            }
            Rest::Vni { vni, network, since } => (self.vnis.rest(vni.get(), network, since), since),
        };
        self.clock = Clock(self.clock.0.max(since));
        if is_there { Ok(()) } else { Err(LoadError::Rest { rest }) }
    }

    fn load_node(&mut self, node: Node) -> Result<(), LoadError> {
        let id = node.id;
        refuse_second(self.nodes.contains_key(&id), || format!("node {id}"))?;
        self.index_node(&node);
        self.nodes.insert(id, NodeState::new(node));
        Ok(())
    }

    fn load_network(&mut self, network: Network) -> Result<(), LoadError> {
        let Network { id, project, vni, .. } = network;
        refuse_second(self.networks.contains_key(&id), || format!("private network {id}"))?;
        let owner = self.projects.get_mut(&project).filter(|owner| owner.network.is_none());
        let owner = owner.ok_or(LoadError::NetworkProject { network: id, project })?;
        if !self.vnis.occupy(vni.get()) {
            return Err(LoadError::Vni { network: id });
        }
        owner.network = Some(id);
        self.networks_by_vni.insert(vni, id);
        self.networks.insert(id, Box::new(NetworkState::new(network, &self.policy)));
        Ok(())
    }

    fn load_container(&mut self, container: &Container) -> Result<(), LoadError> {
        let (id, slot) = (container.id, container.slot);
        refuse_second(self.find(id).is_some(), || format!("container {id}"))?;
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
            Phase::Draining { since } => {
                self.clock = Clock(self.clock.0.max(since));
                PackedPhase::draining(since)
            }
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
        state.insert(Member { id, of, index: slot.index(), ordinal, node: container.node, phase });
        state.join(container.node, host.node.network_mtu(state.network.encryption).unwrap_or(0));
        host.add(network);
        self.containers.insert(id, Place { vni: state.network.vni, ordinal });
        Ok(())
    }

    fn network_of_app(&self, app: crate::AppId) -> Option<NetworkId> {
        self.projects.get(&self.apps.get(&app)?.project)?.network
    }
}

/// Refuses records that are not of a project: of what does not say so itself, the app or the network has to be among them.
fn refuse_foreign(project: ProjectId, records: &[Record]) -> Result<(), LoadError> {
    let (mut apps, mut networks) = (BTreeSet::new(), BTreeSet::new());
    for record in records {
        if let Record::App(app) = record {
            apps.insert(app.id);
        } else if let Record::Network(network) = record {
            networks.insert(network.id);
        }
    }
    let is_own = |record: &&Record| match record {
        Record::Project(own) => own.id == project,
        Record::App(app) => app.project == project,
        Record::Network(network) => network.project == project,
        Record::Container(container) => apps.contains(&container.slot.app()),
        Record::Rest(Rest::Address { network, .. }) | Record::Next(Numbers::Addresses(network), _) => {
            networks.contains(network)
        }
        Record::Node(_) | Record::Rest(Rest::Vni { .. }) | Record::Next(Numbers::Vnis, _) => false,
    };
    match records.iter().find(|record| !is_own(record)) {
        Some(record) => Err(LoadError::Foreign { what: record.to_string(), project }),
        None => Ok(()),
    }
}

fn push_next(of: Numbers, number: u32, records: &mut Vec<Record>) {
    if number != 1 {
        records.push(Record::Next(of, number));
    }
}

fn refuse_second(is_second: bool, what: impl FnOnce() -> String) -> Result<(), LoadError> {
    if is_second { Err(LoadError::Twice { what: what() }) } else { Ok(()) }
}
