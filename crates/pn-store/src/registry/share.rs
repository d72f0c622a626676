//! What a change has to know of the region: which keys are read for it, and the state that they make.

mod vnis;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pn_core::{Change, Generation, Label, Node, NodeId, ProjectId, PublicKey, Record, Region, State, Vni};

use super::cache::Project;
use super::names::Names;
use super::{Registry, RegistryError};
use crate::layout::{self, Head, Seen};
use crate::{Entry, Key, Precondition, Reading, Revision, StoreExt};

/// How many networks a node may be in when what they all depend on changes.
const MOST_NETWORKS: usize = 50;

/// A part of the region as it was read.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) state: State,
    /// What is recorded in the store.
    pub(super) records: Vec<Record>,
    /// Whether records lead to each other, so that one that changes may change what keys of others hold.
    pub(super) is_linked: bool,
    pub(super) heads: BTreeMap<ProjectId, Head>,
    /// Every key that was asked for, and that the decision may depend on.
    pub(super) asked: Seen,
    /// The keys of projects, whose heads were asked for.
    pub(super) projects: Vec<(ProjectId, Arc<Project>)>,
    /// The revision as of which it is, or a younger one.
    pub(super) revision: Revision,
    /// Keys that are as they are whatever the records say.
    pub(super) foreign: Vec<Key>,
    /// Preconditions beyond those on keys.
    pub(super) also: Vec<Precondition>,
    /// Whether anything was read after the heads, so that it may be younger than they are.
    pub(super) is_mixed: bool,
}

/// Reads a share, piece by piece.
struct Reader<'a> {
    registry: &'a Registry,
    records: Vec<Record>,
    heads: BTreeMap<ProjectId, Head>,
    asked: Seen,
    projects: Vec<(ProjectId, Arc<Project>)>,
    revision: Revision,
    also: Vec<Precondition>,
    reserved: Vec<Vni>,
    /// Keys that are as they are whatever the records say.
    foreign: Vec<Key>,
    is_mixed: bool,
    is_linked: bool,
}

/// What came of reading.
pub(super) enum Read {
    Share(Box<Share>),
    /// The change concerns these projects, too.
    Elsewhere(BTreeSet<ProjectId>),
}

impl Registry {
    /// Reads what a change has to know, where it concerns these projects at most.
    pub(super) async fn read(
        &self,
        change: &Change,
        names: &Names,
        projects: &BTreeSet<ProjectId>,
    ) -> Result<Read, RegistryError> {
        let mut reader = Reader {
            registry: self,
            records: Vec::new(),
            heads: BTreeMap::new(),
            asked: Seen::new(),
            projects: Vec::new(),
            revision: Revision::ZERO,
            also: Vec::new(),
            reserved: Vec::new(),
            foreign: Vec::new(),
            is_mixed: false,
            is_linked: names.takes_vni || names.gives_vni,
        };
        let nodes: Vec<Key> = names.nodes.iter().map(|node| layout::node(*node)).collect();
        let heads: Vec<Key> = projects.iter().map(|project| layout::head(*project)).collect();
        let keys = [&names.locators[..], &nodes, &names.claims, &heads].concat();
        let mut entries = reader.get(&keys).await?.into_iter();
        let located = located(entries.by_ref().take(names.locators.len()))?;
        if !located.is_subset(projects) {
            return Ok(Read::Elsewhere(&located | projects));
        }
        let mut known = Vec::new();
        for entry in entries.by_ref().take(nodes.len()).flatten() {
            known.extend(node_record(&entry)?);
        }
        let mut owners: BTreeSet<NodeId> = BTreeSet::new();
        for entry in entries.by_ref().take(names.claims.len()).flatten() {
            owners.insert(layout::id(&entry)?);
        }
        for (project, entry) in projects.iter().zip(entries) {
            reader.project(*project, entry.as_ref()).await?;
        }
        reader.node_change(change, names, &known, owners, projects).await?;
        if let Some(elsewhere) = reader.elsewhere(projects) {
            return Ok(Read::Elsewhere(elsewhere));
        }
        reader.hosts(names, &mut known).await?;
        if names.takes_vni || names.gives_vni {
            reader.vnis(names).await?;
        }
        reader.records.extend(known.into_iter().map(Record::Node));
        reader.finish(&self.region).map(|share| Read::Share(Box::new(share)))
    }
}

fn located(entries: impl Iterator<Item = Option<Entry>>) -> Result<BTreeSet<ProjectId>, RegistryError> {
    // A network that is gone leads to where its VNI rests.
    let leads = entries.flatten().filter(|entry| !entry.value.starts_with(b"rest/"));
    leads.map(|entry| layout::id(&entry)).collect()
}

fn node_record(entry: &Entry) -> Result<Option<Node>, RegistryError> {
    match layout::record(entry)? {
        Some(Record::Node(node)) => Ok(Some(node)),
        _ => Err(RegistryError::record(&entry.key, "not a node")),
    }
}

impl Reader<'_> {
    async fn get(&mut self, keys: &[Key]) -> Result<Vec<Option<Entry>>, RegistryError> {
        let Reading { revision, entries } = self.registry.store.get(keys).await?;
        self.revision = self.revision.max(revision);
        let revisions = entries.iter().map(|entry| entry.as_ref().map(|entry| entry.revision));
        self.asked.extend(keys.iter().cloned().zip(revisions));
        Ok(entries)
    }

    async fn project(&mut self, id: ProjectId, head: Option<&Entry>) -> Result<(), RegistryError> {
        let prefix = layout::project(id);
        let Some(head) = head else {
            // Without a head there is no project, and none can come without it.
            self.heads.insert(id, Head::default());
            return Ok(());
        };
        let project = match self.registry.cache.project(id, head.revision, &Head::read(head)?) {
            Some(project) => project,
            None => {
                self.is_mixed = true;
                let (_, entries) = self.registry.store.list_all(&prefix, None).await?;
                let project = Arc::new(Project::read(head, &entries)?);
                self.registry.cache.put_project(id, Arc::clone(&project));
                project
            }
        };
        self.records.extend(project.records.iter().cloned());
        self.heads.insert(id, project.head.clone());
        self.projects.push((id, project));
        Ok(())
    }

    /// Reads what a change of a node depends on: who else has its addresses and keys, and the networks it is in.
    async fn node_change(
        &mut self,
        change: &Change,
        names: &Names,
        known: &[Node],
        owners: BTreeSet<NodeId>,
        projects: &BTreeSet<ProjectId>,
    ) -> Result<(), RegistryError> {
        let mut more: Vec<Key> =
            owners.into_iter().filter(|owner| !names.nodes.contains(owner)).map(layout::node).collect();
        // What is given up has to be as it was, too.
        more.extend(known.iter().filter(|node| names.places != Some(node.id)).flat_map(layout::claims));
        more.retain(|key| !self.asked.contains_key(key));
        let everywhere = if let Change::UpdateNode(node) = change {
            known.iter().find(|old| old.id == node.id && !is_alike(old, node)).map(|old| old.id)
        } else {
            names.everywhere
        };
        if !more.is_empty() {
            self.is_mixed = true;
            for entry in self.get(&more).await?.into_iter().flatten() {
                if let Some(Record::Node(node)) = layout::record(&entry)? {
                    self.records.push(Record::Node(node));
                }
            }
        }
        let Some(node) = everywhere else { return Ok(()) };
        let prefix = layout::memberships(node);
        let (revision, entries) = self.registry.store.list_all(&prefix, None).await?;
        self.is_mixed = true;
        self.also.push(Precondition::NoneSince(prefix.clone(), revision));
        let member_of: BTreeSet<ProjectId> =
            entries.iter().filter_map(|entry| layout::id_in(&entry.key, &prefix)).collect();
        if member_of.len() > MOST_NETWORKS {
            return Err(RegistryError::TooManyNetworks { node, networks: member_of.len(), most: MOST_NETWORKS });
        }
        // Their heads were not read yet, unless this is the second time.
        for project in member_of.difference(projects) {
            self.heads.insert(*project, Head::default());
        }
        Ok(())
    }

    /// Returns the projects to be read where some were found that were not.
    fn elsewhere(&self, projects: &BTreeSet<ProjectId>) -> Option<BTreeSet<ProjectId>> {
        let all: BTreeSet<ProjectId> = self.heads.keys().copied().collect();
        (all != *projects).then_some(all)
    }

    /// Puts nodes in the place of those that containers run on: real ones where the change asks what they are like.
    async fn hosts(&mut self, names: &Names, known: &mut Vec<Node>) -> Result<(), RegistryError> {
        let mut by_network: BTreeMap<ProjectId, BTreeSet<NodeId>> = BTreeMap::new();
        let apps: BTreeMap<_, _> = self
            .records
            .iter()
            .filter_map(|record| if let Record::App(app) = record { Some((app.id, app.project)) } else { None })
            .collect();
        for record in &self.records {
            if let Record::Container(container) = record
                && let Some(project) = apps.get(&container.slot.app())
            {
                by_network.entry(*project).or_default().insert(container.node);
            }
        }
        // A network's nodes are alike, so one other tells for all.
        let asked = names.places.or(names.everywhere).or_else(|| names.nodes.first().copied());
        let mut real: BTreeSet<NodeId> = BTreeSet::new();
        if let Some(asked) = asked {
            real.extend(by_network.values().filter_map(|nodes| nodes.iter().find(|node| **node != asked)));
        }
        let recorded =
            self.records.iter().filter_map(|record| if let Record::Node(node) = record { Some(node.id) } else { None });
        let mut there: BTreeSet<NodeId> = known.iter().map(|node| node.id).chain(recorded).collect();
        real.retain(|node| !there.contains(node));
        let keys: Vec<Key> = real.iter().map(|node| layout::node(*node)).collect();
        if !keys.is_empty() {
            self.is_mixed = true;
            for entry in self.get(&keys).await?.into_iter().flatten() {
                known.extend(node_record(&entry)?);
            }
        }
        there.extend(known.iter().map(|node| node.id));
        let others: BTreeSet<NodeId> =
            by_network.into_values().flatten().filter(|node| !there.contains(node)).collect();
        known.extend(others.into_iter().map(placeholder));
        Ok(())
    }

    fn finish(self, region: &Region) -> Result<Share, RegistryError> {
        let mut state = State::load(region.clone(), Generation::ZERO, self.records)?;
        self.reserved.into_iter().for_each(|vni| state.reserve_vni(vni));
        let records = state.records();
        let Self { heads, asked, projects, revision, also, is_mixed, is_linked, foreign, .. } = self;
        Ok(Share { state, records, is_linked, heads, asked, projects, revision, foreign, also, is_mixed })
    }
}

impl Share {
    /// Returns what has to hold of a key that is to be written.
    pub(super) fn precondition(&self, key: &Key) -> Option<Precondition> {
        let listed = || self.projects.iter().find_map(|(_, project)| project.revisions.get(key).copied());
        match self.asked.get(key).copied().or_else(|| listed().map(Some)) {
            Some(Some(revision)) => Some(Precondition::At(key.clone(), revision)),
            // Heads guard memberships, which several containers share.
            None if key.starts_with(&layout::members()) => None,
            // What was not found, and what is new. Whoever read long ago whose turn it is among the VNIs may find that it is
            // the same number's turn again: that the number is free is a condition of its own.
            Some(None) | None => Some(Precondition::Absent(key.clone())),
        }
    }
}

/// Returns whether a network cannot tell two descriptions of a node apart when it decides who may be in it.
fn is_alike(one: &Node, two: &Node) -> bool {
    one.underlay_mtu == two.underlay_mtu
        && one.underlay.is_ipv4() == two.underlay.is_ipv4()
        && one.tunnel_address.is_ipv4() == two.tunnel_address.is_ipv4()
}

/// Makes a node of which nothing is asked but that it is there.
fn placeholder(id: NodeId) -> Node {
    let label: Label = "placeholder".parse().expect("letters are a label");
    let underlay = ([192, 0, 2, 1], 1).into();
    Node::new(id, label, underlay, [192, 0, 2, 1].into(), PublicKey::new([0; 32]))
}

/// Revisions of keys, as they are cached.
pub(super) type Revisions = BTreeMap<Key, Revision>;
