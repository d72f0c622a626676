//! A directory with one file for each network, each replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use pn_core::{Action, BackendError, ErrorKind, Generation, NetworkId, Report, Stage, ZonePlan, ZoneSet};

/// How a zone becomes a file.
pub(crate) trait Form: core::fmt::Debug + Send + Sync + 'static {
    /// What follows the network in a file's name, with its dot.
    const SUFFIX: &'static str;

    /// What starts a comment.
    const COMMENT: char;

    /// Writes what follows the first line, which says whose file it is and of which generation.
    fn write(&self, zone: &ZonePlan, serial: u32) -> String;
}

/// Files of one form, one for each network of the published set.
#[derive(Debug)]
pub(crate) struct Directory<F> {
    path: PathBuf,
    form: F,
    /// Held during a whole publication: two never overlap, not even where the first was given up by its caller.
    published: Mutex<Option<Published>>,
}

/// What is in the directory, as far as this process wrote or checked it.
#[derive(Debug)]
struct Published {
    /// Held as long as this process publishes here.
    _lock: File,
    newest: (Generation, Stage),
    files: BTreeMap<NetworkId, Known>,
}

/// The set that a file was written for.
type Written = (Generation, Stage);

/// A file that says what it should.
#[derive(Debug)]
struct Known {
    /// `None` where it is from before this process.
    plan: Option<Arc<ZonePlan>>,
    written: Written,
    print: Print,
}

/// What changes when somebody else writes a file.
#[derive(Debug, PartialEq, Eq)]
struct Print {
    inode: u64,
    len: u64,
    modified: Option<SystemTime>,
}

impl From<Metadata> for Print {
    fn from(metadata: Metadata) -> Self {
        Self { inode: metadata.ino(), len: metadata.len(), modified: metadata.modified().ok() }
    }
}

/// Why a directory of files cannot be published to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Another process publishes to the directory.
    #[error("another process publishes to {}: give each its own directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// There is a file with a network's name that was not written by a publisher.
    #[error("{} was not written by a publisher: move it away", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The directory or a file cannot be read or written.
    #[error("cannot write {}: make it a directory or file that this process may write, with space on its disk", path.display())]
    Write {
        /// The directory or file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl FileError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Locked { .. } | Self::Foreign { .. } => ErrorKind::Conflict,
            Self::Write { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::PermissionDenied
            }
            Self::Write { .. } => ErrorKind::Io,
        }
    }

    fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    fn into_backend(self, operation: &'static str, object: impl core::fmt::Display) -> BackendError {
        BackendError::new(self.kind(), operation, object).with_source(self)
    }
}

impl<F: Form> Directory<F> {
    pub(crate) const fn new(path: PathBuf, form: F) -> Self {
        Self { path, form, published: Mutex::new(None) }
    }

    /// Returns the path of a network's file, whether there is one or not.
    pub(crate) fn path_of(&self, network: NetworkId) -> PathBuf {
        self.path.join(format!("{network}{}", F::SUFFIX))
    }

    /// Publishes a set from an asynchronous caller: files are written on a thread that may wait.
    pub(crate) async fn publish(self: &Arc<Self>, set: &ZoneSet) -> Report {
        let (this, set) = (Arc::clone(self), set.clone());
        let generation = set.generation;
        let task = tokio::task::spawn_blocking(move || this.replace(&set));
        task.await.unwrap_or_else(|_| {
            Report::refused(generation, BackendError::new(ErrorKind::Closed, "publish", "the runtime's files"))
        })
    }

    fn replace(&self, set: &ZoneSet) -> Report {
        // What is known of a file is put right before it is believed, so a panic elsewhere leaves nothing half done.
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = (set.generation, set.stage);
        let published = match published.as_mut() {
            Some(published) => published,
            None => match self.open() {
                Ok(opened) => published.insert(opened),
                Err(error) => {
                    let object = format_args!("directory {}", self.path.display());
                    return Report::refused(set.generation, error.into_backend("open", object));
                }
            },
        };
        if newest < published.newest {
            return Report::refused(set.generation, BackendError::superseded(set.generation, published.newest.0));
        }
        published.newest = newest;
        let mut report = Report::new(set.generation);
        for (network, plan) in &set.zones {
            match self.keep(&mut published.files, *network, plan, set) {
                Ok(None) => {}
                Ok(Some(action)) => report.record(format_args!("zone {network}"), Ok(action)),
                Err(error) => {
                    let object = format!("zone {network}");
                    report.record(&object, Err(error.into_backend("write", &object)));
                }
            }
        }
        let gone: Vec<NetworkId> = published.files.keys().filter(|id| !set.zones.contains_key(id)).copied().collect();
        for network in gone {
            let path = self.path_of(network);
            let object = format!("zone {network}");
            match fs::remove_file(&path) {
                Ok(()) => report.record(&object, Ok(Action::Removed)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    report.record(&object, Err(FileError::write(&path)(error).into_backend("remove", &object)));
                    continue;
                }
            }
            published.files.remove(&network);
        }
        let synced = if report.is_unchanged() { Ok(()) } else { self.sync() };
        if let Err(error) = synced {
            let object = format!("directory {}", self.path.display());
            report.record(&object, Err(error.into_backend("sync", &object)));
        }
        report
    }

    /// Takes the directory and looks at what is in it.
    fn open(&self) -> Result<Published, FileError> {
        fs::create_dir_all(&self.path).map_err(FileError::write(&self.path))?;
        let lock = self.path.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(FileError::write(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FileError::Locked { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => return Err(FileError::Write { path: lock, source }),
        }
        let mut newest = (Generation::ZERO, Stage::Meanwhile);
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.path).map_err(FileError::write(&self.path))? {
            let entry = entry.map_err(FileError::write(&self.path))?;
            let name = entry.file_name();
            let network = name.to_str().and_then(|name| name.strip_suffix(F::SUFFIX)).and_then(|id| id.parse().ok());
            let Some(network) = network else {
                continue;
            };
            if let Some((written, print)) = self.identify(&entry.path())? {
                newest = newest.max(written);
                files.insert(network, Known { plan: None, written, print });
            }
        }
        Ok(Published { _lock: file, newest, files })
    }

    /// Returns of which generation a file of ours is.
    fn identify(&self, path: &Path) -> Result<Option<(Written, Print)>, FileError> {
        let mut start = String::new();
        let file = File::open(path).map_err(FileError::write(path))?;
        let print = file.metadata().map_err(FileError::write(path))?.into();
        let mut reader = file.take(FIRST_LINE);
        // What is not text is not ours.
        if reader.read_to_string(&mut start).is_err() {
            return Ok(None);
        }
        Ok(start.lines().next().and_then(|line| read_first_line(F::COMMENT, line)).map(|written| (written, print)))
    }

    /// Makes a network's file what it should be, and returns what that took.
    fn keep(
        &self,
        files: &mut BTreeMap<NetworkId, Known>,
        network: NetworkId,
        plan: &Arc<ZonePlan>,
        set: &ZoneSet,
    ) -> Result<Option<Action>, FileError> {
        let path = self.path_of(network);
        let there = match fs::metadata(&path) {
            Ok(metadata) => Some(Print::from(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(FileError::write(&path)(error)),
        };
        let known = files.get(&network);
        let untouched = known.is_some_and(|known| there.as_ref() == Some(&known.print));
        if there.is_some() && known.is_none() && self.identify(&path)?.is_none() {
            return Err(FileError::Foreign { path });
        }
        // The serial number of a zone changes only when the zone does.
        if let Some(known) = known.filter(|_| untouched) {
            let same = match &known.plan {
                Some(before) => Arc::ptr_eq(before, plan) || before == plan,
                None => fs::read_to_string(&path).is_ok_and(|text| text == self.text(plan, known.written)),
            };
            if same {
                let plan = Some(Arc::clone(plan));
                files.entry(network).and_modify(|known| known.plan = plan);
                return Ok(None);
            }
        }
        let written = (set.generation, set.stage);
        let print = self.write(&path, &self.text(plan, written))?;
        files.insert(network, Known { plan: Some(Arc::clone(plan)), written, print });
        Ok(Some(if there.is_some() { Action::Updated } else { Action::Created }))
    }

    fn text(&self, plan: &ZonePlan, (generation, stage): (Generation, Stage)) -> String {
        let serial = ZoneSet { generation, stage, zones: BTreeMap::new() }.serial();
        first_line(F::COMMENT, (generation, stage)) + &self.form.write(plan, serial)
    }

    /// Puts a file in the place of the one before, at once and for good.
    fn write(&self, path: &Path, text: &str) -> Result<Print, FileError> {
        // One name for all: this process alone writes here, and a file left by a crash is overwritten.
        let temporary = self.path.join(TEMPORARY);
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            Ok(file.metadata()?.into())
        });
        written.map_err(FileError::write(path))
    }

    /// Makes what was renamed and removed survive a crash of the machine.
    fn sync(&self) -> Result<(), FileError> {
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(FileError::write(&self.path))
    }
}

fn first_line(comment: char, (generation, stage): (Generation, Stage)) -> String {
    let stage = match stage {
        Stage::Meanwhile => "meanwhile",
        Stage::Settled => "settled",
    };
    format!("{comment} {MARK}, generation {generation}, {stage}\n")
}

fn read_first_line(comment: char, line: &str) -> Option<(Generation, Stage)> {
    let rest = line.strip_prefix(comment)?.strip_prefix(' ')?.strip_prefix(MARK)?.strip_prefix(", generation ")?;
    let (generation, stage) = rest.split_once(", ")?;
    let stage = match stage {
        "meanwhile" => Stage::Meanwhile,
        "settled" => Stage::Settled,
        _ => return None,
    };
    Some((Generation::new(generation.parse().ok()?), stage))
}

/// What the first line of each file starts with.
const MARK: &str = "written from the plan, changes are lost";

/// More octets than a first line has.
const FIRST_LINE: u64 = 200;

/// The file that a process locks as long as it publishes to a directory.
const LOCK: &str = ".lock";

/// What a file is called until it is whole.
const TEMPORARY: &str = ".new";

#[cfg(test)]
mod tests;
