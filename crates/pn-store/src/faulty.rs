use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    Batch, Key, Lease, LeaseId, Listing, Outcome, Page, Reading, Revision, Store, StoreError, StoreErrorKind,
    Transaction, Watch,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing.
    None,
    /// The store is not reached, and nothing is done.
    Before,
    /// The answer is lost after everything was done.
    After,
    /// It takes this long.
    Delay(Duration),
}

/// A store that fails as it is told to, for tests. Clones share store and faults.
///
/// Faults that are [queued](Self::queue) befall the next transactions, one each. While the store is [cut
/// off](Self::cut_off) nothing gets through, and watches end.
#[derive(Debug, Clone)]
pub struct Faulty<S> {
    store: S,
    queued: Arc<Mutex<VecDeque<Fault>>>,
    /// Whether nothing gets through, and how often watches were closed.
    link: Arc<watch::Sender<(bool, u64)>>,
}

impl<S: Store> Faulty<S> {
    /// Makes a store that works until it is told not to.
    pub fn new(store: S) -> Self {
        Self { store, queued: Arc::default(), link: Arc::new(watch::Sender::new((false, 0))) }
    }

    /// Adds what befalls the next transactions, in this order.
    pub fn queue(&self, faults: impl IntoIterator<Item = Fault>) {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner).extend(faults);
    }

    /// Lets nothing through any more.
    pub fn cut_off(&self) {
        self.link.send_modify(|(is_cut, closed)| (*is_cut, *closed) = (true, *closed + 1));
    }

    /// Lets everything through again.
    pub fn restore(&self) {
        self.link.send_modify(|(is_cut, _)| *is_cut = false);
    }

    /// Ends every watch there is.
    pub fn close_watches(&self) {
        self.link.send_modify(|(_, closed)| *closed += 1);
    }

    fn pass(&self, operation: &'static str) -> Result<&S, StoreError> {
        if self.link.borrow().0 {
            return Err(lost(operation));
        }
        Ok(&self.store)
    }
}

fn lost(operation: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, operation, "a store that was told to fail")
}

#[async_trait]
impl<S: Store> Store for Faulty<S> {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        self.pass("get")?.get(keys).await
    }

    async fn list(&self, listing: &Listing) -> Result<Page, StoreError> {
        self.pass("list")?.list(listing).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let store = self.pass("commit")?;
        let fault = self.queued.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match fault.unwrap_or(Fault::None) {
            Fault::None => store.commit(transaction).await,
            Fault::Before => Err(lost("commit")),
            Fault::After => {
                store.commit(transaction).await?;
                Err(lost("commit"))
            }
            Fault::Delay(duration) => {
                tokio::time::sleep(duration).await;
                store.commit(transaction).await
            }
        }
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let watch = self.pass("watch")?.watch(prefix, from).await?;
        let link = self.link.subscribe();
        let closed = link.borrow().1;
        Ok(Box::new(FaultyWatch { watch, link, closed }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.pass("grant")?.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pass("keep alive")?.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pass("revoke")?.revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.pass("compact")?.compact(revision).await
    }
}

#[derive(Debug)]
struct FaultyWatch {
    watch: Box<dyn Watch>,
    link: watch::Receiver<(bool, u64)>,
    closed: u64,
}

#[async_trait]
impl Watch for FaultyWatch {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        let before = self.closed;
        tokio::select! {
            biased;
            // Where the store is gone, its own watch says so.
            Ok(_) = self.link.wait_for(|(_, closed)| *closed != before) => {
                Err(StoreError::new(StoreErrorKind::Closed, "watch", "a store that was told to fail"))
            }
            batch = self.watch.next() => batch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryStore, Prefixed};

    #[tokio::test]
    async fn wrappers_obey_the_laws_of_stores() {
        let prefix: Key = "some/where/".parse().unwrap();
        crate::conformance::store(|| async { Faulty::new(MemoryStore::new()) }).await;
        crate::conformance::store(|| async { Prefixed::new(MemoryStore::new(), prefix.clone()) }).await;
    }
}
