use core::time::Duration;

use async_trait::async_trait;

use crate::{
    Batch, Entry, Event, Key, KeyError, Lease, LeaseId, Listing, Operation, Outcome, Page, Precondition, Reading,
    Revision, Store, StoreError, StoreErrorKind, Transaction, Watch,
};

/// A part of a store: every key has a prefix there that is not seen here.
#[derive(Debug, Clone)]
pub struct Prefixed<S> {
    store: S,
    prefix: Key,
}

impl<S: Store> Prefixed<S> {
    /// Makes the part of a store that has a prefix.
    pub const fn new(store: S, prefix: Key) -> Self {
        Self { store, prefix }
    }

    fn add(&self, key: &Key) -> Result<Key, StoreError> {
        let text = format!("{}{key}", self.prefix);
        let wrong = |error: KeyError| StoreError::new(StoreErrorKind::Invalid, "use", &text).with_source(error);
        text.parse().map_err(wrong)
    }

    fn entry(&self, entry: Entry) -> Result<Entry, StoreError> {
        Ok(Entry { key: remove(&self.prefix, &entry.key)?, ..entry })
    }
}

fn remove(prefix: &Key, key: &Key) -> Result<Key, StoreError> {
    let rest = key.strip_prefix(prefix).and_then(|rest| rest.parse().ok());
    rest.ok_or_else(|| StoreError::new(StoreErrorKind::Corrupt, "read", key))
}

#[async_trait]
impl<S: Store> Store for Prefixed<S> {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        let keys = keys.iter().map(|key| self.add(key)).collect::<Result<Vec<_>, _>>()?;
        let Reading { revision, entries } = self.store.get(&keys).await?;
        let entries = entries.into_iter().map(|entry| entry.map(|entry| self.entry(entry)).transpose());
        Ok(Reading { revision, entries: entries.collect::<Result<_, _>>()? })
    }

    async fn list(&self, listing: &Listing) -> Result<Page, StoreError> {
        let after = listing.after.as_ref().map(|after| self.add(after)).transpose()?;
        let listing = Listing { prefix: self.add(&listing.prefix)?, after, ..*listing };
        let page = self.store.list(&listing).await?;
        let entries = page.entries.into_iter().map(|entry| self.entry(entry)).collect::<Result<_, _>>()?;
        Ok(Page { entries, ..page })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let preconditions = transaction.preconditions.into_iter().map(|precondition| {
            Ok(match precondition {
                Precondition::Absent(key) => Precondition::Absent(self.add(&key)?),
                Precondition::Present(key) => Precondition::Present(self.add(&key)?),
                Precondition::At(key, revision) => Precondition::At(self.add(&key)?, revision),
                Precondition::NoneSince(prefix, revision) => Precondition::NoneSince(self.add(&prefix)?, revision),
            })
        });
        let preconditions = preconditions.collect::<Result<_, _>>()?;
        let operations = transaction.operations.into_iter().map(|operation| {
            Ok(match operation {
                Operation::Put { key, value, lease } => Operation::Put { key: self.add(&key)?, value, lease },
                Operation::Delete(key) => Operation::Delete(self.add(&key)?),
                Operation::DeletePrefix(prefix) => Operation::DeletePrefix(self.add(&prefix)?),
            })
        });
        let operations = operations.collect::<Result<_, _>>()?;
        self.store.commit(Transaction { preconditions, operations }).await
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let watch = self.store.watch(&self.add(prefix)?, from).await?;
        Ok(Box::new(PrefixedWatch { watch, prefix: self.prefix.clone() }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}

#[derive(Debug)]
struct PrefixedWatch {
    watch: Box<dyn Watch>,
    prefix: Key,
}

#[async_trait]
impl Watch for PrefixedWatch {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        let Batch { revision, events } = self.watch.next().await?;
        let events = events.into_iter().map(|event| {
            let key = remove(&self.prefix, &event.key)?;
            let renamed = |entry: Option<Entry>| entry.map(|entry| Entry { key: key.clone(), ..entry });
            Ok(Event { before: renamed(event.before), after: renamed(event.after), key: key.clone() })
        });
        Ok(Batch { revision, events: events.collect::<Result<_, _>>()? })
    }
}
