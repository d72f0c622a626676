//! What was read before: used only where a head shows that it is still so.

use core::time::Duration;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pn_core::{ContainerId, Network, NodeId, Numbers, ProjectId, Record, Timestamp};
use tokio::time::Instant;

use super::RegistryError;
use super::share::Revisions;
use crate::layout::{self, Head};
use crate::{Entry, Key, Revision};

/// How many projects, and how many ways to them, are remembered.
const PROJECTS: usize = 64;
const HINTS: usize = 4096;

/// What is recorded of a project.
#[derive(Debug)]
pub(super) struct Project {
    /// The revision of its head.
    pub(super) revision: Revision,
    pub(super) head: Head,
    pub(super) records: Vec<Record>,
    pub(super) revisions: Revisions,
}

impl Project {
    pub(super) fn read(head: &Entry, entries: &[Entry]) -> Result<Self, RegistryError> {
        let mut records = Vec::with_capacity(entries.len() + 1);
        for entry in entries {
            records.extend(layout::record(entry)?);
        }
        let revisions = entries.iter().map(|entry| (entry.key.clone(), entry.revision)).collect();
        let (revision, head) = (head.revision, Head::read(head)?);
        let network = records
            .iter()
            .find_map(|record| if let Record::Network(Network { id, .. }) = record { Some(*id) } else { None });
        if let Some(network) = network.filter(|_| head.next != 1) {
            records.push(Record::Next(Numbers::Addresses(network), head.next));
        }
        Ok(Self { revision, head, records, revisions })
    }
}

#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    projects: BTreeMap<ProjectId, Arc<Project>>,
    /// Where keys led to.
    hints: HashMap<Key, ProjectId>,
    locks: HashMap<ProjectId, Arc<tokio::sync::Mutex<()>>>,
    /// Containers that drain since a moment that was still to come, and when that was seen first.
    draining: BTreeMap<(ProjectId, NodeId), BTreeMap<ContainerId, (Timestamp, Instant)>>,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what was read of a project with this head.
    ///
    /// A revision alone does not tell: a store that went back to an earlier state says it again of something else. The last
    /// mark in the head is random.
    pub(super) fn project(&self, id: ProjectId, revision: Revision, head: &Head) -> Option<Arc<Project>> {
        let inner = self.lock();
        inner.projects.get(&id).filter(|project| project.revision == revision && project.head == *head).cloned()
    }

    pub(super) fn put_project(&self, id: ProjectId, project: Arc<Project>) {
        let mut inner = self.lock();
        if inner.projects.len() >= PROJECTS && !inner.projects.contains_key(&id) {
            inner.projects.pop_first();
        }
        inner.projects.insert(id, project);
    }

    pub(super) fn hint(&self, key: &Key) -> Option<ProjectId> {
        self.lock().hints.get(key).copied()
    }

    pub(super) fn put_hint(&self, key: Key, project: ProjectId) {
        let mut inner = self.lock();
        if inner.hints.len() >= HINTS {
            inner.hints.clear();
        }
        inner.hints.insert(key, project);
    }

    /// Notes which containers of a project on a node drain since a moment that is still to come, in place of those that did
    /// before, and returns how long ago it was first seen of each.
    pub(super) fn draining(
        &self,
        of: (ProjectId, NodeId),
        containers: &BTreeMap<ContainerId, Timestamp>,
    ) -> Vec<Duration> {
        let (mut inner, now) = (self.lock(), Instant::now());
        let before = inner.draining.remove(&of).unwrap_or_default();
        let seen = containers.iter().map(|(id, since)| {
            let seen = before.get(id).filter(|(then, _)| then == since).map_or(now, |(_, seen)| *seen);
            (*id, (*since, seen))
        });
        let seen: BTreeMap<ContainerId, (Timestamp, Instant)> = seen.collect();
        let long = seen.values().map(|(_, seen)| now.saturating_duration_since(*seen)).collect();
        if !seen.is_empty() {
            inner.draining.insert(of, seen);
        }
        long
    }

    /// Returns what writers of one project in this process take turns by.
    pub(super) fn turn(&self, id: ProjectId) -> Arc<tokio::sync::Mutex<()>> {
        let mut inner = self.lock();
        if inner.locks.len() >= HINTS {
            inner.locks.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Arc::clone(inner.locks.entry(id).or_default())
    }
}
