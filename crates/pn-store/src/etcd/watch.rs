//! What follows a prefix of a cluster.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Client, Error, EventType, WatchOptions, WatchResponse, WatchStream};

use super::cluster::{Cluster, MESSAGE};
use super::connection::{Call, Connection};
use super::failure::{error, is_not_permitted, is_token_refused};
use super::message::{entry, octets, revision, signed};
use crate::{Batch, Event, Key, Revision, StoreError, StoreErrorKind, Watch};

/// A watch of a cluster.
pub(super) struct EtcdWatch {
    stream: WatchStream,
    prefix: Key,
    /// What was received and not told yet.
    ready: VecDeque<Batch>,
    has_ended: bool,
    /// It lives as long as one of its watches.
    _connection: Arc<Connection>,
}

impl core::fmt::Debug for EtcdWatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EtcdWatch").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl EtcdWatch {
    /// Follows the keys that start with a prefix, from a revision on, that one included.
    pub(super) async fn open(cluster: &Cluster, prefix: &Key, from: Revision) -> Result<Self, StoreError> {
        let options = WatchOptions::new()
            .with_range(prefix.end())
            .with_start_revision(signed(from).max(1))
            .with_prev_key()
            .with_progress_notify();
        // The first answer belongs to it: a member that is gone does not give one.
        let start = octets(prefix.as_str());
        let watch = move |client: Client| {
            let (start, options) = (start.clone(), options.clone());
            async move {
                let mut client = client.watch_client().max_decoding_message_size(MESSAGE);
                let mut stream = client.watch(start, Some(options)).await?;
                let created = stream.message().await?;
                let refusal = created.as_ref().filter(|created| created.canceled()).map(reason);
                match refusal {
                    Some(refusal) if is_token_refused(&refusal) => Err(refusal),
                    Some(_) | None => Ok((created, stream)),
                }
            }
        };
        let ((created, stream), connection) = cluster.ask(Call::Watch, "watch", prefix.as_str(), watch).await?;
        let closed = |kind| StoreError::new(kind, "watch", prefix);
        let created = created.ok_or_else(|| closed(StoreErrorKind::Closed))?;
        check(&created, prefix)?;
        // The cluster would wait for that revision without a word; it is not the one whose revision this was.
        if from > revision(created.header()).next() {
            return Err(closed(StoreErrorKind::Compacted));
        }
        let (prefix, ready) = (prefix.clone(), VecDeque::new());
        Ok(Self { stream, prefix, ready, has_ended: false, _connection: connection })
    }

    fn receive(&mut self, response: Result<Option<WatchResponse>, Error>) -> Result<(), StoreError> {
        let response = response.map_err(|source| {
            let error = error(source, "watch", self.prefix.as_str());
            if error.kind() != StoreErrorKind::TooLarge {
                return error;
            }
            // It would come again; reading anew takes as many messages as it needs.
            StoreError::new(StoreErrorKind::Compacted, "watch", &self.prefix).with_source(error)
        })?;
        let response = response.ok_or_else(|| StoreError::new(StoreErrorKind::Closed, "watch", &self.prefix))?;
        check(&response, &self.prefix)?;
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let after = entry(kv)?;
            let (revision, key) = (after.revision, after.key.clone());
            let before = event.prev_kv().map(entry).transpose()?;
            let is_put = event.event_type() == EventType::Put;
            let event = Event { key, before, after: is_put.then_some(after) };
            match self.ready.back_mut() {
                Some(batch) if batch.revision == revision => batch.events.push(event),
                _ => self.ready.push_back(Batch { revision, events: vec![event] }),
            }
        }
        Ok(())
    }
}

fn reason(cancelled: &WatchResponse) -> Error {
    Error::WatchError(cancelled.cancel_reason().to_owned())
}

/// Refuses an answer that ends a watch.
fn check(response: &WatchResponse, prefix: &Key) -> Result<(), StoreError> {
    if response.compact_revision() > 0 {
        return Err(StoreError::new(StoreErrorKind::Compacted, "watch", prefix));
    }
    if response.canceled() {
        let reason = reason(response);
        let kind = if is_not_permitted(&reason) { StoreErrorKind::Denied } else { StoreErrorKind::Closed };
        return Err(StoreError::new(kind, "watch", prefix).with_source(reason));
    }
    Ok(())
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        if self.has_ended {
            return Err(StoreError::new(StoreErrorKind::Closed, "watch", &self.prefix));
        }
        while self.ready.is_empty() {
            let response = self.stream.message().await;
            self.receive(response).inspect_err(|_| self.has_ended = true)?;
        }
        let mut batch = self.ready.pop_front().expect("it is not empty");
        batch.events.sort_unstable_by(|one, two| one.key.cmp(&two.key));
        Ok(batch)
    }
}
