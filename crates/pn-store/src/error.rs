use core::fmt;
use std::error::Error as StdError;
use std::sync::Arc;

/// The kinds of failure a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store could not be reached, or did not answer in time.
    Unavailable,
    /// The store refused who asks.
    Denied,
    /// The store no longer has the history that was asked for.
    Compacted,
    /// The watch has ended; another can take over where it was.
    Closed,
    /// There is no such lease, or it has ended.
    LeaseEnded,
    /// What was asked for makes no sense to any store.
    Invalid,
    /// It is more than the store takes at once.
    TooLarge,
    /// What the store holds is not what was put there.
    Corrupt,
    /// The store itself failed.
    Failed,
}

/// Why a store could not do something.
#[derive(Debug, Clone)]
pub struct StoreError {
    kind: StoreErrorKind,
    operation: &'static str,
    object: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl StoreError {
    /// Makes an error: what was being done, and to what.
    #[must_use]
    pub fn new(kind: StoreErrorKind, operation: &'static str, object: impl fmt::Display) -> Self {
        Self { kind, operation, object: object.to_string(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// Returns what was being done.
    #[must_use]
    pub const fn operation(&self) -> &'static str {
        self.operation
    }

    /// Returns what it was done to: a key, a prefix, a lease or the store's address.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Returns whether the same attempt may succeed later without anybody changing anything.
    ///
    /// Of a transaction it is not known then whether it was made.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable | StoreErrorKind::Closed)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.kind {
            StoreErrorKind::Unavailable => "the store cannot be reached",
            StoreErrorKind::Denied => "the store refuses these credentials",
            StoreErrorKind::Compacted => "the store no longer has that history",
            StoreErrorKind::Closed => "the watch has ended",
            StoreErrorKind::LeaseEnded => "the lease has ended",
            StoreErrorKind::Invalid => "it makes no sense",
            StoreErrorKind::TooLarge => "it is too large for the store",
            StoreErrorKind::Corrupt => "what the store holds cannot be read",
            StoreErrorKind::Failed => "the store failed",
        };
        write!(f, "cannot {} {}: {reason}", self.operation, self.object)
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}
