//! Several watches as one stream.

use std::collections::BTreeMap;

use pn_core::ProjectId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::{Batch, Key, Revision, Store, StoreError};

/// What a watch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// The region's nodes, and which are alive.
    Nodes,
    /// The projects that the node has containers of.
    Memberships,
    /// What somebody confirmed for the node.
    Confirmations,
    /// What nodes are asked.
    Questions,
    /// A project with everything in it.
    Project(ProjectId),
}

/// How many changes wait to be looked at; watches wait, too, beyond that.
const BUFFER: usize = 256;

/// Watches, each driven by a task that ends with this.
#[derive(Debug)]
pub(super) struct Watches {
    tasks: BTreeMap<Subject, JoinHandle<()>>,
    sender: mpsc::Sender<(Subject, Result<Batch, StoreError>)>,
    receiver: mpsc::Receiver<(Subject, Result<Batch, StoreError>)>,
}

impl Watches {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(BUFFER);
        Self { tasks: BTreeMap::new(), sender, receiver }
    }

    /// Watches a prefix from a revision on.
    pub(super) async fn add(
        &mut self,
        store: &dyn Store,
        subject: Subject,
        prefix: &Key,
        from: Revision,
    ) -> Result<(), StoreError> {
        let mut watch = store.watch(prefix, from).await?;
        let sender = self.sender.clone();
        let task = tokio::spawn(async move {
            loop {
                let batch = watch.next().await;
                let has_ended = batch.is_err();
                if sender.send((subject, batch)).await.is_err() || has_ended {
                    return;
                }
            }
        });
        if let Some(before) = self.tasks.insert(subject, task) {
            before.abort();
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, subject: Subject) {
        if let Some(task) = self.tasks.remove(&subject) {
            task.abort();
        }
    }

    /// Waits for the next changes of any of them.
    pub(super) async fn next(&mut self) -> (Subject, Result<Batch, StoreError>) {
        loop {
            let (subject, batch) = self.receiver.recv().await.expect("a sender is kept here");
            // One that was removed may have said something before.
            if self.tasks.contains_key(&subject) {
                return (subject, batch);
            }
        }
    }

    /// Returns the next changes if there are any.
    pub(super) fn try_next(&mut self) -> Option<(Subject, Result<Batch, StoreError>)> {
        loop {
            let (subject, batch) = self.receiver.try_recv().ok()?;
            if self.tasks.contains_key(&subject) {
                return Some((subject, batch));
            }
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}
