//! What a store does, in SQL; each function is called within a transaction.

use core::time::Duration;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use crate::{
    Batch, Entry, Event, Key, KeyError, Lease, LeaseId, Listing, Operation, Outcome, Page, Precondition, Reading,
    Revision, StoreError, StoreErrorKind, Transaction,
};

/// How many revisions are remembered, and how often the others are looked for.
const HISTORY: u64 = 8192;
const SWEEP: u64 = 256;

/// How many revisions a watch reads at once.
const WINDOW: u64 = 256;

/// Why something was not done: the database's own reason, or a store's.
#[derive(Debug)]
pub(super) enum Fault {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Returns the current revision, and the last that is forgotten.
pub(super) fn revisions(db: &Connection) -> Result<(Revision, Revision), Fault> {
    let mut statement = db.prepare_cached("SELECT revision, compacted FROM store")?;
    Ok(statement.query_row([], |row| Ok((Revision::new(row.get(0)?), Revision::new(row.get(1)?))))?)
}

pub(super) fn get(db: &Connection, keys: &[Key]) -> Result<Reading, Fault> {
    let entries = keys.iter().map(|key| entry(db, key)).collect::<Result<_, _>>()?;
    Ok(Reading { revision: revisions(db)?.0, entries })
}

fn entry(db: &Connection, key: &Key) -> Result<Option<Entry>, Fault> {
    let mut statement = db.prepare_cached("SELECT key, value, revision, lease FROM entry WHERE key = ?1")?;
    let row = statement.query_row([key.as_str()], |row| Ok(read_entry(row))).optional()?;
    row.transpose()
}

pub(super) fn list(db: &Connection, listing: &Listing) -> Result<Page, Fault> {
    let (current, compacted) = revisions(db)?;
    let at = listing.at.unwrap_or(current);
    if at < compacted || at > current {
        let what = format!("{} at revision {at}", listing.prefix);
        return Err(StoreError::new(StoreErrorKind::Compacted, "list", what).into());
    }
    // What is there since before, and what was there before what happened first since.
    let sql = "SELECT key, value, revision, lease FROM entry
            WHERE key >= :start AND key < :end AND revision <= :at
        UNION ALL SELECT key, before_value, before_revision, before_lease FROM change AS first
            WHERE key >= :start AND key < :end AND revision > :at AND before_revision IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM change WHERE key = first.key AND revision > :at AND revision < first.revision)
        ORDER BY key LIMIT :limit";
    let current_sql = "SELECT key, value, revision, lease FROM entry
        WHERE key >= :start AND key < :end AND revision <= :at ORDER BY key LIMIT :limit";
    let mut statement = db.prepare_cached(if at == current { current_sql } else { sql })?;
    let most = listing.limit.get();
    let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
    let (start, end) = (listing.start(), listing.prefix.end());
    let parameters = named_params! {":start": start, ":end": end, ":at": at.get(), ":limit": limit};
    let rows = statement.query_map(parameters, |row| Ok(read_entry(row)))?;
    let mut entries = rows.map(|row| row?).collect::<Result<Vec<Entry>, Fault>>()?;
    let is_last = entries.len() <= most;
    entries.truncate(most);
    Ok(Page { revision: at, entries, is_last })
}

pub(super) fn commit(db: &Connection, transaction: &Transaction) -> Result<Outcome, Fault> {
    for operation in &transaction.operations {
        if let Operation::Put { lease: Some(lease), .. } = operation
            && !is_alive(db, *lease)?
        {
            return Err(StoreError::new(StoreErrorKind::LeaseEnded, "commit under", lease).into());
        }
    }
    for precondition in &transaction.preconditions {
        if !holds(db, precondition)? {
            return Ok(Outcome::Refused);
        }
    }
    Ok(Outcome::Committed(make(db, &transaction.operations)?))
}

fn holds(db: &Connection, precondition: &Precondition) -> Result<bool, Fault> {
    Ok(match precondition {
        Precondition::Absent(key) => entry(db, key)?.is_none(),
        Precondition::Present(key) => entry(db, key)?.is_some(),
        Precondition::At(key, revision) => entry(db, key)?.is_some_and(|entry| entry.revision == *revision),
        Precondition::NoneSince(prefix, revision) => {
            let sql = "SELECT NOT EXISTS (SELECT 1 FROM entry WHERE key >= ?1 AND key < ?2 AND revision > ?3)";
            let mut statement = db.prepare_cached(sql)?;
            statement.query_row(params![prefix.as_str(), prefix.end(), revision.get()], |row| row.get(0))?
        }
    })
}

fn make(db: &Connection, operations: &[Operation]) -> Result<Revision, Fault> {
    let (current, _) = revisions(db)?;
    let revision = current.next();
    let mut is_changed = false;
    for operation in operations {
        match operation {
            Operation::Put { key, value, lease } => {
                change(db, revision, key, Some((value, *lease)))?;
                is_changed = true;
            }
            Operation::Delete(key) => is_changed |= change(db, revision, key, None)?,
            Operation::DeletePrefix(prefix) => {
                let mut statement = db.prepare_cached("SELECT key FROM entry WHERE key >= ?1 AND key < ?2")?;
                let rows = statement.query_map([prefix.as_str(), &prefix.end()], |row| row.get::<_, String>(0))?;
                for key in rows.collect::<Result<Vec<_>, _>>()? {
                    is_changed |= change(db, revision, &read_key(&key)?, None)?;
                }
            }
        }
    }
    if !is_changed {
        return Ok(current);
    }
    db.prepare_cached("UPDATE store SET revision = ?1")?.execute([revision.get()])?;
    if revision.get() % SWEEP == 0 {
        compact(db, Revision::new(revision.get().saturating_sub(HISTORY)))?;
    }
    Ok(revision)
}

/// Puts or deletes one key; `false` where there was nothing to delete.
fn change(
    db: &Connection,
    revision: Revision,
    key: &Key,
    value: Option<(&Vec<u8>, Option<LeaseId>)>,
) -> Result<bool, Fault> {
    let before = entry(db, key)?;
    if value.is_none() && before.is_none() {
        return Ok(false);
    }
    let lease = value.and_then(|(_, lease)| lease).map(|lease| lease.0);
    let value = value.map(|(value, _)| value);
    let sql = "INSERT INTO change VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let before_revision = before.as_ref().map(|before| before.revision.get());
    let before_lease = before.as_ref().and_then(|before| before.lease).map(|lease| lease.0);
    let before_value = before.map(|before| before.value);
    db.prepare_cached(sql)?.execute(params![
        revision.get(),
        key.as_str(),
        value,
        lease,
        before_value,
        before_revision,
        before_lease
    ])?;
    match value {
        Some(value) => {
            let mut statement = db.prepare_cached("INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3, ?4)")?;
            statement.execute(params![key.as_str(), value, revision.get(), lease])?;
        }
        None => drop(db.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key.as_str()])?),
    }
    Ok(true)
}

/// Returns what happened to a prefix from a revision on, as far as one look goes, and the revision to go on with.
pub(super) fn changes(db: &Connection, prefix: &Key, from: Revision) -> Result<(Vec<Batch>, Revision), Fault> {
    let (current, compacted) = revisions(db)?;
    if from <= compacted || from > current.next() {
        return Err(StoreError::new(StoreErrorKind::Compacted, "watch", prefix).into());
    }
    let mut batches: BTreeMap<Revision, Vec<Event>> = BTreeMap::new();
    let mut from = from;
    while from <= current && batches.is_empty() {
        let until = Revision::new(from.get() + WINDOW);
        let sql = "SELECT key, value, revision, lease, before_value, before_revision, before_lease FROM change
            WHERE revision >= ?1 AND revision < ?2 AND key >= ?3 AND key < ?4 ORDER BY revision, key";
        let mut statement = db.prepare_cached(sql)?;
        let parameters = params![from.get(), until.get(), prefix.as_str(), prefix.end()];
        let rows = statement.query_map(parameters, |row| Ok((row.get(2)?, read_event(row))))?;
        for row in rows {
            let (revision, event) = row?;
            batches.entry(Revision::new(revision)).or_default().push(event?);
        }
        from = until.min(current.next());
    }
    let batches = batches.into_iter().map(|(revision, events)| Batch { revision, events });
    Ok((batches.collect(), from))
}

pub(super) fn grant(db: &Connection, ttl: Duration) -> Result<Lease, Fault> {
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 4);
    let sql = "INSERT INTO lease (ttl_ms, ends_ms) VALUES (?1, ?2)";
    db.prepare_cached(sql)?.execute([ttl_ms, now().saturating_add(ttl_ms)])?;
    Ok(Lease { id: LeaseId(db.last_insert_rowid()), ttl })
}

pub(super) fn keep_alive(db: &Connection, lease: LeaseId) -> Result<(), Fault> {
    let mut statement = db.prepare_cached("UPDATE lease SET ends_ms = ?1 + ttl_ms WHERE id = ?2 AND ends_ms > ?1")?;
    match statement.execute([now(), lease.0])? {
        0 => Err(StoreError::new(StoreErrorKind::LeaseEnded, "keep alive", lease).into()),
        _ => Ok(()),
    }
}

/// Ends a lease and deletes what was put under it.
pub(super) fn revoke(db: &Connection, lease: LeaseId) -> Result<(), Fault> {
    let mut statement = db.prepare_cached("SELECT key FROM entry WHERE lease = ?1")?;
    let rows = statement.query_map([lease.0], |row| row.get::<_, String>(0))?;
    let keys = rows.map(|key| read_key(&key?)).collect::<Result<Vec<_>, Fault>>()?;
    make(db, &keys.into_iter().map(Operation::Delete).collect::<Vec<_>>())?;
    db.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([lease.0])?;
    Ok(())
}

/// Returns the leases whose time is over.
pub(super) fn ended(db: &Connection) -> Result<Vec<LeaseId>, Fault> {
    let mut statement = db.prepare_cached("SELECT id FROM lease WHERE ends_ms <= ?1")?;
    let rows = statement.query_map([now()], |row| row.get(0).map(LeaseId))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets the changes up to a revision, that one included.
pub(super) fn compact(db: &Connection, revision: Revision) -> Result<(), Fault> {
    let (current, _) = revisions(db)?;
    let revision = revision.min(current).get();
    db.prepare_cached("DELETE FROM change WHERE revision <= ?1")?.execute([revision])?;
    db.prepare_cached("UPDATE store SET compacted = max(compacted, ?1)")?.execute([revision])?;
    Ok(())
}

fn is_alive(db: &Connection, lease: LeaseId) -> Result<bool, Fault> {
    let mut statement = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM lease WHERE id = ?1 AND ends_ms > ?2)")?;
    Ok(statement.query_row([lease.0, now()], |row| row.get(0))?)
}

/// Returns the time that the processes of a machine agree on, in milliseconds.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn read_key(text: &str) -> Result<Key, Fault> {
    let wrong = |error: KeyError| StoreError::new(StoreErrorKind::Corrupt, "read", text).with_source(error);
    Ok(text.parse().map_err(wrong)?)
}

fn read_entry(row: &Row<'_>) -> Result<Entry, Fault> {
    let key = read_key(row.get_ref(0)?.as_str().unwrap_or_default())?;
    Ok(Entry {
        key,
        value: row.get(1)?,
        revision: Revision::new(row.get(2)?),
        lease: row.get::<_, Option<i64>>(3)?.map(LeaseId),
    })
}

fn read_event(row: &Row<'_>) -> Result<Event, Fault> {
    let key = read_key(row.get_ref(0)?.as_str().unwrap_or_default())?;
    let after: Option<Vec<u8>> = row.get(1)?;
    let (revision, lease) = (Revision::new(row.get(2)?), row.get::<_, Option<i64>>(3)?.map(LeaseId));
    let after = after.map(|value| Entry { key: key.clone(), value, revision, lease });
    let before_revision: Option<u64> = row.get(5)?;
    let before = before_revision.map(|revision| {
        let (value, lease) = (row.get(4)?, row.get::<_, Option<i64>>(6)?.map(LeaseId));
        Ok::<_, rusqlite::Error>(Entry { key: key.clone(), value, revision: Revision::new(revision), lease })
    });
    Ok(Event { before: before.transpose()?, after, key })
}
