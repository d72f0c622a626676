use core::fmt;
use core::num::NonZeroUsize;
use core::time::Duration;

use async_trait::async_trait;

use crate::{Key, StoreError, StoreErrorKind};

/// Keys and values that many processes share, with a history.
///
/// # Contract
/// - Every transaction that changes anything gives the store its next *revision*, by at least one. A transaction is made
///   whole or not at all, and only where all its preconditions hold; of two that exclude each other one is refused.
/// - A reading is as of one revision. What was committed before it began is in it.
/// - A watch has neither gap nor repeat. What it cannot go on with it says, once, and then nothing more: history that is
///   gone, or is more than the store can tell, is [`Compacted`](crate::StoreErrorKind::Compacted), a right that is
///   missing [`Denied`](crate::StoreErrorKind::Denied), everything else [`Closed`](crate::StoreErrorKind::Closed) or
///   [`Unavailable`](crate::StoreErrorKind::Unavailable).
/// - A lease that is not kept alive ends after its time to live, as soon as anybody alive notices, and what was put
///   under it is deleted as by a transaction.
/// - After an error that [is retryable](StoreError::is_retryable) it is not known whether a transaction was made.
///
/// # Cancel safety
/// A dropped future leaves each transaction made or not made.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Reads keys, as of one revision.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError>;

    /// Reads a page of the keys that start with a prefix, in order. One that has fewer than the limit is not the last for that.
    ///
    /// # Errors
    /// [`StoreError`]: [`Compacted`](crate::StoreErrorKind::Compacted) where the history of the revision that was asked
    /// for is gone.
    async fn list(&self, listing: &Listing) -> Result<Page, StoreError>;

    /// Makes a transaction where its preconditions hold.
    ///
    /// # Errors
    /// [`StoreError`]: [`Invalid`](crate::StoreErrorKind::Invalid) where it writes a key twice.
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError>;

    /// Follows the keys that start with a prefix, from a revision on, that one included.
    ///
    /// # Errors
    /// [`StoreError`]. That history is gone may be said here or by the watch.
    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Makes a lease; a store may lengthen the time to live.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Lets a lease begin its time to live again.
    ///
    /// # Errors
    /// [`StoreError`]: [`LeaseEnded`](crate::StoreErrorKind::LeaseEnded).
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes what was put under it. One that has ended already is success.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Forgets what was before a revision: only watches from it on, and readings as of it or later, are possible then.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}

/// What follows the changes of a prefix.
#[async_trait]
pub trait Watch: fmt::Debug + Send {
    /// Waits for the next changes: those of one revision, all of them.
    ///
    /// # Errors
    /// [`StoreError`] where the watch has ended.
    ///
    /// # Cancel safety
    /// A dropped `next` loses nothing.
    async fn next(&mut self) -> Result<Batch, StoreError>;
}

/// How many changes a store has seen. Revisions of one store are in order; those of two have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(u64);

impl Revision {
    /// The revision of a store before its first change.
    pub const ZERO: Self = Self(0);

    /// Makes a revision from its number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the revision after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Identifies a lease within its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease {:x}", self.0)
    }
}

/// A lease that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Identifies it.
    pub id: LeaseId,
    /// How long it lives unless it is kept alive.
    pub ttl: Duration,
}

/// A key with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Vec<u8>,
    /// The revision of the transaction that put it.
    pub revision: Revision,
    /// The lease it was put under.
    pub lease: Option<LeaseId>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}={:?}", self.key, self.revision, String::from_utf8_lossy(&self.value))
    }
}

/// What some keys hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The revision as of which this is.
    pub revision: Revision,
    /// One for each key that was asked for, in that order.
    pub entries: Vec<Option<Entry>>,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// What the keys start with.
    pub prefix: Key,
    /// Only keys beyond this.
    pub after: Option<Key>,
    /// As of this revision; the current one where it is not said.
    pub at: Option<Revision>,
    /// How many at most.
    pub limit: NonZeroUsize,
}

impl Listing {
    /// How many entries a page has unless it is said.
    pub const LIMIT: NonZeroUsize = NonZeroUsize::new(512).expect("512 is not zero");

    /// Makes the listing of the first page of a prefix, as of now.
    #[must_use]
    pub const fn new(prefix: Key) -> Self {
        Self { prefix, after: None, at: None, limit: Self::LIMIT }
    }

    /// Sets the key to begin after.
    #[must_use]
    pub fn after(self, after: Key) -> Self {
        Self { after: Some(after), ..self }
    }

    /// Sets the revision as of which to list.
    #[must_use]
    pub fn at(self, at: Revision) -> Self {
        Self { at: Some(at), ..self }
    }

    /// Sets how many at most.
    #[must_use]
    pub fn limit(self, limit: NonZeroUsize) -> Self {
        Self { limit, ..self }
    }

    /// Returns the first text that is listed.
    #[cfg(any(feature = "sqlite", feature = "etcd"))]
    pub(crate) fn start(&self) -> String {
        // Nothing is between a key and itself with an octet added.
        self.after.as_ref().map_or_else(|| self.prefix.to_string(), |after| format!("{after}\0"))
    }
}

/// Some of the keys of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The revision as of which this is.
    pub revision: Revision,
    /// The entries, ordered by key.
    pub entries: Vec<Entry>,
    /// Whether there are more beyond the last.
    pub is_last: bool,
}

/// What has to hold for a transaction to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precondition {
    /// There is no such key.
    Absent(Key),
    /// There is such a key.
    Present(Key),
    /// The key was put last by the transaction of this revision.
    At(Key, Revision),
    /// No key that starts with this prefix was put after this revision. Deletions do not count.
    NoneSince(Key, Revision),
}

/// What a transaction does to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Puts a value.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Vec<u8>,
        /// The lease with which it goes.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; one that is not there is success.
    Delete(Key),
    /// Deletes every key that starts with this prefix.
    DeletePrefix(Key),
}

/// Several operations that are made together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// What has to hold.
    pub preconditions: Vec<Precondition>,
    /// What is done; no two may be about one key.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// How many preconditions a transaction can have, and how many operations: what etcd takes by default.
    pub const MAX: usize = 128;

    /// Makes a transaction that does nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { preconditions: Vec::new(), operations: Vec::new() }
    }

    /// Adds a precondition.
    #[must_use]
    pub fn when(mut self, precondition: Precondition) -> Self {
        self.preconditions.push(precondition);
        self
    }

    /// Adds a put.
    #[must_use]
    pub fn put(self, key: Key, value: impl Into<Vec<u8>>) -> Self {
        self.operation(Operation::Put { key, value: value.into(), lease: None })
    }

    /// Adds a put under a lease.
    #[must_use]
    pub fn put_leased(self, key: Key, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        self.operation(Operation::Put { key, value: value.into(), lease: Some(lease) })
    }

    /// Adds a deletion.
    #[must_use]
    pub fn delete(self, key: Key) -> Self {
        self.operation(Operation::Delete(key))
    }

    /// Adds the deletion of everything with a prefix.
    #[must_use]
    pub fn delete_prefix(self, prefix: Key) -> Self {
        self.operation(Operation::DeletePrefix(prefix))
    }

    /// Adds an operation.
    #[must_use]
    pub fn operation(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    /// Refuses what no store takes: too much, or one key twice.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        use crate::StoreErrorKind::{Invalid, TooLarge};
        let count = self.preconditions.len().max(self.operations.len());
        if count > Self::MAX {
            let what = format!("a transaction of {count} preconditions or operations: {} at most", Self::MAX);
            return Err(StoreError::new(TooLarge, "commit", what));
        }
        let mut keys: Vec<&Key> = self.operations.iter().map(Operation::key).collect();
        keys.sort_unstable();
        let prefixes: Vec<&Key> = self.operations.iter().filter_map(Operation::prefix).collect();
        let is_under = |key: &Key| prefixes.iter().any(|prefix| key.starts_with(prefix) && key != *prefix);
        let twice = keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        match twice.or_else(|| keys.iter().copied().find(|key| is_under(key))) {
            Some(key) => Err(StoreError::new(Invalid, "commit", format!("two operations on {key}"))),
            None => Ok(()),
        }
    }
}

impl Operation {
    /// Returns the key or prefix it is about.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete(key) | Self::DeletePrefix(key) => key,
        }
    }

    const fn prefix(&self) -> Option<&Key> {
        match self {
            Self::DeletePrefix(prefix) => Some(prefix),
            Self::Put { .. } | Self::Delete(_) => None,
        }
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was made, and this is its revision.
    Committed(Revision),
    /// A precondition did not hold.
    Refused,
}

/// The changes of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// What changed, ordered by key.
    pub events: Vec<Event>,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Key,
    /// What it held before.
    pub before: Option<Entry>,
    /// What it holds since; `None` where it was deleted.
    pub after: Option<Entry>,
}

/// What follows from a store's own methods.
#[async_trait]
pub trait StoreExt: Store {
    /// Reads one key.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn get_one(&self, key: &Key) -> Result<(Revision, Option<Entry>), StoreError>;

    /// Reads everything with a prefix, page by page, as of one revision: the current one where it is not said.
    ///
    /// Where history is forgotten meanwhile, the current revision is read anew, three times at most.
    ///
    /// # Errors
    /// [`StoreError`]: [`Compacted`](crate::StoreErrorKind::Compacted) where the history of the revision that was asked
    /// for is gone.
    async fn list_all(&self, prefix: &Key, at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError>;
}

#[async_trait]
impl<S: Store + ?Sized> StoreExt for S {
    async fn get_one(&self, key: &Key) -> Result<(Revision, Option<Entry>), StoreError> {
        let mut reading = self.get(core::slice::from_ref(key)).await?;
        Ok((reading.revision, reading.entries.pop().flatten()))
    }

    async fn list_all(&self, prefix: &Key, at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        list_families(self, core::slice::from_ref(prefix), at, Listing::LIMIT).await
    }
}

/// How often a reading is begun anew that history was forgotten under.
const ANEW: usize = 3;

/// Reads everything with one of some prefixes, as [`StoreExt::list_all`] does, and all of it as of one revision.
pub(crate) async fn list_families<S: Store + ?Sized>(
    store: &S,
    prefixes: &[Key],
    at: Option<Revision>,
    limit: NonZeroUsize,
) -> Result<(Revision, Vec<Entry>), StoreError> {
    let mut left = if at.is_none() { ANEW } else { 0 };
    loop {
        match list_once(store, prefixes, at, limit).await {
            Err(error) if error.kind() == StoreErrorKind::Compacted && left > 0 => left -= 1,
            listed => return listed,
        }
    }
}

async fn list_once<S: Store + ?Sized>(
    store: &S,
    prefixes: &[Key],
    mut at: Option<Revision>,
    limit: NonZeroUsize,
) -> Result<(Revision, Vec<Entry>), StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    for prefix in prefixes {
        let mut listing = Listing { at, ..Listing::new(prefix.clone()).limit(limit) };
        loop {
            let page = store.list(&listing).await?;
            at = Some(page.revision);
            let last = page.entries.last().map(|entry| entry.key.clone());
            entries.extend(page.entries);
            match last {
                Some(last) if !page.is_last => listing = listing.at(page.revision).after(last),
                _ => break,
            }
        }
    }
    Ok((at.unwrap_or_default(), entries))
}
