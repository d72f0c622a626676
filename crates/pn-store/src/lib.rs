#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod conformance;
mod error;
mod faulty;
mod key;
mod memory;
mod prefixed;
mod store;

pub use error::{StoreError, StoreErrorKind};
pub use faulty::{Fault, Faulty};
pub use key::{Key, KeyError};
pub use memory::MemoryStore;
pub use prefixed::Prefixed;
pub use store::{
    Batch, Entry, Event, Lease, LeaseId, Listing, Operation, Outcome, Page, Precondition, Reading, Revision, Store,
    StoreExt, Transaction, Watch,
};
