use core::fmt;

use pn_core::document::DocumentError;
use pn_core::{ApplyError, LoadError, NodeId};

use crate::{Key, StoreError};

/// Why a [`Registry`](super::Registry) could not do something.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The rules refuse the change. Nothing was changed.
    #[error("the change is refused")]
    Refused(#[from] ApplyError),
    /// The store failed. Where it [is retryable](StoreError::is_retryable), the change may have been made.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// Others changed the same things over and over. Nothing was changed.
    #[error("others changed the same things {attempts} times meanwhile: try again")]
    Contended {
        /// How often it was tried.
        attempts: u32,
    },
    /// The store holds a document that this release cannot read.
    #[error("what {key} holds cannot be read")]
    Record {
        /// Where it is.
        key: Key,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// The store holds records that contradict each other.
    #[error("the store's records contradict each other")]
    Contradiction(#[from] LoadError),
    /// It concerns more networks than one transaction can hold.
    #[error(
        "node {node} is in {networks} private networks, and its addresses or MTU cannot change while it is in more than {most}: drain it"
    )]
    TooManyNetworks {
        /// The node.
        node: NodeId,
        /// In how many it is.
        networks: usize,
        /// In how many it may be.
        most: usize,
    },
    /// Another agent has the node's name, and lives.
    #[error("node {node} is taken by another agent, which is alive: stop it, or choose another name")]
    NodeTaken {
        /// The node.
        node: NodeId,
    },
    /// Waiting took longer than it was to.
    #[error("{what} took longer than {millis} ms")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long it was waited for.
        millis: u128,
    },
}

impl RegistryError {
    pub(crate) fn record(key: &Key, reason: impl fmt::Display) -> Self {
        Self::Record { key: key.clone(), source: DocumentError::Syntax { reason: reason.to_string() } }
    }

    /// Returns whether the same attempt may succeed later without anybody changing anything.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Contended { .. } | Self::TimedOut { .. } => true,
            Self::Refused(_)
            | Self::Record { .. }
            | Self::Contradiction(_)
            | Self::TooManyNetworks { .. }
            | Self::NodeTaken { .. } => false,
        }
    }
}
