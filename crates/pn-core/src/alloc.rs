//! Recorded allocation of numbers that rest before somebody else gets them.

use std::collections::BTreeMap;

use core::time::Duration;

use crate::time::Timestamp;

/// Why no number could be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// All are in use.
    InUse,
    /// Those that are free still rest; the first is available then.
    Resting {
        /// When the first rested long enough.
        until: Timestamp,
    },
}

/// Gives the numbers from `1` to `capacity`, each to one owner at a time.
///
/// An owner that returns gets back at once what it had, while nobody else does; others get a number that was never used or,
/// when there is none, the one that has rested longest, and for `rest` at least.
///
/// Costs grow with the logarithm of the numbers that rest, memory with those that were ever used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool<Owner> {
    capacity: u32,
    rest: Duration,
    /// The smallest number that was never used.
    fresh: u32,
    /// One bit for each number below `fresh`: in use or not. Makes release idempotent (N3).
    in_use: Vec<u64>,
    /// Numbers that rest, oldest first.
    resting: BTreeMap<(Timestamp, u32), Owner>,
    /// The last number each owner gave back.
    last: BTreeMap<Owner, (Timestamp, u32)>,
}

impl<Owner: Ord + Copy> Pool<Owner> {
    pub(crate) const fn new(capacity: u32, rest: Duration) -> Self {
        Self { capacity, rest, fresh: 1, in_use: Vec::new(), resting: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// Takes a number for `owner`.
    pub(crate) fn take(&mut self, owner: &Owner, now: Timestamp) -> Result<u32, Exhausted> {
        if let Some(key) = self.last.get(owner).copied() {
            return Ok(self.wake(key));
        }
        if self.fresh <= self.capacity {
            let number = self.fresh;
            self.fresh += 1;
            self.set_in_use(number, true);
            return Ok(number);
        }
        let Some((&key, _)) = self.resting.first_key_value() else {
            return Err(Exhausted::InUse);
        };
        let until = key.0.after(self.rest);
        if now < until {
            return Err(Exhausted::Resting { until });
        }
        Ok(self.wake(key))
    }

    /// Gives a number back, to rest from `now`. Giving back what is not in use does nothing.
    pub(crate) fn release(&mut self, number: u32, owner: Owner, now: Timestamp) {
        if !self.is_in_use(number) {
            return;
        }
        self.set_in_use(number, false);
        self.resting.insert((now, number), owner);
        self.last.insert(owner, (now, number));
    }

    /// Returns how many numbers are in use.
    pub(crate) fn used(&self) -> u32 {
        self.fresh - 1 - u32::try_from(self.resting.len()).expect("no more rest than were ever used")
    }

    fn wake(&mut self, key: (Timestamp, u32)) -> u32 {
        if let Some(owner) = self.resting.remove(&key)
            && self.last.get(&owner) == Some(&key)
        {
            self.last.remove(&owner);
        }
        self.set_in_use(key.1, true);
        key.1
    }

    fn is_in_use(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.in_use.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn set_in_use(&mut self, number: u32, in_use: bool) {
        let (word, bit) = place(number);
        if word >= self.in_use.len() {
            self.in_use.resize(word + 1, 0);
        }
        if in_use {
            self.in_use[word] |= bit;
        } else {
            self.in_use[word] &= !bit;
        }
    }
}

const fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

#[cfg(test)]
mod tests;
