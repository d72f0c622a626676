#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod clock;
pub mod conformance;
mod connect;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod faulty;
mod key;
mod layout;
mod memory;
mod prefixed;
mod registry;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;

pub use clock::{Clock, ManualClock, SystemClock};
pub use connect::{ConnectError, connect};
pub use error::{StoreError, StoreErrorKind};
#[cfg(feature = "etcd")]
pub use etcd::{Credentials, EtcdOptions, EtcdStore, Tls};
pub use faulty::{Fault, Faulty};
pub use key::{Key, KeyError};
pub use memory::MemoryStore;
pub use prefixed::Prefixed;
pub use registry::{Applied, Registry, RegistryError};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use store::{
    Batch, Entry, Event, Lease, LeaseId, Listing, Operation, Outcome, Page, Precondition, Reading, Revision, Store,
    StoreExt, Transaction, Watch,
};
