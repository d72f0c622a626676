//! The whole state as a file, and back.

use core::fmt::Write as _;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Read, Write};

use pn_core::document::DocumentError;
use pn_core::{Generation, ProjectId, Record, State};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::layout::{self, Head, Item};
use crate::{Entry, Key, Outcome, Precondition, Registry, RegistryError, Revision, Transaction};

/// Why a backup could not be written, or is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The file cannot be read or written.
    #[error("the backup cannot be read or written")]
    Io(#[from] std::io::Error),
    /// The first line is not that of a backup.
    #[error("not a backup: it does not begin as one")]
    NotABackup,
    /// A newer release wrote it.
    #[error("a backup of version {version}: this release reads version {VERSION}")]
    Version {
        /// The version it says.
        version: u32,
    },
    /// It ends early, or goes on after its end.
    #[error("the backup is cut off or has something added: {expected} records are expected, and then its checksum")]
    Truncated {
        /// How many records its first line promises.
        expected: u64,
    },
    /// It is not what was written.
    #[error("the backup is damaged: its checksum is {found}, and not {expected} as it says")]
    Checksum {
        /// What its last line says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A record cannot be read though the checksum is right.
    #[error("line {line} of the backup is no record")]
    Record {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// The store cannot be read or written, or holds what contradicts the backup.
    #[error("the store cannot be backed up or restored")]
    Registry(#[from] RegistryError),
}

/// What was written to a backup, or to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The generation of the state that was backed up.
    pub generation: Generation,
    /// How many records there are in the backup.
    pub records: u64,
    /// How many of them were written.
    pub written: u64,
}

const FORMAT: &str = "private-network-backup";
const VERSION: u32 = 1;

/// How long a line can be, in octets: more than any record is.
const LINE: u64 = 1 << 20;

/// How many keys one transaction of a restoration puts.
const CHUNK: usize = 60;

/// How far generations leap when history is another's: further than agents can have come since the backup.
const LEAP: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    revision: u64,
    generation: u64,
    records: u64,
    created_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Footer {
    sha256: String,
}

/// Writes lines and what they come to.
struct Summed<W> {
    file: W,
    sum: Sha256,
}

impl<W: Write> Summed<W> {
    fn line(&mut self, line: &str) -> std::io::Result<()> {
        let line = format!("{line}\n");
        self.sum.update(line.as_bytes());
        self.file.write_all(line.as_bytes())
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts and numbers are JSON")
}

fn hexadecimal(sum: Sha256) -> String {
    sum.finalize().iter().fold(String::new(), |mut text, octet| {
        write!(text, "{octet:02x}").expect("a String takes everything");
        text
    })
}

impl Registry {
    /// Writes everything that is recorded, as of one revision: a line that says what it is, a line for each record, and a line
    /// with the SHA-256 of all before.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn backup(&self, file: &mut (impl Write + Send)) -> Result<Summary, BackupError> {
        let (state, revision) = self.state_and_revision().await?;
        let (records, generation) = (state.records(), state.generation());
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            revision: revision.get(),
            generation: generation.get(),
            records: records.len() as u64,
            created_ms: self.clock().now().as_millis(),
        };
        let mut summed = Summed { file, sum: Sha256::new() };
        summed.line(&json(&header))?;
        for record in &records {
            summed.line(&record.to_json())?;
        }
        let footer = Footer { sha256: hexadecimal(summed.sum) };
        writeln!(summed.file, "{}", json(&footer))?;
        summed.file.flush()?;
        Ok(Summary { generation, records: header.records, written: header.records })
    }

    /// Puts back what a backup has and the store has not; what the store has stays as it is.
    ///
    /// The whole file is checked before anything is written. Transactions are bounded, so others may see some of it before the
    /// rest; a network is followed by its nodes when it is whole. Doing it again goes on where it was left.
    ///
    /// # Errors
    /// [`BackupError`]: nothing was written unless it is a [`Registry`](BackupError::Registry) error that [is
    /// retryable](RegistryError::is_retryable).
    pub async fn restore(&self, file: &mut (impl BufRead + Send)) -> Result<Summary, BackupError> {
        let (header, records) = read(file)?;
        let generation = Generation::new(header.generation);
        let written = self.put_back(records, Some(generation)).await?;
        Ok(Summary { generation, records: header.records, written })
    }

    /// Puts back those of some records that the store has not, and returns how many.
    pub(crate) async fn put_back(
        &self,
        records: Vec<Record>,
        generation: Option<Generation>,
    ) -> Result<u64, RegistryError> {
        let mut written = 0;
        // Others may write meanwhile; what is there by then stays, too.
        for _ in 0..8 {
            let (revision, entries) = self.list(&layout::state_and_ways()).await?;
            let missing = missing(self, records.clone(), &entries)?;
            if let Some(generation) = generation {
                self.leap(revision, &entries, generation).await?;
            }
            match self.put_missing(&missing, &entries).await? {
                (count, true) => return Ok(written + count),
                (count, false) => written += count,
            }
        }
        Err(RegistryError::Contended { attempts: 8 })
    }

    /// Makes generations greater than one that agents have seen, where the store begins anew.
    async fn leap(&self, revision: Revision, entries: &[Entry], seen: Generation) -> Result<(), RegistryError> {
        let offset = entries.iter().find(|entry| entry.key == layout::offset());
        let offset: u64 = offset.map(layout::id).transpose()?.unwrap_or(0);
        if revision.get().saturating_add(offset) < seen.get() {
            let offset = seen.get().saturating_add(LEAP);
            self.store().commit(Transaction::new().put(layout::offset(), offset.to_string())).await?;
        }
        Ok(())
    }

    /// Writes what is missing, part by part; `false` where somebody else wrote meanwhile.
    async fn put_missing(&self, missing: &Missing, entries: &[Entry]) -> Result<(u64, bool), RegistryError> {
        let mut written = 0;
        for (project, keys) in &missing.parts {
            let head = project.map(layout::head);
            let known = head.as_ref().and_then(|head| entries.iter().find(|entry| entry.key == *head));
            let mut guard = known.map(|entry| entry.revision);
            let next = project.and_then(|project| missing.nexts.get(&project)).copied().unwrap_or(1);
            let before = known.map(Head::read).transpose()?;
            // Whose turn it is, is a record that has no key of its own.
            written += u64::from(before.is_none() && next != 1);
            let mut after = before.clone().unwrap_or_default();
            after = after.after(&format!("{:016x}", self.clock().random()), before.map_or(next, |head| head.next));
            for (n, chunk) in keys.chunks(CHUNK).enumerate() {
                let is_last = (n + 1) * CHUNK >= keys.len();
                let mut transaction = Transaction::new();
                for (key, value) in chunk {
                    transaction = transaction.when(Precondition::Absent(key.clone())).put(key.clone(), value.clone());
                }
                if let Some(head) = &head {
                    transaction = transaction.when(match guard {
                        Some(revision) => Precondition::At(head.clone(), revision),
                        None => Precondition::Absent(head.clone()),
                    });
                    // A project is there with its head, so a new one gets it last.
                    if guard.is_some() || is_last {
                        transaction = transaction.put(head.clone(), after.to_value());
                    }
                }
                let is_guarded = guard.is_some() || is_last;
                match self.store().commit(transaction).await? {
                    Outcome::Committed(revision) => guard = is_guarded.then_some(revision),
                    Outcome::Refused => return Ok((written, false)),
                }
                written += chunk.iter().filter(|(key, _)| missing.records.contains(key)).count() as u64;
            }
        }
        Ok((written, true))
    }
}

/// Keys and what is to be put there.
type Puts = Vec<(Key, Vec<u8>)>;

/// What a store has not.
struct Missing {
    /// Keys and values in the order in which they are put; those of a project are guarded by its head.
    parts: Vec<(Option<ProjectId>, Puts)>,
    /// The keys among them that hold records.
    records: BTreeSet<Key>,
    nexts: BTreeMap<ProjectId, u32>,
}

/// Returns what a store has not of some records, where both together are a state.
fn missing(registry: &Registry, records: Vec<Record>, entries: &[Entry]) -> Result<Missing, RegistryError> {
    let backup = State::load(registry.region().clone(), Generation::ZERO, records)?;
    let there: BTreeMap<&Key, &[u8]> = entries.iter().map(|entry| (&entry.key, &*entry.value)).collect();
    let image = layout::image(&backup.records());
    for (key, item) in image.iter().filter(|(key, _)| key.starts_with(&layout::all_claims())) {
        if let (Some(held), Item::Text(claimed)) = (there.get(key), item)
            && *held != claimed.as_bytes()
            && !key.starts_with(&layout::vnis())
        {
            let holder = String::from_utf8_lossy(held);
            return Err(RegistryError::record(key, format!("{holder} holds what {claimed} is to hold")));
        }
    }
    let mut both = crate::registry::records(entries)?;
    both.extend(image.iter().filter(|(key, _)| !there.contains_key(key)).filter_map(|(_, item)| match item {
        Item::Record(record) => Some(record.clone()),
        Item::Text(_) => None,
    }));
    let both = State::load(registry.region().clone(), Generation::ZERO, both)?;
    // Ways to what is there may be missing, too.
    let image = layout::image(&both.records());
    let mut missing = Missing { parts: Vec::new(), records: BTreeSet::new(), nexts: BTreeMap::new() };
    let mut by_project: BTreeMap<ProjectId, Puts> = BTreeMap::new();
    let (mut nodes, mut members, mut ways) = (Vec::new(), Vec::new(), Vec::new());
    for (key, item) in image {
        if there.contains_key(&key) {
            continue;
        }
        if matches!(item, Item::Record(_)) {
            missing.records.insert(key.clone());
        }
        let (project, text) = (layout::id_in(&key, &layout::projects()), key.as_str().to_owned());
        let put = (key, item.into_value());
        match project {
            Some(project) => by_project.entry(project).or_default().push(put),
            None if text.starts_with("node/") || text.starts_with("claim/") => nodes.push(put),
            // A node follows a network when it hears that it is a member.
            None if text.starts_with("member/") => members.push(put),
            None => ways.push(put),
        }
    }
    for project in both.projects().map(|project| project.id) {
        let is_headless = !there.contains_key(&layout::head(project));
        if is_headless || by_project.contains_key(&project) {
            by_project.entry(project).or_default();
        }
    }
    for record in backup.records() {
        if let Record::Next(pn_core::Numbers::Addresses(network), next) = record
            && let Some(network) = backup.network(network)
        {
            missing.nexts.insert(network.project, next);
        }
    }
    missing.parts.extend([(None, nodes), (None, ways)]);
    missing.parts.extend(by_project.into_iter().map(|(project, puts)| (Some(project), puts)));
    missing.parts.push((None, members));
    Ok(missing)
}

fn read(file: &mut impl BufRead) -> Result<(Header, Vec<Record>), BackupError> {
    let mut sum = Sha256::new();
    let first = line(file)?.ok_or(BackupError::NotABackup)?;
    // The version first: what a newer release wrote may have any form.
    let said: serde_json::Value = serde_json::from_str(&first).map_err(|_| BackupError::NotABackup)?;
    if said.get("format").and_then(serde_json::Value::as_str) != Some(FORMAT) {
        return Err(BackupError::NotABackup);
    }
    let version =
        said.get("version").and_then(serde_json::Value::as_u64).and_then(|version| u32::try_from(version).ok());
    let version = version.ok_or(BackupError::NotABackup)?;
    if version != VERSION {
        return Err(BackupError::Version { version });
    }
    let header: Header = serde_json::from_value(said).map_err(|_| BackupError::NotABackup)?;
    let truncated = || BackupError::Truncated { expected: header.records };
    sum.update(first.as_bytes());
    let mut lines = Vec::new();
    for _ in 0..header.records {
        let line = line(file)?.ok_or_else(truncated)?;
        sum.update(line.as_bytes());
        lines.push(line);
    }
    let last = line(file)?.ok_or_else(truncated)?;
    let footer: Footer = serde_json::from_str(&last).map_err(|_| truncated())?;
    if line(file)?.is_some() {
        return Err(truncated());
    }
    let found = hexadecimal(sum);
    if footer.sha256 != found {
        return Err(BackupError::Checksum { expected: footer.sha256, found });
    }
    let records = lines
        .iter()
        .zip(2..)
        .map(|(json, line)| Record::from_json(json).map_err(|source| BackupError::Record { line, source }));
    Ok((header, records.collect::<Result<_, _>>()?))
}

/// Reads a line with its end; `None` where there is no whole one.
fn line(file: &mut impl BufRead) -> Result<Option<String>, BackupError> {
    let mut octets = Vec::new();
    file.by_ref().take(LINE).read_until(b'\n', &mut octets)?;
    match String::from_utf8(octets) {
        Ok(line) if line.ends_with('\n') => Ok(Some(line)),
        Ok(line) if line.is_empty() => Ok(None),
        // Something that is no line of ours.
        _ => Ok(Some("?".to_owned())),
    }
}

#[cfg(test)]
mod tests;
