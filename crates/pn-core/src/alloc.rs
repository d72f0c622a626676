//! Recorded allocation of numbers that rest before somebody else gets them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
/// A number rests after it was given back. While it does, the owner that had it gets it back at once, and nobody else gets
/// it. Others get a number that was never used or, when there is none, the one that was given back first.
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
    /// Numbers from `fresh` on that were used all the same, as records said, and whether they are in use.
    ahead: BTreeMap<u32, bool>,
    /// How many numbers are in use.
    used: u32,
    /// Numbers that rest, and who had them, oldest first.
    resting: BTreeMap<(Timestamp, u32), Owner>,
    /// The same by owner.
    by_owner: BTreeSet<(Owner, Timestamp, u32)>,
    /// Numbers that have rested, in the order they were given back.
    rested: VecDeque<u32>,
}

impl<Owner: Ord + Copy> Pool<Owner> {
    pub(crate) const fn new(capacity: u32, rest: Duration) -> Self {
        Self {
            capacity,
            rest,
            fresh: 1,
            in_use: Vec::new(),
            ahead: BTreeMap::new(),
            used: 0,
            resting: BTreeMap::new(),
            by_owner: BTreeSet::new(),
            rested: VecDeque::new(),
        }
    }

    /// Takes a number for `owner`.
    pub(crate) fn take(&mut self, owner: &Owner, now: Timestamp) -> Result<u32, Exhausted> {
        self.settle(now);
        while let Some(in_use) = self.ahead.remove(&self.fresh) {
            self.fresh += 1;
            self.set_in_use(self.fresh - 1, in_use);
        }
        let own = (*owner, Timestamp::ZERO, 0)..=(*owner, Timestamp::MAX, u32::MAX);
        let number = if let Some(key) = self.by_owner.range(own).next_back().copied() {
            self.by_owner.remove(&key);
            self.resting.remove(&(key.1, key.2));
            key.2
        } else if self.fresh <= self.capacity {
            self.fresh += 1;
            self.fresh - 1
        } else if let Some(number) = self.rested.pop_front() {
            number
        } else {
            let until = self.resting.first_key_value().map(|((since, _), _)| since.after(self.rest));
            return Err(until.map_or(Exhausted::InUse, |until| Exhausted::Resting { until }));
        };
        self.set_in_use(number, true);
        self.used += 1;
        Ok(number)
    }

    /// Takes a certain number that was recorded as given, before any other is taken; `false` where it is out of range or in use already.
    pub(crate) fn occupy(&mut self, number: u32) -> bool {
        if number == 0 || number > self.capacity || self.is_in_use(number) {
            return false;
        }
        // A number that was used before and is free rests, or has rested.
        self.rested.retain(|rested| *rested != number);
        self.set_in_use(number, true);
        self.used += 1;
        true
    }

    /// Gives a number back, to rest from `now`. Giving back what is not in use does nothing.
    pub(crate) fn release(&mut self, number: u32, owner: Owner, now: Timestamp) {
        if !self.is_in_use(number) {
            return;
        }
        self.settle(now);
        self.set_in_use(number, false);
        self.used -= 1;
        self.resting.insert((now, number), owner);
        self.by_owner.insert((owner, now, number));
    }

    /// Returns how many numbers are in use.
    pub(crate) const fn used(&self) -> u32 {
        self.used
    }

    /// Forgets who had the numbers that have rested.
    fn settle(&mut self, now: Timestamp) {
        while let Some(oldest) = self.resting.first_entry() {
            let key = *oldest.key();
            if now < key.0.after(self.rest) {
                return;
            }
            let owner = oldest.remove();
            self.by_owner.remove(&(owner, key.0, key.1));
            self.rested.push_back(key.1);
        }
    }

    fn is_in_use(&self, number: u32) -> bool {
        if number >= self.fresh {
            return self.ahead.get(&number) == Some(&true);
        }
        let (word, bit) = place(number);
        self.in_use.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn set_in_use(&mut self, number: u32, in_use: bool) {
        if number >= self.fresh {
            self.ahead.insert(number, in_use);
            return;
        }
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
