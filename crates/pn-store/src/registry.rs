//! The typed operations of the model over a store that many write to.

mod cache;
mod error;
mod names;
mod reading;
mod share;
mod writing;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pn_core::{Change, Container, ContainerId, Network, NetworkId, ProjectId, Region, State};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep};

use self::cache::{Cache, Project};
pub use self::error::RegistryError;
use self::names::Names;
pub(crate) use self::reading::records;
use self::share::{Read, Share};
use self::writing::{first, write};
use crate::layout::{self, Head};
use crate::{Clock, Key, Operation, Outcome, Revision, Store, StoreError, StoreErrorKind, SystemClock, Transaction};

/// Changes the state that a store holds, as [`State::apply`] does, beside any number of others who do the same.
///
/// A change reads what concerns it, decides, and writes in one transaction that is made only where nothing it depends on
/// has changed meanwhile; otherwise it begins again after a while of random length. Changes of different projects do not
/// meet. What it costs does not grow with the region.
///
/// Clones share their cache. Everybody who changes one store has to have the same [`Region`].
///
/// ```
/// use std::sync::Arc;
///
/// use pn_core::{Change, Project, ProjectId, Region};
/// use pn_store::{MemoryStore, Registry};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::new(Arc::new(MemoryStore::new()), Region::default());
/// let project = ProjectId::from_u128(1);
/// registry.apply(Change::AddProject(Project::new(project, "shop".parse()?))).await?;
/// assert_eq!(registry.state().await?.project(project).unwrap().label.as_str(), "shop");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
    region: Region,
    clock: Arc<dyn Clock>,
    cache: Arc<Cache>,
    patience: Duration,
}

/// A change that was made.
#[derive(Debug, Clone)]
pub struct Applied {
    revision: Revision,
    state: State,
}

impl Applied {
    /// Returns the revision at which the change is there.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns a container that the change concerned.
    #[must_use]
    pub fn container(&self, id: ContainerId) -> Option<Container> {
        self.state.container(id)
    }

    /// Returns the network of a container that the change concerned.
    #[must_use]
    pub fn network_of_container(&self, id: ContainerId) -> Option<NetworkId> {
        self.state.network_of_container(id)
    }

    /// Returns the environment of a container that the change concerned, as [`State::environment`] does.
    #[must_use]
    pub fn environment(&self, id: ContainerId) -> Option<[(String, String); 3]> {
        self.state.environment(id)
    }

    /// Returns the network of a project that the change concerned.
    #[must_use]
    pub fn network_of(&self, project: ProjectId) -> Option<&Network> {
        self.state.network_of(project)
    }
}

/// What came of trying a change.
enum Attempt {
    Made(Box<Applied>),
    /// It concerns these projects, too.
    Elsewhere(BTreeSet<ProjectId>),
    /// Something changed meanwhile.
    Overtaken,
    /// The answer was lost: this was tried.
    Doubtful(StoreError, Transaction),
    /// It is too much for one transaction, and this comes first.
    First(Change),
}

/// How much one transaction writes, so that preconditions fit into it, too.
const MOST_WRITES: usize = 100;

impl Registry {
    /// Makes a registry over a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, region: Region) -> Self {
        let patience = Duration::from_secs(20);
        Self { store, region, clock: Arc::new(SystemClock), cache: Arc::default(), patience }
    }

    /// Sets where time and random numbers come from.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Sets how long a change is tried again while others are faster or the store cannot be reached: 20 s.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(crate) const fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Returns the region's rules.
    #[must_use]
    pub const fn region(&self) -> &Region {
        &self.region
    }

    /// Makes a change where the rules allow it.
    ///
    /// Scaling down by more than 80 containers is done in steps; each is a smaller scaling down.
    ///
    /// # Errors
    /// [`RegistryError`]: [`Refused`](RegistryError::Refused) with the reason that [`State::apply`] gives.
    ///
    /// # Cancel safety
    /// A dropped future leaves the change made or not made.
    pub async fn apply(&self, change: Change) -> Result<Applied, RegistryError> {
        let mut steps = vec![change];
        loop {
            let change = steps.last().cloned().expect("the change itself is the first");
            match self.apply_step(&change).await? {
                Ok(applied) => {
                    steps.pop();
                    if steps.is_empty() {
                        return Ok(applied);
                    }
                }
                Err(first) => steps.push(first),
            }
        }
    }

    /// Makes a change, or returns what has to come first.
    async fn apply_step(&self, change: &Change) -> Result<Result<Applied, Change>, RegistryError> {
        let names = Names::of(change);
        let mark = format!("{:016x}", self.clock.random());
        let hints = names.locators.iter().filter_map(|key| self.cache.hint(key));
        let mut projects: BTreeSet<ProjectId> = names.projects.iter().copied().chain(hints).collect();
        let (begun, mut attempts, mut doubt) = (Instant::now(), 0, None::<(StoreError, Transaction)>);
        loop {
            let turns = self.turns(&projects).await;
            let (mut failed, tried) = (None, doubt.as_ref().map(|(_, transaction)| transaction));
            match self.attempt(change, &names, &projects, &mark, tried).await {
                Ok(Attempt::Made(applied)) => return Ok(Ok(*applied)),
                Ok(Attempt::First(change)) => return Ok(Err(change)),
                Ok(Attempt::Elsewhere(all)) => projects = all,
                Ok(Attempt::Overtaken) => (),
                Ok(Attempt::Doubtful(error, transaction)) => doubt = Some((error, transaction)),
                Err(RegistryError::Store(error)) if error.is_retryable() => failed = Some(error),
                Err(error) => return Err(error),
            }
            drop(turns);
            attempts += 1;
            if begun.elapsed() >= self.patience {
                let error = failed.or(doubt.map(|(error, _)| error));
                return Err(error.map_or(RegistryError::Contended { attempts }, RegistryError::Store));
            }
            if attempts > 1 {
                sleep(self.pause(attempts)).await;
            }
        }
    }

    /// Waits until no other writer of this process is at the same projects.
    async fn turns(&self, projects: &BTreeSet<ProjectId>) -> Vec<OwnedMutexGuard<()>> {
        let mut turns = Vec::new();
        // In the order of their ids, so that two never wait for each other.
        for project in projects {
            turns.push(self.cache.turn(*project).lock_owned().await);
        }
        turns
    }

    /// Returns how long to wait before the next attempt: up to twice as long each time, and random.
    fn pause(&self, attempts: u32) -> Duration {
        let most = 2_000 << attempts.min(7);
        Duration::from_micros(self.clock.random() % most)
    }

    async fn attempt(
        &self,
        change: &Change,
        names: &Names,
        projects: &BTreeSet<ProjectId>,
        mark: &str,
        tried: Option<&Transaction>,
    ) -> Result<Attempt, RegistryError> {
        let mut share = match self.read(change, names, projects).await? {
            Read::Share(share) => *share,
            Read::Elsewhere(all) => return Ok(Attempt::Elsewhere(all)),
        };
        if let Some(tried) = tried
            && self.was_made(tried, &share, mark).await?
        {
            return Ok(Attempt::Made(Box::new(Applied { revision: share.revision, state: share.state })));
        }
        // Only scaling down may have to be done in steps.
        let before = matches!(change, Change::Scale { .. }).then(|| share.state.clone());
        if let Err(refused) = share.state.apply(self.clock.now(), change.clone()) {
            if !self.is_still_so(&share).await? {
                return Ok(Attempt::Overtaken);
            }
            // Others wrote so much since that the mark is gone, or the head is, where marks are.
            return match tried.is_some() && is_so(change, &share.state) {
                true => Ok(Attempt::Made(Box::new(Applied { revision: share.revision, state: share.state }))),
                false => Err(refused.into()),
            };
        }
        let (mut transaction, heads) = write(&share, mark);
        if transaction.operations.is_empty() {
            return Ok(Attempt::Made(Box::new(Applied { revision: share.revision, state: share.state })));
        }
        if let Change::RemoveNode(node) = change {
            transaction.operations.extend(layout::said(*node).map(Operation::Delete));
        }
        let count = transaction.operations.len();
        if count > MOST_WRITES {
            return before.and_then(|before| first(&before, change)).map(Attempt::First).ok_or_else(|| {
                let what = format!("a change of {count} keys: {MOST_WRITES} at most");
                StoreError::new(StoreErrorKind::TooLarge, "commit", what).into()
            });
        }
        match self.store.commit(transaction.clone()).await {
            Ok(Outcome::Committed(revision)) => {
                self.remember(names, &share, heads, &transaction, revision);
                Ok(Attempt::Made(Box::new(Applied { revision, state: share.state })))
            }
            Ok(Outcome::Refused) => Ok(Attempt::Overtaken),
            Err(error) if error.is_retryable() => Ok(Attempt::Doubtful(error, transaction)),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether a transaction was made whose answer was lost.
    async fn was_made(&self, tried: &Transaction, share: &Share, mark: &str) -> Result<bool, RegistryError> {
        if share.heads.values().any(|head| head.recent.iter().any(|recent| recent == mark)) {
            return Ok(true);
        }
        // Heads tell for projects. Nodes have none, but what was written to them can be seen.
        if tried.operations.iter().any(|operation| operation.key().starts_with(&layout::heads())) {
            return Ok(false);
        }
        let keys: Vec<Key> = tried.operations.iter().map(|operation| operation.key().clone()).collect();
        let entries = self.store.get(&keys).await?.entries;
        Ok(tried.operations.iter().zip(entries).all(|(operation, entry)| match operation {
            Operation::Put { value, .. } => entry.is_some_and(|entry| entry.value == *value),
            Operation::Delete(_) => entry.is_none(),
            Operation::DeletePrefix(_) => true,
        }))
    }

    /// Returns whether what was read, piece by piece, is still so: then it was so all at once.
    async fn is_still_so(&self, share: &Share) -> Result<bool, RegistryError> {
        if !share.is_mixed {
            return Ok(true);
        }
        let keys: Vec<Key> = share.asked.keys().cloned().collect();
        let entries = self.store.get(&keys).await?.entries;
        let now = entries.into_iter().map(|entry| entry.map(|entry| entry.revision));
        Ok(share.asked.values().copied().eq(now))
    }

    /// Keeps what was written for the next change of the same projects.
    fn remember(
        &self,
        names: &Names,
        share: &Share,
        heads: BTreeMap<ProjectId, Head>,
        transaction: &Transaction,
        revision: Revision,
    ) {
        for (id, head) in heads {
            let before = share.projects.iter().find(|(known, _)| *known == id);
            let mut revisions = before.map(|(_, project)| project.revisions.clone()).unwrap_or_default();
            let prefix = layout::project(id);
            for operation in transaction.operations.iter().filter(|operation| operation.key().starts_with(&prefix)) {
                match operation {
                    Operation::Put { key, .. } => drop(revisions.insert(key.clone(), revision)),
                    Operation::Delete(key) => drop(revisions.remove(key)),
                    Operation::DeletePrefix(prefix) => revisions.retain(|key, _| !key.starts_with(prefix)),
                }
            }
            let records = share.state.records_of(id);
            self.cache.put_project(id, Arc::new(Project { revision, head, records, revisions }));
            for locator in &names.locators {
                self.cache.put_hint(locator.clone(), id);
            }
        }
    }
}

/// Returns whether a state is as a change was to make it, where a second time would be refused.
fn is_so(change: &Change, state: &State) -> bool {
    match change {
        Change::AddProject(project) => state.project(project.id) == Some(project),
        Change::RemoveProject(project) => state.project(*project).is_none(),
        Change::EnablePrivateNetwork(request) => {
            state.network_of(request.project).is_some_and(|network| network.id == request.network)
        }
        Change::AddApp(app) => state.app(app.id).is_some_and(|there| there.project == app.project),
        Change::RemoveApp(app) => state.app(*app).is_none(),
        Change::RemoveNode(node) => state.node(*node).is_none(),
        Change::Start { container, slot, node } => {
            state.container(*container).is_some_and(|there| there.slot == *slot && there.node == *node)
        }
        Change::Replace { container, replaces, node } => {
            let replaced = state.container(*replaces);
            state
                .container(*container)
                .is_some_and(|there| there.node == *node && replaced.is_none_or(|replaced| replaced.slot == there.slot))
        }
        Change::DisablePrivateNetwork(_)
        | Change::MoveApp { .. }
        | Change::SetHosting { .. }
        | Change::Scale { .. }
        | Change::Undeclare { .. }
        | Change::DeclarePorts { .. }
        | Change::AddNode(_)
        | Change::UpdateNode(_)
        | Change::SetAvailability { .. }
        | Change::OfferKey { .. }
        | Change::PromoteKey(_)
        | Change::Ready(_)
        | Change::Stop(_)
        | Change::Remove(_)
        | Change::Fail(_)
        | _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
