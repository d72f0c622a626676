//! What a follower knows: the state of a node's share, and which of its nodes are alive.

use std::collections::{BTreeMap, BTreeSet};

use pn_core::{
    ContainerId, Generation, LoadError, NetworkId, Node, NodeId, NodePlan, NodePlanner, Phase, ProjectId, Record,
    Region, State, Timestamp,
};

use crate::{Key, Revision, layout};

#[derive(Debug)]
pub(super) struct Share {
    node: NodeId,
    state: State,
    planner: NodePlanner,
    /// The youngest revision of which something is known.
    revision: Revision,
    /// What generations are ahead of revisions.
    offset: u64,
    /// The revision as of which each project is known.
    projects: BTreeMap<ProjectId, Revision>,
    nodes: BTreeMap<NodeId, Host>,
    /// Whether the node's own record is gone; it stays in the state as long as containers are on it.
    is_gone: bool,
    /// Containers that are shown as draining because their node is dead, and what they are.
    masked: BTreeMap<ProjectId, BTreeMap<ContainerId, Phase>>,
    /// Networks that changed since the last plan, and the revision as of which they are known.
    changed: BTreeMap<NetworkId, Revision>,
}

/// The node itself, or one that its networks are on.
#[derive(Debug)]
struct Host {
    /// The revision as of which record and liveness are known.
    as_of: Revision,
    is_alive: bool,
    projects: BTreeSet<ProjectId>,
}

impl Share {
    pub(super) fn new(region: Region, node: NodeId, last: Generation, revision: Revision, offset: u64) -> Self {
        let mut state = State::new(region);
        state.advance(last);
        let planner = NodePlanner::new(&state, node);
        let own = Host { as_of: Revision::ZERO, is_alive: true, projects: BTreeSet::new() };
        Self {
            node,
            planner,
            state,
            revision,
            offset,
            projects: BTreeMap::new(),
            nodes: [(node, own)].into(),
            is_gone: false,
            masked: BTreeMap::new(),
            changed: BTreeMap::new(),
        }
    }

    /// Returns the revision as of which a project is known, if it is one of the share's.
    pub(super) fn project(&self, project: ProjectId) -> Option<Revision> {
        self.projects.get(&project).copied()
    }

    /// Returns the projects of the share.
    pub(super) fn projects(&self) -> impl Iterator<Item = ProjectId> {
        self.projects.keys().copied()
    }

    /// Returns the revision as of which a node is known, if it is one of the share's.
    pub(super) fn host(&self, node: NodeId) -> Option<Revision> {
        self.nodes.get(&node).map(|host| host.as_of)
    }

    /// Returns the records of a project, by their keys.
    pub(super) fn records(&self, project: ProjectId) -> BTreeMap<Key, Record> {
        let masked = self.masked.get(&project);
        let mut records = layout::project_records(&self.state, project);
        for record in records.values_mut() {
            if let Record::Container(container) = record
                && let Some(phase) = masked.and_then(|masked| masked.get(&container.id))
            {
                container.phase = *phase;
            }
        }
        records
    }

    /// Returns the nodes that containers among some records are on and that are not known.
    pub(super) fn unknown<'a>(&self, records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<NodeId> {
        layout::hosts(records).into_iter().filter(|node| self.state.node(*node).is_none()).collect()
    }

    /// Says what is recorded of a node, and whether it is alive, where it is or is about to be one of the share's.
    pub(super) fn put_node(&mut self, id: NodeId, node: Option<Node>, is_alive: bool, as_of: Revision) {
        self.revision = self.revision.max(as_of);
        let own = id == self.node;
        let host = self.nodes.entry(id).or_insert_with(|| Host { as_of, is_alive, projects: BTreeSet::new() });
        host.as_of = host.as_of.max(as_of);
        let generation = self.state.generation();
        match node {
            Some(node) => self.state.replace_node(generation, node),
            None => self.state.forget_node(generation, id),
        }
        self.put_alive(id, is_alive || own);
    }

    /// Replaces the record of a node of the share.
    pub(super) fn replace_node(&mut self, node: Node, as_of: Revision) {
        self.note_node(node.id, as_of);
        self.is_gone &= node.id != self.node;
        self.state.replace_node(self.state.generation(), node);
    }

    /// Forgets the record of a node; one that containers are on stays as it was known.
    pub(super) fn remove_node(&mut self, id: NodeId, as_of: Revision) {
        self.note_node(id, as_of);
        self.is_gone |= id == self.node;
        self.state.forget_node(self.state.generation(), id);
    }

    /// Says that a node is as it was up to a revision.
    pub(super) fn note_node(&mut self, id: NodeId, as_of: Revision) {
        if let Some(host) = self.nodes.get_mut(&id) {
            host.as_of = host.as_of.max(as_of);
        }
        self.revision = self.revision.max(as_of);
    }

    /// Says whether a node is alive.
    pub(super) fn put_alive(&mut self, id: NodeId, is_alive: bool) {
        let Some(host) = self.nodes.get_mut(&id) else { return };
        if core::mem::replace(&mut host.is_alive, is_alive) == is_alive {
            return;
        }
        for project in host.projects.clone() {
            let records = self.records(project).into_values().collect();
            let as_of = self.projects.get(&project).copied().unwrap_or_default();
            let masked = self.set_project(project, records, as_of);
            masked.expect("what was loaded can be loaded with other phases");
        }
    }

    /// Replaces what is recorded of a project; nothing takes it out of the share.
    ///
    /// Rests are not kept: a node does not give addresses.
    pub(super) fn set_project(
        &mut self,
        project: ProjectId,
        mut records: Vec<Record>,
        as_of: Revision,
    ) -> Result<(), LoadError> {
        records.retain(|record| !matches!(record, Record::Rest(_) | Record::Next(..)));
        let hosted = layout::hosts(&records);
        let mut masked = BTreeMap::new();
        for record in &mut records {
            if let Record::Container(container) = record
                && container.is_live()
                && self.nodes.get(&container.node).is_some_and(|host| !host.is_alive)
            {
                masked.insert(container.id, container.phase);
                container.phase = Phase::Draining { since: Timestamp::ZERO };
            }
        }
        let before = self.state.network_of(project).map(|network| network.id);
        let is_gone = records.is_empty();
        self.state.replace_project(self.state.generation(), project, records)?;
        let after = self.state.network_of(project).map(|network| network.id);
        self.changed.extend(before.into_iter().chain(after).map(|network| (network, as_of)));
        self.revision = self.revision.max(as_of);
        self.masked.insert(project, masked);
        self.projects.insert(project, as_of);
        if is_gone {
            self.masked.remove(&project);
            self.projects.remove(&project);
        }
        for node in &hosted {
            if let Some(host) = self.nodes.get_mut(node) {
                host.projects.insert(project);
            }
        }
        let own = self.node;
        let state = &mut self.state;
        self.nodes.retain(|id, host| {
            if !hosted.contains(id) {
                host.projects.remove(&project);
            }
            let stays = *id == own || !host.projects.is_empty();
            if !stays {
                state.forget_node(state.generation(), *id);
            }
            stays
        });
        if self.is_gone {
            self.state.forget_node(self.state.generation(), own);
        }
        Ok(())
    }

    /// Plans the node, and says which networks are new in the plan, as of which revision.
    pub(super) fn plan(&mut self) -> (NodePlan, BTreeMap<NetworkId, Revision>) {
        let least = self.planner.plan().generation.next();
        let generation = Generation::new(self.revision.get().saturating_add(self.offset)).max(least);
        self.state.advance(generation);
        let plan = self.planner.update(&self.state).clone();
        (plan, core::mem::take(&mut self.changed))
    }
}
