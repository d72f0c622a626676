//! A store in an etcd cluster. This module alone names `etcd_client`.

mod cluster;
mod connection;
mod failure;
mod message;
mod watch;

use core::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, ConnectOptions, GetOptions, Identity, KvClient, TlsOptions, Txn, TxnOp, TxnOpResponse,
};

use self::cluster::{Cluster, MESSAGE};
use self::connection::Call;
use self::failure::is_not_permitted;
use self::message::{compare, entry, octets, operation, revision, signed};
use self::watch::EtcdWatch;
use crate::{
    Key, Lease, LeaseId, Listing, Outcome, Page, Reading, Revision, Store, StoreError, StoreErrorKind, Transaction,
    Watch,
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
/// One member of the cluster is asked; where it cannot be reached or is silent for a second, the next one is, too. A transaction is
/// sent to one alone, unless it cannot have arrived there. What is not answered within [`EtcdStore::PATIENCE`] fails as
/// [`Unavailable`](StoreErrorKind::Unavailable). A watch ends when its connection does, so that whoever follows knows.
#[derive(Clone)]
pub struct EtcdStore {
    cluster: Cluster,
    endpoints: String,
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
    pub const PATIENCE: Duration = cluster::PATIENCE;

    /// Connects to a cluster by one or more of its members, each `HOST:PORT`.
    ///
    /// # Errors
    /// [`StoreError`]: [`Unavailable`](StoreErrorKind::Unavailable) where none of them answers,
    /// [`Denied`](StoreErrorKind::Denied) where they refuse name and password.
    pub async fn connect(endpoints: &[String], options: EtcdOptions) -> Result<Self, StoreError> {
        let mut connect = ConnectOptions::new()
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(false)
            // A member that is cut off from the others would let a watch wait for ever.
            .with_require_leader(true);
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
        let urls = endpoints.iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect();
        let store = Self { cluster: Cluster::new(urls, connect), endpoints: endpoints.join(",") };
        // A client is made without asking anybody, so ask. Who may not have this key may have others: that is an answer.
        let options = || Some(GetOptions::new().with_limit(1).with_keys_only());
        let probe = move |client: Client| async move {
            match kv(&client).get("\0", options()).await {
                Err(error) if is_not_permitted(&error) => Ok(()),
                answer => answer.map(drop),
            }
        };
        store.cluster.ask(Call::Repeatable, "connect to", &store.endpoints, probe).await?;
        Ok(store)
    }
}

/// Returns a client of keys and values that takes large messages.
fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MESSAGE)
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        let named = keys.first().map_or("nothing", Key::as_str);
        let mut reading: Option<Reading> = None;
        let (mut rest, mut limit) = (keys, Transaction::MAX);
        while !rest.is_empty() {
            let (part, beyond) = rest.split_at(limit.min(rest.len()));
            let mut options = GetOptions::new();
            if let Some(reading) = &reading {
                options = options.with_revision(signed(reading.revision));
            }
            let gets: Vec<TxnOp> = part.iter().map(|key| TxnOp::get(key.as_str(), Some(options.clone()))).collect();
            let gets = Txn::new().and_then(gets);
            let get = move |client: Client| {
                let gets = gets.clone();
                async move { kv(&client).txn(gets).await }
            };
            let response = match self.cluster.ask(Call::Repeatable, "get", named, get).await {
                Err(error) if error.kind() == StoreErrorKind::TooLarge && part.len() > 1 => {
                    limit = part.len() / 2;
                    continue;
                }
                response => response?.0,
            };
            rest = beyond;
            let revision = revision(response.header());
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
        let (prefix, start) = (listing.prefix.as_str(), octets(&listing.start()));
        let mut limit = listing.limit.get();
        let response = loop {
            let at_most = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut options = GetOptions::new().with_range(listing.prefix.end()).with_limit(at_most);
            if let Some(at) = listing.at {
                options = options.with_revision(signed(at).max(1));
            }
            let start = start.clone();
            let get = move |client: Client| {
                let (start, options) = (start.clone(), options.clone());
                async move { kv(&client).get(start, Some(options)).await }
            };
            match self.cluster.ask(Call::Repeatable, "list", prefix, get).await {
                Err(error) if error.kind() == StoreErrorKind::TooLarge && limit > 1 => limit /= 2,
                response => break response?.0,
            }
        };
        let entries = response.kvs().iter().map(entry).collect::<Result<_, _>>()?;
        let revision = listing.at.unwrap_or_else(|| revision(response.header()));
        Ok(Page { revision, entries, is_last: !response.more() })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let object = transaction.operations.first().map_or_else(String::new, |first| first.key().to_string());
        let compares: Vec<Compare> = transaction.preconditions.iter().map(compare).collect();
        let operations: Vec<TxnOp> = transaction.operations.into_iter().map(operation).collect();
        let transaction = Txn::new().when(compares).and_then(operations);
        let commit = move |client: Client| {
            let transaction = transaction.clone();
            async move { kv(&client).txn(transaction).await }
        };
        let (response, _) = self.cluster.ask(Call::Once, "commit", &object, commit).await?;
        if !response.succeeded() {
            return Ok(Outcome::Refused);
        }
        Ok(Outcome::Committed(revision(response.header())))
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(EtcdWatch::open(&self.cluster, prefix, from).await?))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let grant = move |client: Client| async move { client.lease_client().grant(seconds, None).await };
        let (response, _) = self.cluster.ask(Call::Repeatable, "grant", "a lease", grant).await?;
        let ttl = Duration::from_secs(u64::try_from(response.ttl()).unwrap_or(0));
        Ok(Lease { id: LeaseId(response.id()), ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let keep = move |client: Client| async move {
            let (keeper, mut answers) = client.lease_client().keep_alive(lease.0).await?;
            // What ends from here is no call that failed, to whoever counts them at the server.
            drop(keeper);
            drop(answers.message().await);
            Ok(())
        };
        self.cluster.ask(Call::Repeatable, "keep alive", &lease.to_string(), keep).await?;
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = move |client: Client| async move { client.lease_client().revoke(lease.0).await };
        match self.cluster.ask(Call::Repeatable, "revoke", &lease.to_string(), revoke).await {
            Err(error) if error.kind() == StoreErrorKind::LeaseEnded => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let object = format!("revision {revision}");
        let compact = move |client: Client| async move { kv(&client).compact(signed(revision), None).await };
        match self.cluster.ask(Call::Repeatable, "compact", &object, compact).await {
            // It is compacted already.
            Err(error) if error.kind() == StoreErrorKind::Compacted => Ok(()),
            answer => answer.map(drop),
        }
    }
}
