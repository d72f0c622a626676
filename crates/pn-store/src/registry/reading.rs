//! What the store holds, read as the model has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pn_core::{
    AppId, ApplyError, Change, Container, ContainerId, Generation, Node, NodeId, Numbers, Phase, ProjectId, Record,
    State, Timestamp,
};

use super::{Registry, RegistryError};
use crate::layout::{self, Head};
use crate::store::list_families;
use crate::{Clock, Entry, Key, Listing, Revision, StoreExt};

impl Registry {
    /// Reads the whole state, as of one revision.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn state(&self) -> Result<State, RegistryError> {
        self.state_and_revision().await.map(|(state, _)| state)
    }

    pub(crate) async fn state_and_revision(&self) -> Result<(State, Revision), RegistryError> {
        let (revision, entries) = self.list(&layout::state()).await?;
        let records = records(&entries)?;
        let generation = self.generation(revision, &entries)?;
        Ok((State::load(self.region.clone(), generation, records)?, revision))
    }

    /// Reads everything with one of some prefixes, as of one revision.
    pub(crate) async fn list(&self, prefixes: &[Key]) -> Result<(Revision, Vec<Entry>), RegistryError> {
        Ok(list_families(&*self.store, prefixes, None, Listing::LIMIT).await?)
    }

    pub(crate) fn generation(&self, revision: Revision, entries: &[Entry]) -> Result<Generation, RegistryError> {
        let offset = entries.iter().find(|entry| entry.key == layout::offset());
        let offset: u64 = offset.map(layout::id).transpose()?.unwrap_or(0);
        Ok(Generation::new(revision.get().saturating_add(offset)))
    }

    /// Reads a project with everything in it and the nodes it is on; everything else is left out of the state.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn project(&self, id: ProjectId) -> Result<State, RegistryError> {
        let prefix = layout::project(id);
        let (revision, mut entries) = self.store.list_all(&prefix, None).await?;
        let head = self.store.get(&[layout::head(id), layout::offset()]).await?.entries;
        entries.extend(head.into_iter().flatten());
        let mut records = records(&entries)?;
        let hosts = layout::hosts(&records);
        records.extend(self.nodes(hosts).await?.into_iter().map(Record::Node));
        let generation = self.generation(revision, &entries)?;
        Ok(State::load(self.region.clone(), generation, records)?)
    }

    /// Removes the containers of a project that are on a node and have drained long enough, and returns how many.
    ///
    /// Since when a container drains is told by the clock of whoever stopped it. Where that is a moment still to come, it counts
    /// from when this registry, or a clone of it, saw first that the container drains: it is to be called time and again.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn remove_drained(&self, project: ProjectId, node: NodeId) -> Result<usize, RegistryError> {
        let state = self.project(project).await?;
        let Some(network) = state.network_of(project).map(|network| network.id) else { return Ok(0) };
        let now = self.clock.now();
        let since = |id| match state.container(id) {
            Some(Container { node: on, phase: Phase::Draining { since }, .. }) if on == node => Some(since),
            _ => None,
        };
        let ours = state.drained(network, Timestamp::MAX).filter_map(|id| Some((id, since(id)?)));
        let ahead: BTreeMap<ContainerId, Timestamp> = ours.filter(|(_, since)| *since > now).collect();
        let seen = self.cache.draining((project, node), &ahead);
        let mut removed = 0;
        for id in state.drained(network, now).filter(|id| since(*id).is_some()) {
            self.apply(Change::Remove(id)).await?;
            removed += 1;
        }
        let drain = self.region.policy.drain.max(self.region.policy.ttl);
        for ((id, since), seen) in ahead.into_iter().zip(seen).filter(|(_, seen)| *seen >= drain) {
            // The clock by which it drains has gone on since it was first seen.
            let clock = NotBefore { clock: Arc::clone(&self.clock), moment: since.after(seen) };
            self.clone().with_clock(Arc::new(clock)).apply(Change::Remove(id)).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Reads the project of an app.
    ///
    /// # Errors
    /// [`RegistryError`]: [`UnknownApp`](ApplyError::UnknownApp) where there is no such app.
    pub async fn project_of_app(&self, app: AppId) -> Result<ProjectId, RegistryError> {
        let (_, entry) = self.store.get_one(&layout::app(app)).await?;
        entry.as_ref().map(layout::id).transpose()?.ok_or_else(|| ApplyError::UnknownApp { app }.into())
    }

    /// Reads the project of a container.
    ///
    /// # Errors
    /// [`RegistryError`]: [`UnknownContainer`](ApplyError::UnknownContainer) where there is no such container.
    pub async fn project_of_container(&self, container: ContainerId) -> Result<ProjectId, RegistryError> {
        let (_, entry) = self.store.get_one(&layout::container(container)).await?;
        entry.as_ref().map(layout::id).transpose()?.ok_or_else(|| ApplyError::UnknownContainer { container }.into())
    }

    /// Reads some nodes; those that are not there are left out.
    pub(crate) async fn nodes(&self, nodes: impl IntoIterator<Item = NodeId>) -> Result<Vec<Node>, RegistryError> {
        let keys: Vec<Key> = nodes.into_iter().map(layout::node).collect();
        let mut nodes = Vec::new();
        for entry in self.store.get(&keys).await?.entries.into_iter().flatten() {
            if let Some(Record::Node(node)) = layout::record(&entry)? {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }
}

/// A clock that shows a moment as long as that is still to come.
#[derive(Debug)]
struct NotBefore {
    clock: Arc<dyn Clock>,
    moment: Timestamp,
}

impl Clock for NotBefore {
    fn now(&self) -> Timestamp {
        self.clock.now().max(self.moment)
    }

    fn random(&self) -> u64 {
        self.clock.random()
    }
}

/// Returns the records that keys hold, and those that heads imply.
pub(crate) fn records(entries: &[Entry]) -> Result<Vec<Record>, RegistryError> {
    let mut records = Vec::with_capacity(entries.len());
    let (mut networks, mut nexts) = (BTreeMap::new(), Vec::new());
    for entry in entries {
        if let Some(project) = layout::id_in::<ProjectId>(&entry.key, &layout::heads()) {
            nexts.push((project, Head::read(entry)?.next));
        }
        let record = layout::record(entry)?;
        if let Some(Record::Network(network)) = &record {
            networks.insert(network.project, network.id);
        }
        records.extend(record);
    }
    for (project, next) in nexts.into_iter().filter(|(_, next)| *next != 1) {
        records.extend(networks.get(&project).map(|network| Record::Next(Numbers::Addresses(*network), next)));
    }
    Ok(records)
}
