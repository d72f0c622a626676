//! A store in a file that the processes of one machine share.

mod database;

use core::time::Duration;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::{oneshot, watch};

use self::database::Fault;
use crate::{
    Batch, Key, Lease, LeaseId, Listing, Outcome, Page, Reading, Revision, Store, StoreError, StoreErrorKind,
    Transaction, Watch,
};

/// How often the file is looked at for what other processes did: watches hear of it after this at the latest.
const POLL: Duration = Duration::from_millis(20);

/// How often leases are looked at.
const EXPIRY: Duration = Duration::from_millis(100);

/// How long others may keep the file to themselves.
const PATIENCE: Duration = Duration::from_secs(5);

/// The version of the file's form, which SQLite keeps as `user_version`.
const FORM: i64 = 1;

/// A store in a SQLite file that the processes of one machine share (feature `sqlite`). Clones share one connection.
///
/// A thread of its own has the connection and ends with the last clone and watch. Leases are told by the system's clock.
#[derive(Debug, Clone)]
pub struct SqliteStore(Arc<Worker>);

#[derive(Debug)]
struct Worker {
    jobs: mpsc::Sender<Job>,
    /// The current revision, for those who wait for the next.
    current: watch::Receiver<Revision>,
    path: PathBuf,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

impl SqliteStore {
    /// Opens the store in a file, and makes it where there is none. Its directory has to be there.
    ///
    /// # Errors
    /// [`StoreError`]: [`Unavailable`](StoreErrorKind::Unavailable) where the file cannot be opened,
    /// [`Corrupt`](StoreErrorKind::Corrupt) where it is no such file or a newer release's.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let (jobs, receiver) = mpsc::channel();
        let (sender, current) = watch::channel(Revision::ZERO);
        let (opened, is_opened) = oneshot::channel();
        let spawned = thread::Builder::new().name("pn-store".to_owned()).spawn({
            let path = path.clone();
            move || match open(&path) {
                Ok((connection, revision)) => {
                    sender.send_replace(revision);
                    // Whoever opened it may have gone.
                    drop(opened.send(Ok(())));
                    work(connection, &receiver, &sender);
                }
                Err(fault) => drop(opened.send(Err(error(fault, "open", &path)))),
            }
        });
        let failed = || StoreError::new(StoreErrorKind::Failed, "open", path.display());
        spawned.map_err(|error| failed().with_source(error))?;
        is_opened.await.map_err(|error| failed().with_source(error))??;
        Ok(Self(Arc::new(Worker { jobs, current, path })))
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(operation, TransactionBehavior::Deferred, read).await
    }

    async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        write: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(operation, TransactionBehavior::Immediate, write).await
    }

    /// Has the thread do something in one transaction; it does so to the end even where nobody waits any more.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        behavior: TransactionBehavior,
        what: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| drop(answer.send(within(connection, behavior, what))));
        let gone = || StoreError::new(StoreErrorKind::Failed, operation, self.0.path.display());
        self.0.jobs.send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?.map_err(|fault| error(fault, operation, &self.0.path))
    }
}

fn within<T>(
    connection: &mut Connection,
    behavior: TransactionBehavior,
    what: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let transaction = connection.transaction_with_behavior(behavior)?;
    let value = what(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn open(path: &Path) -> Result<(Connection, Revision), Fault> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(64);
    // For this SQLite does not wait: two that both read would wait for each other.
    let begin = Instant::now();
    while let Err(error) = connection.pragma_update(None, "journal_mode", "WAL") {
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || begin.elapsed() > PATIENCE {
            return Err(error.into());
        }
        thread::sleep(POLL);
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    let revision = within(&mut connection, TransactionBehavior::Immediate, |db| {
        let form: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if form > FORM {
            let what = format!("{}, a file of form {form}: this release reads {FORM}", path.display());
            return Err(StoreError::new(StoreErrorKind::Corrupt, "open", what).into());
        }
        db.execute_batch(include_str!("sqlite/schema.sql"))?;
        db.pragma_update(None, "user_version", FORM)?;
        Ok(database::revisions(db)?.0)
    })?;
    Ok((connection, revision))
}

/// Does what is asked for, and in between looks for what others did and for leases that end.
fn work(mut connection: Connection, jobs: &mpsc::Receiver<Job>, current: &watch::Sender<Revision>) {
    let (mut seen, mut looked) = (None, Instant::now());
    loop {
        match jobs.recv_timeout(POLL) {
            Ok(job) => {
                job(&mut connection);
                // The connection's own changes do not count in `data_version`.
                seen = None;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => (),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        if looked.elapsed() >= EXPIRY {
            looked = Instant::now();
            match end_leases(&mut connection) {
                Ok(0) => (),
                Ok(_) => seen = None,
                // What cannot be done now is tried again soon.
                Err(fault) => tracing::debug!(?fault, "leases could not be looked at"),
            }
        }
        let version = version(&connection).ok();
        if version != seen || seen.is_none() {
            let Ok((revision, _)) = database::revisions(&connection) else { continue };
            seen = version;
            current.send_if_modified(|current| core::mem::replace(current, revision) != revision);
        }
    }
}

/// Returns a number that changes with what other connections write.
fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

/// Ends the leases whose time is over, and returns how many.
fn end_leases(connection: &mut Connection) -> Result<usize, Fault> {
    if database::ended(connection)?.is_empty() {
        return Ok(0);
    }
    // Somebody else may have been faster, or kept one alive.
    within(connection, TransactionBehavior::Immediate, |db| {
        let ended = database::ended(db)?;
        ended.iter().try_for_each(|lease| database::revoke(db, *lease))?;
        Ok(ended.len())
    })
}

fn error(fault: Fault, operation: &'static str, path: &Path) -> StoreError {
    let source = match fault {
        Fault::Store(error) => return error,
        Fault::Sqlite(source) => source,
    };
    let kind = match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::CannotOpen) => {
            StoreErrorKind::Unavailable
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt | ErrorCode::TypeMismatch) => StoreErrorKind::Corrupt,
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => StoreErrorKind::Denied,
        _ => StoreErrorKind::Failed,
    };
    StoreError::new(kind, operation, path.display()).with_source(source)
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, keys: &[Key]) -> Result<Reading, StoreError> {
        let keys = keys.to_vec();
        self.read("get", move |db| database::get(db, &keys)).await
    }

    async fn list(&self, listing: &Listing) -> Result<Page, StoreError> {
        let listing = listing.clone();
        self.read("list", move |db| database::list(db, &listing)).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        self.write("commit", move |db| database::commit(db, &transaction)).await
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let current = self.0.current.clone();
        let (prefix, ready) = (prefix.clone(), VecDeque::new());
        Ok(Box::new(SqliteWatch { store: self.clone(), current, prefix, next: from, ready, has_ended: false }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.write("grant", move |db| database::grant(db, ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write("keep alive", move |db| database::keep_alive(db, lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write("revoke", move |db| database::revoke(db, lease)).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        // A reading as of the revision itself stays possible, and a watch from it on.
        let before = Revision::new(revision.get().saturating_sub(1));
        self.write("compact", move |db| database::compact(db, before)).await
    }
}

#[derive(Debug)]
struct SqliteWatch {
    store: SqliteStore,
    current: watch::Receiver<Revision>,
    prefix: Key,
    /// The next revision to read.
    next: Revision,
    /// What was read and not told yet.
    ready: VecDeque<Batch>,
    has_ended: bool,
}

#[async_trait]
impl Watch for SqliteWatch {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        let closed = || StoreError::new(StoreErrorKind::Closed, "watch", &self.prefix);
        if self.has_ended {
            return Err(closed());
        }
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            self.current.mark_unchanged();
            let (prefix, from) = (self.prefix.clone(), self.next);
            let read = self.store.read("watch", move |db| database::changes(db, &prefix, from)).await;
            let (batches, next) = read.inspect_err(|_| self.has_ended = true)?;
            (self.ready, self.next) = (batches.into(), next);
            if self.ready.is_empty() && self.current.changed().await.is_err() {
                self.has_ended = true;
                return Err(closed());
            }
        }
    }
}

#[cfg(test)]
mod tests;
