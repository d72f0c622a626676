use core::time::Duration;

use pn_core::{ApplyError, Change, Node, NodeId, Record};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::{
    Key, LeaseId, Outcome, Precondition, Registry, RegistryError, StoreError, StoreErrorKind, Transaction, layout,
};

/// A node's place in the region: as long as it is kept, the names of the node's containers are answered.
///
/// A task keeps its lease alive. Dropping the session ends the task and leaves the lease to end by itself, as the end of the
/// process does; [`leave`](Self::leave) ends it at once.
#[derive(Debug)]
pub struct Session {
    registry: Registry,
    node: Node,
    /// The last registration that was tried, of which an answer may be lost.
    tried: u64,
    lease: LeaseId,
    ttl: Duration,
    /// Whether the lease has ended.
    ended: watch::Receiver<bool>,
    keeper: JoinHandle<()>,
}

/// What is under a node's lease.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Alive {
    version: u32,
    pub(crate) registration: u64,
}

impl Alive {
    pub(crate) fn read(key: &Key, value: &[u8]) -> Result<Self, RegistryError> {
        serde_json::from_slice(value).map_err(|error| RegistryError::record(key, error))
    }

    fn to_value(registration: u64) -> Vec<u8> {
        serde_json::to_vec(&Self { version: 1, registration }).expect("numbers are JSON")
    }
}

impl Registry {
    /// Takes a node's place, which is its own for as long as the lease is kept: adds the node, or says that it has registered
    /// again, and keeps a lease of this time to live.
    ///
    /// Whoever has the same key takes the place over at once, so a restart need not wait for the lease of the process before,
    /// which is fenced if it still runs. The node's availability stays as it is.
    ///
    /// # Errors
    /// [`RegistryError`]: [`NodeTaken`](RegistryError::NodeTaken) where another key has the place and is alive.
    pub async fn join(&self, node: Node, ttl: Duration) -> Result<Session, RegistryError> {
        loop {
            let Place { known, alive } = self.place(node.id).await?;
            let mut joined = node.clone();
            let change = match known {
                Some(known) => {
                    let is_same = known.public_key == node.public_key || known.next_public_key == Some(node.public_key);
                    if alive.is_some() && !is_same {
                        return Err(RegistryError::NodeTaken { node: node.id });
                    }
                    joined.registration = known.registration + 1;
                    joined.availability = known.availability;
                    Change::UpdateNode(joined.clone())
                }
                None => {
                    joined.registration = joined.registration.max(1);
                    Change::AddNode(joined.clone())
                }
            };
            if let Some(session) = self.take_place(joined, change, ttl).await? {
                return Ok(session);
            }
        }
    }

    /// Reads who has a node's place.
    async fn place(&self, node: NodeId) -> Result<Place, RegistryError> {
        let keys = [layout::node(node), layout::alive(node)];
        let mut entries = self.store().get(&keys).await?.entries.into_iter();
        let (record, alive) = (entries.next().flatten(), entries.next().flatten());
        let known = record.as_ref().map(layout::record).transpose()?.flatten();
        let known = known.and_then(|record| if let Record::Node(known) = record { Some(known) } else { None });
        let alive = alive.map(|alive| Alive::read(&alive.key, &alive.value)).transpose()?;
        Ok(Place { known, alive: alive.map(|alive| alive.registration) })
    }

    /// Records a node as it joins, and keeps a lease for it; `None` where somebody else was faster, or removed it.
    async fn take_place(&self, joined: Node, change: Change, ttl: Duration) -> Result<Option<Session>, RegistryError> {
        let applied = match self.apply(change).await {
            Err(RegistryError::Refused(
                ApplyError::Fenced { .. } | ApplyError::NodeExists { .. } | ApplyError::UnknownNode { .. },
            )) => return Ok(None),
            applied => applied?,
        };
        let lease = self.store().grant(ttl).await?;
        let value = Alive::to_value(joined.registration);
        let transaction = Transaction::new()
            .when(Precondition::At(layout::node(joined.id), applied.revision()))
            .put_leased(layout::alive(joined.id), value, lease.id);
        if self.store().commit(transaction).await? == Outcome::Refused {
            self.store().revoke(lease.id).await?;
            return Ok(None);
        }
        let (sender, ended) = watch::channel(false);
        let keeper = tokio::spawn(keep(self.clone(), lease.id, lease.ttl, sender));
        let tried = joined.registration;
        Ok(Some(Session { registry: self.clone(), node: joined, tried, lease: lease.id, ttl, ended, keeper }))
    }
}

/// Who has a node's place.
struct Place {
    /// What is recorded of the node.
    known: Option<Node>,
    /// Which registration is alive, if one is.
    alive: Option<u64>,
}

/// What was found of a node's place when it joined again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The node as it was recorded for this process.
    Own,
    /// Somebody else had the place meanwhile, who is gone.
    Others,
    /// Nothing of this process: the store lost it. It does not know the node, or as it was in an earlier life.
    Less,
}

/// Keeps a lease alive until it has ended.
async fn keep(registry: Registry, lease: LeaseId, ttl: Duration, ended: watch::Sender<bool>) {
    let mut pause = ttl / 3;
    loop {
        sleep(pause).await;
        pause = match registry.store().keep_alive(lease).await {
            Ok(()) => ttl / 3,
            Err(error) if error.kind() == StoreErrorKind::LeaseEnded => break,
            Err(error) => {
                tracing::debug!(%lease, %error, "the lease could not be kept alive yet");
                ttl / 10
            }
        };
    }
    ended.send_replace(true);
}

impl Session {
    /// Returns the node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node.id
    }

    /// Returns the registry that it was made with.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns which registration of the node this is.
    #[must_use]
    pub const fn registration(&self) -> u64 {
        self.node.registration
    }

    /// Returns the lease, for what is to vanish with it.
    #[must_use]
    pub const fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Waits until the lease has ended.
    pub async fn ended(&self) {
        // The keeper does not end before.
        drop(self.ended.clone().wait_for(|ended| *ended).await);
    }

    /// Gives the place up: the node's containers lose their names at once.
    ///
    /// # Errors
    /// [`StoreError`]: the lease ends by itself then.
    pub async fn leave(self) -> Result<(), StoreError> {
        self.keeper.abort();
        self.registry.store().revoke(self.lease).await
    }

    /// Joins again after the lease has ended, and says what it found. A node that is recorded for this process stays what it is
    /// recorded as: its keys may have been replaced since.
    pub(crate) async fn rejoin(&mut self) -> Result<(Self, Found), RegistryError> {
        let registry = self.registry.clone();
        loop {
            let Place { known, alive } = registry.place(self.node.id).await?;
            // Registrations only grow, but in a store that went back.
            if alive.is_some_and(|registration| registration > self.tried) {
                return Err(RegistryError::NodeTaken { node: self.node.id });
            }
            let mut joined = self.node.clone();
            let (found, change) = match known {
                Some(known) if known.registration > self.tried => {
                    (joined.registration, joined.availability) = (known.registration + 1, known.availability);
                    (Found::Others, Change::UpdateNode(joined.clone()))
                }
                Some(known) => {
                    let is_own = known.registration >= self.node.registration;
                    if is_own {
                        joined = known;
                    } else {
                        joined.availability = known.availability;
                    }
                    self.tried = self.tried.max(joined.registration) + 1;
                    joined.registration = self.tried;
                    (if is_own { Found::Own } else { Found::Less }, Change::UpdateNode(joined.clone()))
                }
                None => (Found::Less, Change::AddNode(joined.clone())),
            };
            if let Some(session) = registry.take_place(joined, change, self.ttl).await? {
                return Ok((session, found));
            }
        }
    }

    /// Puts what says that the node is alive where somebody deleted it; `false` where the lease has ended.
    pub(crate) async fn revive(&self) -> Result<bool, RegistryError> {
        let key = layout::alive(self.node.id);
        let transaction = Transaction::new().when(Precondition::Absent(key.clone()));
        let transaction = transaction.put_leased(key, Alive::to_value(self.node.registration), self.lease);
        match self.registry.store().commit(transaction).await {
            // Refused: it is there again, and says whose it is.
            Ok(_) => Ok(true),
            Err(error) if error.kind() == StoreErrorKind::LeaseEnded => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}
