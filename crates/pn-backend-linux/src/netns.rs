//! Network namespaces: made without forking, kept by bind mounts, entered by one thread that comes back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::SockProtocol;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use pn_core::ContainerId;

use crate::kernel::Place;
use crate::netlink::Netlink;

/// The namespaces of one node, for one thread: it is in the node's own namespace whenever none of these methods runs.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Holds a file for each, which its namespace is mounted on.
    directory: PathBuf,
    /// The node's own.
    host: File,
}

/// The namespace of the calling thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

impl Namespaces {
    /// Takes the calling thread to the node's namespace, or stays where it is. What is in `directory` is taken over.
    pub(crate) fn new(directory: PathBuf, host: Option<&Path>) -> io::Result<Self> {
        let host = File::open(host.unwrap_or(Path::new(CURRENT)))?;
        setns(&host, CloneFlags::CLONE_NEWNET)?;
        Ok(Self { directory, host })
    }

    /// Returns the places that have a namespace, with what tells each namespace from others.
    pub(crate) fn list(&self) -> io::Result<BTreeMap<Place, u64>> {
        let mut places = BTreeMap::new();
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(places),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Some(place) = entry.file_name().to_str().and_then(Place::parse) else {
                continue;
            };
            if let Some(namespace) = self.open(place)? {
                places.insert(place, namespace.metadata()?.ino());
            }
        }
        Ok(places)
    }

    /// Opens the namespace of a place, if it has one. A file that nothing is mounted on, as a reboot leaves it, is none.
    pub(crate) fn open(&self, place: Place) -> io::Result<Option<File>> {
        match File::open(self.path(place)) {
            Ok(file) if fstatfs(&file)?.filesystem_type() == NSFS_MAGIC => Ok(Some(file)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a namespace for a place, and lets `prepare` work in it before anybody sees it.
    pub(crate) fn create(&self, place: Place, prepare: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.scratch(|| {
            prepare()?;
            self.keep(place, Path::new(CURRENT))
        })?
    }

    /// Lets `work` run in a new namespace, which ends with it unless it was kept.
    pub(crate) fn scratch<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let result = work();
        self.return_home();
        Ok(result)
    }

    /// Lets `work` run in the namespace of a place.
    pub(crate) fn within<T>(&self, place: Place, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let namespace = self.open(place)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, VANISHED))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        self.return_home();
        result
    }

    /// Opens a netlink socket in the namespace of a place.
    pub(crate) fn netlink(&self, place: Place) -> io::Result<Netlink> {
        self.within(place, || Netlink::open(SockProtocol::NetlinkRoute))
    }

    /// Lets go of the namespace of a place. It ends with the last of its sockets and processes.
    pub(crate) fn remove(&self, place: Place) -> io::Result<()> {
        let path = self.path(place);
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Nothing was mounted there, or there is nothing.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Succeeds when this was the last.
        let _: io::Result<()> = fs::remove_dir(&self.directory);
        Ok(())
    }

    /// Keeps the namespace of a container, which is at `path`, until it is let go. Another that was kept for it is let go.
    pub(crate) fn attach(&self, container: ContainerId, path: &Path) -> io::Result<()> {
        let place = Place::Container(container);
        let file = File::open(path)?;
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a namespace"));
        }
        // Fails for a namespace of another kind.
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        self.return_home();
        if is_same(&file, &self.host)? {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is the node's own namespace"));
        }
        for other in self.list()?.into_keys() {
            if let Some(kept) = self.open(other)?
                && is_same(&kept, &file)?
            {
                if other == place {
                    return Ok(());
                }
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("it is that of {other}")));
            }
        }
        self.remove(place)?;
        // What was looked at, whatever is at the path by now.
        self.keep(place, &Path::new("/proc/thread-self/fd").join(file.as_raw_fd().to_string()))
    }

    fn keep(&self, place: Place, namespace: &Path) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let path = self.path(place);
        File::create(&path)?;
        let mounted = mount(Some(namespace), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        if mounted.is_err() {
            let _: io::Result<()> = fs::remove_file(&path);
        }
        Ok(mounted?)
    }

    fn path(&self, place: Place) -> PathBuf {
        self.directory.join(place.to_string())
    }

    /// Takes the thread back. A thread that cannot go back must not go on, for it would work in the wrong place.
    fn return_home(&self) {
        setns(self.host.as_fd(), CloneFlags::CLONE_NEWNET).expect("whoever left the node's namespace may return to it");
    }
}

/// Returns whether two files are one namespace.
fn is_same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

const VANISHED: &str = "its namespace is not mounted any more";
