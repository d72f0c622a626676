//! Giving way to others of the same processor.

use core::time::Duration;
use std::thread;
use std::time::Instant;

/// What a thread has of its processor before others get it.
///
/// Whoever publishes names runs there, too, and the kernel would let them wait for the end of a time slice: 4 ms and more, where
/// queries never end.
#[derive(Debug)]
pub(super) struct Turn {
    begin: Instant,
    len: Duration,
}

impl Default for Turn {
    fn default() -> Self {
        Self { begin: Instant::now(), len: TURN }
    }
}

impl Turn {
    /// Lets others go first, where the turn is over. The next one is at least as long as theirs: who takes much does not get more
    /// than half.
    pub(super) fn give_way(&mut self) {
        let end = Instant::now();
        if end - self.begin >= self.len {
            thread::yield_now();
            let begin = Instant::now();
            *self = Self { begin, len: TURN.max(begin - end) };
        }
    }
}

/// How long a thread answers without a pause before others may go first.
const TURN: Duration = Duration::from_micros(250);
