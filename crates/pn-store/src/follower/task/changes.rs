//! What watches say, taken in.

use std::sync::Arc;

use pn_core::{NodeId, ProjectId, Record};
use tokio::time::Instant;

use super::{DOUBT, End, Following, Task};
use crate::follower::share::Share;
use crate::follower::watches::Subject;
use crate::{Batch, Event, Key, RegistryError, Revision, StoreExt, layout};

impl Task {
    /// Takes in the changes of one revision that one watch saw, and returns whether they concern the plan.
    pub(super) async fn take(
        &mut self,
        following: &mut Following,
        subject: Subject,
        batch: Batch,
    ) -> Result<bool, End> {
        match subject {
            Subject::Nodes => {
                let mut is_changed = false;
                for event in &batch.events {
                    is_changed |= self.take_node(following, event, batch.revision).await?;
                }
                Ok(is_changed)
            }
            Subject::Memberships => {
                let prefix = layout::memberships(self.node);
                for event in &batch.events {
                    let Some(project) = layout::id_in(&event.key, &prefix) else { continue };
                    match &event.after {
                        Some(_) => self.enter(following, project).await?,
                        None => {
                            following.watches.remove(Subject::Project(project));
                            let left = following.share.set_project(project, Vec::new(), batch.revision);
                            left.map_err(RegistryError::from)?;
                        }
                    }
                }
                Ok(true)
            }
            Subject::Confirmations => {
                for event in &batch.events {
                    self.confirmation(event.after.as_ref())?;
                }
                Ok(false)
            }
            Subject::Questions => {
                let own = [layout::recall(), layout::recall_of(self.node)];
                if batch.events.iter().any(|event| own.contains(&event.key)) {
                    self.progress.asked();
                }
                Ok(false)
            }
            Subject::Project(project) => self.take_project(following, project, &batch).await,
        }
    }

    async fn take_node(&mut self, following: &mut Following, event: &Event, revision: Revision) -> Result<bool, End> {
        let share = &mut following.share;
        let Some(node) = layout::id_in::<NodeId>(&event.key, &layout::nodes()) else { return Ok(false) };
        if share.host(node).is_none_or(|known| revision <= known) {
            return Ok(false);
        }
        if event.key == layout::alive(node) {
            if node == self.node {
                self.check_own(&event.key, event.after.as_ref()).await?;
                return Ok(false);
            }
            if event.after.is_some() {
                following.doubted.remove(&node);
                share.put_alive(node, true);
                share.note_node(node, revision);
                return Ok(true);
            }
            following.doubted.insert(node, Instant::now() + DOUBT);
            return Ok(false);
        }
        let is_alive = event.after.is_some();
        match event.after.as_ref().map(layout::record).transpose()?.flatten() {
            Some(Record::Node(node)) => share.replace_node(node, revision),
            _ if !is_alive => share.remove_node(node, revision),
            _ => (),
        }
        Ok(true)
    }

    async fn take_project(
        &mut self,
        following: &mut Following,
        project: ProjectId,
        batch: &Batch,
    ) -> Result<bool, End> {
        let share = &mut following.share;
        if share.project(project).is_none_or(|known| batch.revision <= known) {
            return Ok(false);
        }
        let mut records = share.records(project);
        for Event { key, after, .. } in &batch.events {
            match after.as_ref().map(layout::record).transpose()?.flatten() {
                // An address that rests has no container.
                Some(Record::Rest(_)) | None => drop(records.remove(key)),
                Some(record) => drop(records.insert(key.clone(), record)),
            }
        }
        self.meet(share, records.values()).await?;
        let changed = share.set_project(project, records.into_values().collect(), batch.revision);
        changed.map_err(RegistryError::from)?;
        Ok(true)
    }

    /// Begins to follow a project that the node has containers of now.
    async fn enter(&mut self, following: &mut Following, project: ProjectId) -> Result<(), End> {
        if following.share.project(project).is_some() {
            return Ok(());
        }
        let store = Arc::clone(self.registry.store());
        let prefix = layout::project(project);
        let (revision, entries) = store.list_all(&prefix, None).await?;
        let records = crate::registry::records(&entries)?;
        self.meet(&mut following.share, &records).await?;
        following.share.set_project(project, records, revision).map_err(RegistryError::from)?;
        following.watches.add(&*store, Subject::Project(project), &prefix, revision.next()).await?;
        Ok(())
    }

    /// Reads what is known of nodes that were not of the share before.
    async fn meet<'a>(
        &self,
        share: &mut Share,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<(), RegistryError> {
        let unknown: Vec<NodeId> = share.unknown(records).into_iter().collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let keys: Vec<Key> = unknown.iter().flat_map(|node| [layout::node(*node), layout::alive(*node)]).collect();
        let reading = self.registry.store().get(&keys).await?;
        for (node, entries) in unknown.into_iter().zip(reading.entries.chunks(2)) {
            let record = entries[0].as_ref().map(layout::record).transpose()?.flatten();
            if let Some(Record::Node(record)) = record {
                share.put_node(node, Some(record), entries[1].is_some(), reading.revision);
            }
        }
        Ok(())
    }

    /// Looks whether nodes that seemed dead are, and returns whether one is.
    pub(super) async fn doubts(&mut self, following: &mut Following) -> Result<bool, End> {
        let now = Instant::now();
        let due: Vec<NodeId> = following.doubted.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        let keys: Vec<Key> = due.iter().map(|node| layout::alive(*node)).collect();
        let reading = self.registry.store().get(&keys).await?;
        let mut is_changed = false;
        for (node, entry) in due.into_iter().zip(reading.entries) {
            following.doubted.remove(&node);
            if entry.is_none() {
                following.share.put_alive(node, false);
                is_changed = true;
            }
        }
        Ok(is_changed)
    }
}
