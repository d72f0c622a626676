//! Time as a parameter: the model never asks a clock.

use core::fmt;
use core::time::Duration;

/// A moment, in milliseconds since the Unix epoch, that the caller passes in.
///
/// Only differences matter to the model, so tests may start at [`Timestamp::ZERO`]. For a [`State`](crate::State) time does not
/// go back: a moment before the last accepted change counts as that of the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The epoch itself.
    pub const ZERO: Self = Self(0);

    /// The last moment there is.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a moment from milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the moment `duration` later, at most the last that can be told.
    #[must_use]
    pub const fn after(self, duration: Duration) -> Self {
        let millis = duration.as_millis();
        let millis = if millis > u64::MAX as u128 { u64::MAX } else { millis as u64 };
        Self(self.0.saturating_add(millis))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}
