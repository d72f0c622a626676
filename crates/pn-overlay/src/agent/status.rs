//! How an agent is.

use core::time::Duration;
use std::collections::BTreeMap;

use pn_core::{ErrorKind, Generation, NetworkId, Timestamp};

use super::breaker::Reason;

/// How an agent is, and everything that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// What its data plane is called.
    pub backend: &'static str,
    /// The newest generation it was told of.
    pub wanted: Option<Generation>,
    /// The generation the data plane is of, but for what is held.
    pub applied: Option<Generation>,
    /// The generation that every name server answers from, but for what is held.
    pub announced: Option<Generation>,
    /// Networks that are of another generation than [`announced`](Self::announced): of a later one, where only others failed, or
    /// of an earlier one, where they are held.
    pub apart: BTreeMap<NetworkId, Generation>,
    /// Whether the node is still to be made what it should be, or being made.
    pub is_pending: bool,
    /// What waits for a confirmation.
    pub held: BTreeMap<NetworkId, Held>,
    /// Since when nothing was heard from the source, if it is lost. Whoever answers names must stop some time after (D10).
    pub stale: Option<Stale>,
    /// Why the node is fenced, if it is.
    pub fenced: Option<String>,
    /// What fails at the moment, by object.
    pub failures: BTreeMap<String, Failure>,
    /// How often the data plane was found to differ from what was applied, and applied again.
    pub repairs: u64,
    /// How long the last attempt to apply took.
    pub last_apply: Option<Duration>,
}

/// Where an agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// It has no plan yet, or waits for a confirmation of the first.
    Starting,
    /// It makes the node what its plans say.
    Following,
    /// Its place was taken: it has withdrawn its names and taken its data plane down, and waits for a new plan.
    Fenced,
    /// It is being shut down.
    Leaving,
    /// It does nothing any more.
    Stopped,
}

/// A network that waits for a confirmation (L3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// Why.
    pub reason: Reason,
    /// How many endpoints would go.
    pub going: usize,
    /// Of how many.
    pub of: usize,
    /// The generation that asked for it, or for more of it. A confirmation of this generation, or of a later one, is needed.
    pub generation: Generation,
}

/// The source is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stale {
    /// Since when.
    pub since: Timestamp,
    /// Why, as the source says it.
    pub why: String,
}

/// Something that fails at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The kind of the last error.
    pub kind: ErrorKind,
    /// The last error and its causes.
    pub message: String,
    /// When it first failed since it last did not.
    pub since: Timestamp,
    /// How often it failed since.
    pub attempts: u32,
}

impl AgentStatus {
    pub(super) const fn new(backend: &'static str) -> Self {
        Self {
            phase: Phase::Starting,
            backend,
            wanted: None,
            applied: None,
            announced: None,
            apart: BTreeMap::new(),
            is_pending: false,
            held: BTreeMap::new(),
            stale: None,
            fenced: None,
            failures: BTreeMap::new(),
            repairs: 0,
            last_apply: None,
        }
    }

    /// Returns whether the node is all of what the newest plan says, and answers it (D14).
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let is_there = self.wanted.is_some() && self.applied == self.wanted && self.announced == self.wanted;
        is_there
            && !self.is_pending
            && self.held.is_empty()
            && self.failures.is_empty()
            && self.phase == Phase::Following
    }
}
