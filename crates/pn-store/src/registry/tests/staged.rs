//! A store in memory, and what a test lets happen around it.

use core::fmt;
use core::time::Duration;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use crate::{
    Key, Lease, LeaseId, Listing, MemoryStore, Outcome, Page, Reading, Revision, Store, StoreError, Transaction, Watch,
};

/// What happens beside the calls of a store.
#[async_trait]
pub(crate) trait Stage: fmt::Debug + Send + Sync {
    /// Is called before a page is listed.
    async fn before_page(&self, _store: &MemoryStore, _listing: &Listing) {}

    /// Is called with each page, and says whether it arrives.
    fn page(&self, _page: &Page) -> Result<(), StoreError> {
        Ok(())
    }

    /// Is called before each transaction, and says whether it reaches the store.
    async fn committing(&self, _store: &MemoryStore) -> Result<(), StoreError> {
        Ok(())
    }

    /// Is called after each transaction, and says whether its answer arrives.
    async fn committed(&self, _store: &MemoryStore) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Nothing happens.
impl Stage for () {}

/// A store in memory with a stage.
#[derive(Debug)]
pub(crate) struct Staged<S> {
    store: Mutex<MemoryStore>,
    pub(crate) stage: S,
}

impl<S: Stage> Staged<S> {
    pub(crate) fn new(store: MemoryStore, stage: S) -> Arc<Self> {
        Arc::new(Self { store: Mutex::new(store), stage })
    }

    /// Puts another store in the place of what there is, as whoever restores an old snapshot does.
    pub(crate) fn replace(&self, store: MemoryStore) {
        *self.store.lock().unwrap() = store;
    }

    fn store(&self) -> MemoryStore {
        self.store.lock().unwrap().clone()
    }
}

#[async_trait]
impl<S: Stage> Store for Staged<S> {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        self.store().get(keys).await
    }

    async fn list(&self, listing: &Listing) -> Result<Page, StoreError> {
        self.stage.before_page(&self.store(), listing).await;
        let page = self.store().list(listing).await?;
        self.stage.page(&page)?;
        Ok(page)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.stage.committing(&self.store()).await?;
        let outcome = self.store().commit(transaction).await?;
        self.stage.committed(&self.store()).await?;
        Ok(outcome)
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store().watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store().grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store().keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store().revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store().compact(revision).await
    }
}
