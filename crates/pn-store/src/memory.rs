//! A store in this process's memory.

use core::ops::Bound;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::{
    Batch, Entry, Event, Key, Lease, LeaseId, Listing, Operation, Outcome, Page, Precondition, Reading, Revision,
    Store, StoreError, StoreErrorKind, Transaction, Watch,
};

/// A store in this process's memory, for one process and for tests. Clones share what it holds.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// The current revision, for those who wait for the next.
    current: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: Revision,
    entries: BTreeMap<Key, Entry>,
    /// The last revisions, without gap.
    log: VecDeque<Batch>,
    /// The last revision whose changes are forgotten.
    compacted: Revision,
    leases: BTreeMap<LeaseId, Granted>,
    granted: i64,
}

#[derive(Debug)]
struct Granted {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<Key>,
}

impl MemoryStore {
    /// How many revisions are remembered.
    pub const HISTORY: usize = 8192;

    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Locks what there is, without what has ended by now.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock, and a transaction is made in one piece.
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let ended = inner.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id);
        for lease in ended.collect::<Vec<_>>() {
            inner.end(lease);
        }
        self.0.current.send_if_modified(|current| core::mem::replace(current, inner.revision) != inner.revision);
        inner
    }

    fn tell(&self, inner: &Inner) {
        self.0.current.send_if_modified(|current| core::mem::replace(current, inner.revision) != inner.revision);
    }
}

impl Inner {
    fn range(&self, prefix: &Key) -> impl Iterator<Item = &Entry> + use<'_> {
        let prefix = prefix.clone();
        let range = self.entries.range::<Key, _>((Bound::Included(&prefix), Bound::Unbounded));
        range.take_while(move |(key, _)| key.starts_with(&prefix)).map(|(_, entry)| entry)
    }

    fn holds(&self, precondition: &Precondition) -> bool {
        match precondition {
            Precondition::Absent(key) => !self.entries.contains_key(key),
            Precondition::Present(key) => self.entries.contains_key(key),
            Precondition::At(key, revision) => self.entries.get(key).is_some_and(|entry| entry.revision == *revision),
            Precondition::NoneSince(prefix, revision) => self.range(prefix).all(|entry| entry.revision <= *revision),
        }
    }

    fn make(&mut self, operations: Vec<Operation>) -> Revision {
        let revision = self.revision.next();
        let mut events = Vec::new();
        for operation in operations {
            match operation {
                Operation::Put { key, value, lease } => {
                    let entry = Entry { key: key.clone(), value, revision, lease };
                    let before = self.entries.insert(key.clone(), entry.clone());
                    self.unbind(before.as_ref());
                    if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
                        lease.keys.insert(key.clone());
                    }
                    events.push(Event { key, before, after: Some(entry) });
                }
                Operation::Delete(key) => self.delete(key, &mut events),
                Operation::DeletePrefix(prefix) => {
                    let keys: Vec<Key> = self.range(&prefix).map(|entry| entry.key.clone()).collect();
                    keys.into_iter().for_each(|key| self.delete(key, &mut events));
                }
            }
        }
        if events.is_empty() {
            return self.revision;
        }
        events.sort_unstable_by(|one, two| one.key.cmp(&two.key));
        self.revision = revision;
        self.log.push_back(Batch { revision, events });
        if self.log.len() > MemoryStore::HISTORY {
            self.compact(Revision::new(self.compacted.get() + 1));
        }
        revision
    }

    fn delete(&mut self, key: Key, events: &mut Vec<Event>) {
        if let Some(before) = self.entries.remove(&key) {
            self.unbind(Some(&before));
            events.push(Event { key, before: Some(before), after: None });
        }
    }

    /// Takes an entry that is no longer from its lease.
    fn unbind(&mut self, entry: Option<&Entry>) {
        let Some(entry) = entry else { return };
        if let Some(lease) = entry.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove(&entry.key);
        }
    }

    fn end(&mut self, lease: LeaseId) {
        if let Some(ended) = self.leases.remove(&lease) {
            self.make(ended.keys.into_iter().map(Operation::Delete).collect());
        }
    }

    /// Forgets the changes up to a revision, that one included.
    fn compact(&mut self, revision: Revision) {
        while self.log.front().is_some_and(|batch| batch.revision <= revision) {
            self.log.pop_front();
        }
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    /// Returns what a prefix held at a revision.
    fn at(&self, prefix: &Key, revision: Revision) -> BTreeMap<Key, Entry> {
        let mut then: BTreeMap<Key, Entry> =
            self.range(prefix).map(|entry| (entry.key.clone(), entry.clone())).collect();
        let later = self.log.iter().rev().take_while(|batch| batch.revision > revision);
        for event in later.flat_map(|batch| &batch.events).filter(|event| event.key.starts_with(prefix)) {
            match &event.before {
                Some(before) => then.insert(event.key.clone(), before.clone()),
                None => then.remove(&event.key),
            };
        }
        then
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        let inner = self.lock();
        let entries = keys.iter().map(|key| inner.entries.get(key).cloned()).collect();
        Ok(Reading { revision: inner.revision, entries })
    }

    async fn list(&self, listing: &Listing) -> Result<Page, StoreError> {
        let inner = self.lock();
        let revision = listing.at.unwrap_or(inner.revision);
        if revision < inner.compacted || revision > inner.revision {
            let what = format!("{} at revision {revision}", listing.prefix);
            return Err(StoreError::new(StoreErrorKind::Compacted, "list", what));
        }
        let is_beyond = |entry: &&Entry| listing.after.as_ref().is_none_or(|after| entry.key > *after);
        let most = listing.limit.get();
        let mut entries: Vec<Entry> = if revision == inner.revision {
            inner.range(&listing.prefix).filter(is_beyond).take(most.saturating_add(1)).cloned().collect()
        } else {
            inner.at(&listing.prefix, revision).values().filter(is_beyond).take(most + 1).cloned().collect()
        };
        let is_last = entries.len() <= most;
        entries.truncate(most);
        Ok(Page { revision, entries, is_last })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let mut inner = self.lock();
        for operation in &transaction.operations {
            if let Operation::Put { lease: Some(lease), .. } = operation
                && !inner.leases.contains_key(lease)
            {
                return Err(StoreError::new(StoreErrorKind::LeaseEnded, "commit under", lease));
            }
        }
        if !transaction.preconditions.iter().all(|precondition| inner.holds(precondition)) {
            return Ok(Outcome::Refused);
        }
        let revision = inner.make(transaction.operations);
        self.tell(&inner);
        Ok(Outcome::Committed(revision))
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let current = self.0.current.subscribe();
        Ok(Box::new(MemoryWatch { store: self.clone(), current, prefix: prefix.clone(), next: from, has_ended: false }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let mut inner = self.lock();
        inner.granted += 1;
        let id = LeaseId(inner.granted);
        inner.leases.insert(id, Granted { ttl, ends: Instant::now() + ttl, keys: BTreeSet::new() });
        // Watches wait for the first lease to end, and this may be it.
        self.0.current.send_modify(|_| ());
        Ok(Lease { id, ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let granted = inner.leases.get_mut(&lease);
        let granted = granted.ok_or_else(|| StoreError::new(StoreErrorKind::LeaseEnded, "keep alive", lease))?;
        granted.ends = Instant::now() + granted.ttl;
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.end(lease);
        self.tell(&inner);
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut inner = self.lock();
        // A reading as of the revision itself stays possible, and a watch from it on.
        inner.compact(Revision::new(revision.get().saturating_sub(1)));
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryWatch {
    store: MemoryStore,
    current: watch::Receiver<Revision>,
    prefix: Key,
    /// The next revision to be told.
    next: Revision,
    has_ended: bool,
}

impl MemoryWatch {
    /// Returns the next changes, or when to look again without having been told.
    fn poll(&mut self) -> Result<Result<Batch, Option<Instant>>, StoreError> {
        let closed = |kind| StoreError::new(kind, "watch", &self.prefix);
        if self.has_ended {
            return Err(closed(StoreErrorKind::Closed));
        }
        let inner = self.store.lock();
        self.current.mark_unchanged();
        if self.next <= inner.compacted || self.next > inner.revision.next() {
            self.has_ended = true;
            return Err(closed(StoreErrorKind::Compacted));
        }
        let first = inner.log.partition_point(|batch| batch.revision < self.next);
        for batch in inner.log.range(first..) {
            self.next = batch.revision.next();
            let events = batch.events.iter().filter(|event| event.key.starts_with(&self.prefix));
            let events: Vec<Event> = events.cloned().collect();
            if !events.is_empty() {
                return Ok(Ok(Batch { revision: batch.revision, events }));
            }
        }
        Ok(Err(inner.leases.values().map(|lease| lease.ends).min()))
    }
}

#[async_trait]
impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            let ends = match self.poll()? {
                Ok(batch) => return Ok(batch),
                Err(ends) => ends,
            };
            let changed = self.current.changed();
            match ends {
                Some(ends) => tokio::select! { _ = changed => (), () = sleep_until(ends) => () },
                // The store is held here, so the sender lives.
                None => drop(changed.await),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_obeys_the_laws_of_stores() {
        crate::conformance::store(|| async { MemoryStore::new() }).await;
    }
}
