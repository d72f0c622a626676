#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod backup;
mod clock;
pub mod conformance;
mod connect;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod faulty;
mod follower;
mod key;
mod layout;
mod memory;
mod plans;
mod prefixed;
mod rebuild;
mod recall;
mod registry;
mod session;
#[cfg(feature = "sqlite")]
mod sqlite;
mod status;
mod store;

pub use backup::{BackupError, Summary};
pub use clock::{Clock, ManualClock, SystemClock};
pub use connect::{ConnectError, connect};
pub use error::{StoreError, StoreErrorKind};
#[cfg(feature = "etcd")]
pub use etcd::{Credentials, EtcdOptions, EtcdStore, Tls};
pub use faulty::{Fault, Faulty};
pub use follower::{Follower, Progress};
pub use key::{Key, KeyError};
pub use memory::MemoryStore;
pub use prefixed::Prefixed;
pub use rebuild::Rebuild;
pub use registry::{Applied, Registry, RegistryError};
pub use session::Session;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use status::{Held, NodeStatus, Reported, Reporter};
pub use store::{
    Batch, Entry, Event, Lease, LeaseId, Listing, Operation, Outcome, Page, Precondition, Reading, Revision, Store,
    StoreExt, Transaction, Watch,
};
