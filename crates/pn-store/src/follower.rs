//! A node's share of the region, followed.

mod share;
mod task;
mod watches;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use pn_core::{Followed, Generation, NetworkId, NodeId, PlanSource};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::{Registry, Revision, Session, StoreError};

/// The plans of one node: what its networks, their containers and the nodes these run on come to.
///
/// A task reads the node's share as of one revision and watches it from there. What it keeps grows with the share, not with
/// the region. Whatever it cannot follow it reads anew: history that is gone, a watch that has ended, a store that comes
/// back. Until then the last plan stands.
///
/// - A node is dead when its lease has ended: its containers keep their ways and lose their names, as if they drained.
/// - A key that says that a node is alive and was deleted while the lease lives is put again before anybody believes it.
/// - When the own lease has ended the follower joins again and goes on with a plan; until then the last one stands. Where the store
///   went on meanwhile, what that plan removes is confirmed with it: the node was away, and others took its containers. A store that
///   lost its history confirms nothing.
/// - When another process took the place the follower says [`Followed::Fenced`] and ends. Where that process is gone again, it says
///   so and goes on.
///
/// Generations follow the store's revisions and always grow.
#[derive(Debug)]
pub struct Follower {
    words: Arc<Words>,
    task: JoinHandle<()>,
    progress: Progress,
}

impl Follower {
    /// Follows the share of a session's node.
    #[must_use]
    pub fn new(session: Session) -> Self {
        let words = Arc::new(Words::default());
        let registry = session.registry().clone();
        let node = session.node();
        let lease = Mutex::new(session.lease());
        let progress = Progress(Arc::new(Shared {
            registry,
            node,
            lease,
            networks: Mutex::default(),
            questions: AtomicU64::new(0),
            has_left: AtomicBool::new(false),
        }));
        let task = tokio::spawn(task::run(session, Arc::clone(&words), progress.clone()));
        Self { words, task, progress }
    }

    /// Returns what a [`Reporter`](crate::Reporter) has to know of it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl PlanSource for Follower {
    async fn next(&mut self) -> Followed {
        loop {
            let said = self.words.said.notified();
            if let Some(word) = self.words.take() {
                return word;
            }
            said.await;
        }
    }
}

/// What is to be said, in order; of plans the last.
#[derive(Debug, Default)]
struct Words {
    queue: Mutex<VecDeque<Followed>>,
    said: Notify,
}

impl Words {
    fn say(&self, word: Followed) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody asked for the plan before: it is as if it had never been. The same goes for what cancels out.
        match (queue.back(), &word) {
            (Some(Followed::Plan(_)), Followed::Plan(_)) => drop(queue.pop_back()),
            (Some(Followed::Lost(_)), Followed::Lost(_)) | (Some(Followed::Closed), _) => return,
            (Some(Followed::Lost(_)), Followed::Back) => {
                queue.pop_back();
                return;
            }
            _ => (),
        }
        queue.push_back(word);
        self.said.notify_one();
    }

    fn take(&self) -> Option<Followed> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match queue.front() {
            // It stays the last word.
            Some(Followed::Closed) => Some(Followed::Closed),
            _ => queue.pop_front(),
        }
    }
}

/// Which changes of which networks are in which plan of a follower, so that it can be told when they were applied.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registry: Registry,
    node: NodeId,
    lease: Mutex<crate::LeaseId>,
    networks: Mutex<BTreeMap<NetworkId, VecDeque<(Generation, Revision)>>>,
    /// How often somebody may have asked what the node has.
    questions: AtomicU64,
    /// Whether the node's place was given up.
    has_left: AtomicBool,
}

/// How many plans of a network that nobody applied yet are told apart.
const UNAPPLIED: usize = 64;

impl Progress {
    /// Gives the node's place up: its containers lose their names everywhere at once, and the follower says nothing more.
    ///
    /// # Errors
    /// [`StoreError`]: the lease ends by itself then.
    pub async fn leave(&self) -> Result<(), StoreError> {
        self.0.has_left.store(true, Ordering::Release);
        self.registry().store().revoke(self.lease()).await
    }

    fn has_left(&self) -> bool {
        self.0.has_left.load(Ordering::Acquire)
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(crate) fn node(&self) -> NodeId {
        self.0.node
    }

    /// Notes that somebody may have asked what the node has.
    pub(crate) fn asked(&self) {
        self.0.questions.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often somebody may have asked what the node has.
    pub(crate) fn questions(&self) -> u64 {
        self.0.questions.load(Ordering::Relaxed)
    }

    pub(crate) fn lease(&self) -> crate::LeaseId {
        *self.0.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_lease(&self, lease: crate::LeaseId) {
        *self.0.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    fn networks(&self) -> MutexGuard<'_, BTreeMap<NetworkId, VecDeque<(Generation, Revision)>>> {
        self.0.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self, generation: Generation, networks: impl IntoIterator<Item = (NetworkId, Revision)>) {
        let mut known = self.networks();
        for (network, revision) in networks {
            let plans = known.entry(network).or_default();
            plans.push_back((generation, revision));
            if plans.len() > UNAPPLIED {
                plans.pop_front();
            }
        }
    }

    /// Takes out what was applied with a generation, or with their own where networks are apart: the youngest revision of each
    /// network.
    pub(crate) fn applied(
        &self,
        generation: Generation,
        apart: &BTreeMap<NetworkId, Generation>,
    ) -> BTreeMap<NetworkId, Revision> {
        let mut applied = BTreeMap::new();
        self.networks().retain(|network, plans| {
            let until = apart.get(network).copied().unwrap_or(generation);
            while plans.front().is_some_and(|(planned, _)| *planned <= until) {
                applied.extend(plans.pop_front().map(|(_, revision)| (*network, revision)));
            }
            !plans.is_empty()
        });
        applied
    }

    /// Puts back what could not be told.
    pub(crate) fn put_back(&self, generation: Generation, applied: BTreeMap<NetworkId, Revision>) {
        let mut known = self.networks();
        for (network, revision) in applied {
            known.entry(network).or_default().push_front((generation, revision));
        }
    }
}

#[cfg(test)]
mod tests;
