use core::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pn_core::Timestamp;

/// Where a [`Registry`](crate::Registry) has the time and its random numbers from.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the time.
    fn now(&self) -> Timestamp;

    /// Returns a number that nobody can foretell.
    fn random(&self) -> u64;
}

/// The system's clock, and random numbers seeded by the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }
}

/// A clock that stands still until it is told, with random numbers from a seed, for tests.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicU64,
    seed: AtomicU64,
}

impl ManualClock {
    /// Makes a clock that shows a time.
    #[must_use]
    pub const fn new(now: Timestamp, seed: u64) -> Self {
        Self { now: AtomicU64::new(now.as_millis()), seed: AtomicU64::new(seed) }
    }

    /// Sets the time.
    pub fn set(&self, now: Timestamp) {
        self.now.store(now.as_millis(), Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now.load(Ordering::Relaxed))
    }

    fn random(&self) -> u64 {
        fastrand::Rng::with_seed(self.seed.fetch_add(1, Ordering::Relaxed)).u64(..)
    }
}
