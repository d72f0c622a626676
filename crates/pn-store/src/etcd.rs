//! A store in an etcd cluster. This file alone names `etcd_client`.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions, Identity, KeyValue,
    PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::{
    Batch, Entry, Event, Key, KeyError, Lease, LeaseId, Listing, Operation, Outcome, Page, Precondition, Reading,
    Revision, Store, StoreError, StoreErrorKind, Transaction, Watch,
};

/// How to reach an etcd cluster.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EtcdOptions {
    /// Name and password, where the cluster asks for them.
    pub user: Option<Credentials>,
    /// What the cluster's certificates and our own are checked by; cleartext where there is none.
    pub tls: Option<Tls>,
}

/// A name and its password.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl core::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Certificates and a key, as PEM.
#[derive(Clone)]
pub struct Tls {
    /// The certificate authority that vouches for the cluster.
    pub ca: Vec<u8>,
    /// Our own certificate and its private key, where the cluster asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl core::fmt::Debug for Tls {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tls").field("has_identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

/// A store in an etcd cluster, version 3.4 or newer (feature `etcd`). Clones share connections.
///
/// One member of the cluster is asked at a time; where it cannot be reached, the next one is. Every member answers a call within
/// [`EtcdStore::PATIENCE`], or the call fails as [`Unavailable`](StoreErrorKind::Unavailable). A watch ends when its connection
/// does, so that whoever follows knows.
#[derive(Clone)]
pub struct EtcdStore {
    members: Arc<[Member]>,
    /// The number of the member that is asked.
    current: Arc<AtomicUsize>,
    options: ConnectOptions,
    endpoints: String,
}

/// One of the servers of a cluster, with a connection of its own: a client of many would go on asking one that is gone.
struct Member {
    url: String,
    client: OnceCell<Client>,
}

impl core::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EtcdStore").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// How often a quiet connection that somebody watches is tried, and how long it may be silent then. Who tries more often than
/// etcd's `--grpc-keepalive-min-time`, 5 s, is disconnected after a few times, as who tries while there is nothing to wait for.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

impl EtcdStore {
    /// How long a call may take.
    pub const PATIENCE: Duration = Duration::from_secs(5);

    /// Connects to a cluster by one or more of its members, each `HOST:PORT`.
    ///
    /// # Errors
    /// [`StoreError`]: [`Unavailable`](StoreErrorKind::Unavailable) where none of them answers,
    /// [`Denied`](StoreErrorKind::Denied) where they refuse name and password.
    pub async fn connect(endpoints: &[String], options: EtcdOptions) -> Result<Self, StoreError> {
        let mut connect = ConnectOptions::new()
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(Self::PATIENCE)
            .with_auto_token_refresh(true);
        if let Some(user) = options.user {
            connect = connect.with_user(user.name, user.password);
        }
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        if let Some(tls) = options.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca));
            if let Some((certificate, key)) = tls.identity {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            connect = connect.with_tls(with);
        }
        let named = endpoints.join(",");
        let member = |endpoint: &String| Member { url: format!("{scheme}://{endpoint}"), client: OnceCell::new() };
        let store = Self {
            members: endpoints.iter().map(member).collect(),
            current: Arc::default(),
            options: connect,
            endpoints: named,
        };
        // A client is made without asking anybody, so ask.
        let options = || Some(GetOptions::new().with_limit(1).with_keys_only());
        store
            .ask("connect to", &store.endpoints, |client| async move { client.kv_client().get("\0", options()).await })
            .await?;
        Ok(store)
    }

    /// Asks the member that was asked last, and the others where it and they were not reached; a call that may have arrived is
    /// made once.
    async fn ask<T, F: Future<Output = Result<T, Error>> + Send>(
        &self,
        operation: &'static str,
        object: &str,
        call: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let mut tries = self.members.len();
        loop {
            let number = self.current.load(Ordering::Relaxed);
            let member = self
                .members
                .get(number % self.members.len().max(1))
                .ok_or_else(|| StoreError::new(StoreErrorKind::Invalid, operation, "a cluster without members"))?;
            let answer = async {
                let connect = || Client::connect([&member.url], Some(self.options.clone()));
                let client = member.client.get_or_try_init(connect).await.map_err(|error| (error, true))?;
                call(client.clone()).await.map_err(|error| {
                    let was_not_reached = was_not_reached(&error);
                    (error, was_not_reached)
                })
            };
            let (failed, was_not_reached) = match timeout(Self::PATIENCE, answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err((source, was_not_reached))) => (error(source, operation, object), was_not_reached),
                Err(elapsed) => {
                    (StoreError::new(StoreErrorKind::Unavailable, operation, object).with_source(elapsed), false)
                }
            };
            if failed.kind() != StoreErrorKind::Unavailable {
                return Err(failed);
            }
            // Whoever was as unlucky has turned to the next one already.
            let next = number.wrapping_add(1);
            let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
            tries -= 1;
            if !was_not_reached || tries == 0 {
                return Err(failed);
            }
        }
    }
}

/// Returns whether a call failed before anything of it was sent.
fn was_not_reached(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return matches!(error, Error::TransportError(_)) };
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind;
            return matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            );
        }
        source = cause.source();
    }
    false
}

fn error(source: Error, operation: &'static str, object: &str) -> StoreError {
    StoreError::new(kind(&source), operation, object).with_source(source)
}

fn kind(error: &Error) -> StoreErrorKind {
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::LeaseKeepAliveError(reason) if reason == "lease not found" => return StoreErrorKind::LeaseEnded,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::Utf8Error(_) | Error::InvalidMetadataValue(_) => {
            return StoreErrorKind::Invalid;
        }
        Error::IoError(_)
        | Error::TransportError(_)
        | Error::WatchError(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::EndpointError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => return StoreErrorKind::Unavailable,
    };
    let message = status.message();
    // The numbers of gRPC (https://grpc.io/docs/guides/status-codes/); etcd's own messages where one stands for several.
    match status.code() as i32 {
        3 if message.contains("authentication failed") || message.contains("user name") => StoreErrorKind::Denied,
        3 if message.contains("too many operations") || message.contains("too large") => StoreErrorKind::TooLarge,
        7 | 16 => StoreErrorKind::Denied,
        9 if message.contains("authentication is not enabled") => StoreErrorKind::Denied,
        3 => StoreErrorKind::Invalid,
        5 if message.contains("lease") => StoreErrorKind::LeaseEnded,
        11 => StoreErrorKind::Compacted,
        8 if message.contains("space exceeded") => StoreErrorKind::Failed,
        12 | 15 => StoreErrorKind::Failed,
        _ => StoreErrorKind::Unavailable,
    }
}

/// Returns a key as etcd takes it: it has no empty key, and nothing is before an octet of zero.
fn octets(text: &str) -> Vec<u8> {
    if text.is_empty() { vec![0] } else { text.into() }
}

fn number(revision: i64) -> Revision {
    Revision::new(u64::try_from(revision).unwrap_or(0))
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

fn entry(kv: &KeyValue) -> Result<Entry, StoreError> {
    let text = String::from_utf8_lossy(kv.key());
    let wrong = |error: KeyError| StoreError::new(StoreErrorKind::Corrupt, "read", &text).with_source(error);
    let lease = (kv.lease() != 0).then(|| LeaseId(kv.lease()));
    let (key, value) = (text.parse().map_err(wrong)?, kv.value().to_vec());
    Ok(Entry { key, value, revision: number(kv.mod_revision()), lease })
}

fn compare(precondition: &Precondition) -> Compare {
    match precondition {
        Precondition::Absent(key) => Compare::version(key.as_str(), CompareOp::Equal, 0),
        Precondition::Present(key) => Compare::version(key.as_str(), CompareOp::Greater, 0),
        Precondition::At(key, revision) => Compare::mod_revision(key.as_str(), CompareOp::Equal, signed(*revision)),
        Precondition::NoneSince(prefix, revision) => {
            let since = signed(*revision).saturating_add(1);
            Compare::mod_revision(octets(prefix.as_str()), CompareOp::Less, since).with_range(prefix.end())
        }
    }
}

fn operation(operation: Operation) -> TxnOp {
    match operation {
        Operation::Put { key, value, lease } => {
            let lease = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.as_str(), value, lease)
        }
        Operation::Delete(key) => TxnOp::delete(key.as_str(), None),
        Operation::DeletePrefix(prefix) => {
            TxnOp::delete(octets(prefix.as_str()), Some(DeleteOptions::new().with_range(prefix.end())))
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        let named = keys.first().map_or("nothing", Key::as_str);
        let mut reading: Option<Reading> = None;
        for keys in keys.chunks(Transaction::MAX) {
            let mut options = GetOptions::new();
            if let Some(reading) = &reading {
                options = options.with_revision(signed(reading.revision));
            }
            let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(key.as_str(), Some(options.clone()))).collect();
            let gets = Txn::new().and_then(gets);
            let response = self
                .ask("get", named, |client| {
                    let gets = gets.clone();
                    async move { client.kv_client().txn(gets).await }
                })
                .await?;
            let revision = number(response.header().map_or(0, etcd_client::ResponseHeader::revision));
            let reading = reading.get_or_insert_with(|| Reading { revision, entries: Vec::new() });
            for response in response.op_responses() {
                if let TxnOpResponse::Get(response) = response {
                    reading.entries.push(response.kvs().first().map(entry).transpose()?);
                }
            }
        }
        Ok(reading.unwrap_or(Reading { revision: Revision::ZERO, entries: Vec::new() }))
    }

    async fn list(&self, listing: &Listing) -> Result<Page, StoreError> {
        let limit = i64::try_from(listing.limit.get()).unwrap_or(i64::MAX);
        let mut options = GetOptions::new().with_range(listing.prefix.end()).with_limit(limit);
        if let Some(at) = listing.at {
            options = options.with_revision(signed(at).max(1));
        }
        let (prefix, start) = (listing.prefix.as_str(), octets(&listing.start()));
        let get = |client: Client| {
            let (start, options) = (start.clone(), options.clone());
            async move { client.kv_client().get(start, Some(options)).await }
        };
        let response = self.ask("list", prefix, get).await?;
        let current = number(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        let entries = response.kvs().iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Page { revision: listing.at.unwrap_or(current), entries, is_last: !response.more() })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let object = transaction.operations.first().map_or_else(String::new, |first| first.key().to_string());
        let compares: Vec<Compare> = transaction.preconditions.iter().map(compare).collect();
        let operations: Vec<TxnOp> = transaction.operations.into_iter().map(operation).collect();
        let transaction = Txn::new().when(compares).and_then(operations);
        let commit = |client: Client| {
            let transaction = transaction.clone();
            async move { client.kv_client().txn(transaction).await }
        };
        let response = self.ask("commit", &object, commit).await?;
        if !response.succeeded() {
            return Ok(Outcome::Refused);
        }
        Ok(Outcome::Committed(number(response.header().map_or(0, etcd_client::ResponseHeader::revision))))
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let options = WatchOptions::new()
            .with_range(prefix.end())
            .with_start_revision(signed(from).max(1))
            .with_prev_key()
            .with_progress_notify();
        // The first answer belongs to it: a member that is gone does not give one.
        let watch = |client: Client| {
            let (start, options) = (octets(prefix.as_str()), options.clone());
            async move {
                let mut stream = client.watch_client().watch(start, Some(options)).await?;
                Ok((stream.message().await?, stream))
            }
        };
        let (created, stream) = self.ask("watch", prefix.as_str(), watch).await?;
        let closed = |kind| StoreError::new(kind, "watch", prefix);
        let created = created.ok_or_else(|| closed(StoreErrorKind::Closed))?;
        check(&created, prefix)?;
        let current = created.header().map_or(0, etcd_client::ResponseHeader::revision);
        // The cluster would wait for that revision without a word; it is not the one whose revision this was.
        if from > number(current).next() {
            return Err(closed(StoreErrorKind::Compacted));
        }
        Ok(Box::new(EtcdWatch { stream, prefix: prefix.clone(), ready: VecDeque::new(), has_ended: false }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let response = self
            .ask("grant", "a lease", |client| async move { client.lease_client().grant(seconds, None).await })
            .await?;
        let ttl = Duration::from_secs(u64::try_from(response.ttl()).unwrap_or(0));
        Ok(Lease { id: LeaseId(response.id()), ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let keep = |client: Client| async move { client.lease_client().keep_alive(lease.0).await };
        self.ask("keep alive", &lease.to_string(), keep).await?;
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        match self.ask("revoke", &lease.to_string(), revoke).await {
            Err(error) if error.kind() == StoreErrorKind::LeaseEnded => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let object = format!("revision {revision}");
        let compact = |client: Client| async move { client.kv_client().compact(signed(revision), None).await };
        match self.ask("compact", &object, compact).await {
            // It is compacted already.
            Err(error) if error.kind() == StoreErrorKind::Compacted => Ok(()),
            answer => answer.map(drop),
        }
    }
}

/// Refuses an answer that ends a watch.
fn check(response: &WatchResponse, prefix: &Key) -> Result<(), StoreError> {
    if response.compact_revision() > 0 {
        return Err(StoreError::new(StoreErrorKind::Compacted, "watch", prefix));
    }
    if response.canceled() {
        let reason = Error::WatchError(response.cancel_reason().to_owned());
        return Err(StoreError::new(StoreErrorKind::Closed, "watch", prefix).with_source(reason));
    }
    Ok(())
}

struct EtcdWatch {
    stream: WatchStream,
    prefix: Key,
    /// What was received and not told yet.
    ready: VecDeque<Batch>,
    has_ended: bool,
}

impl core::fmt::Debug for EtcdWatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EtcdWatch").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl EtcdWatch {
    fn receive(&mut self, response: Result<Option<WatchResponse>, Error>) -> Result<(), StoreError> {
        let response = response.map_err(|source| error(source, "watch", self.prefix.as_str()))?;
        let response = response.ok_or_else(|| StoreError::new(StoreErrorKind::Closed, "watch", &self.prefix))?;
        check(&response, &self.prefix)?;
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let after = entry(kv)?;
            let (revision, key) = (after.revision, after.key.clone());
            let before = event.prev_kv().map(entry).transpose()?;
            let is_put = event.event_type() == etcd_client::EventType::Put;
            let event = Event { key, before, after: is_put.then_some(after) };
            match self.ready.back_mut() {
                Some(batch) if batch.revision == revision => batch.events.push(event),
                _ => self.ready.push_back(Batch { revision, events: vec![event] }),
            }
        }
        Ok(())
    }
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
