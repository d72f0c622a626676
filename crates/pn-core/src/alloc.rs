//! Recorded allocation of numbers that rest before somebody else gets them.

use std::collections::{BTreeMap, BTreeSet};

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

/// A number that can be given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) number: u32,
    /// Since when it rests, if it does.
    since: Option<Timestamp>,
}

/// Which of the numbers that have rested comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// After those that were never given, the one that was given back first. Whoever records the numbers records each that
    /// is free and was given before.
    Oldest,
    /// The next in turn: every other one comes before a number comes again. What has rested is forgotten, so that few have to be
    /// recorded of very many.
    InTurn,
}

/// Gives the numbers from `1` to `capacity`, each to one owner at a time.
///
/// A number rests after it was given back. While it does, the owner that had it gets it back at once, and nobody else gets
/// it. Others get the next number in turn that was never given, or one that has rested.
///
/// Costs grow with the logarithm of the numbers that rest and, in words of 64, with those passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool<Owner> {
    capacity: u32,
    rest: Duration,
    reuse: Reuse,
    /// The number whose turn it is.
    next: u32,
    in_use: Bits,
    /// Numbers that rest or have rested; what is forgotten leaves.
    resting: Bits,
    /// How many numbers are in use.
    used: u32,
    /// Who had the numbers that rest, oldest first.
    rests: BTreeMap<(Timestamp, u32), Owner>,
    /// The same by owner.
    by_owner: BTreeSet<(Owner, Timestamp, u32)>,
}

impl<Owner: Ord + Copy> Pool<Owner> {
    /// How many numbers that have rested are forgotten with one change, so that the records it changes are few.
    pub(crate) const SETTLED: usize = 8;

    pub(crate) const fn new(capacity: u32, rest: Duration, reuse: Reuse) -> Self {
        Self {
            capacity,
            rest,
            reuse,
            next: 1,
            in_use: Bits(Vec::new()),
            resting: Bits(Vec::new()),
            used: 0,
            rests: BTreeMap::new(),
            by_owner: BTreeSet::new(),
        }
    }

    /// Takes a number for `owner`.
    pub(crate) fn take(&mut self, owner: &Owner, now: Timestamp) -> Result<u32, Exhausted> {
        self.settle(now);
        let choice = self.choose(owner, now)?;
        self.give(choice);
        Ok(choice.number)
    }

    /// Finds a number for `owner`, to be given next, among those that are free as they are: where numbers come in turn,
    /// [`take`](Self::take) forgets first what has rested.
    pub(crate) fn choose(&self, owner: &Owner, now: Timestamp) -> Result<Choice, Exhausted> {
        let rested = |(since, number)| Choice { number, since: Some(since) };
        if let Some(own) = self.own(owner, now) {
            return Ok(rested(own));
        }
        if let Some(number) = self.free(self.next, self.capacity).or_else(|| self.free(1, self.next)) {
            return Ok(Choice { number, since: None });
        }
        let oldest = self.oldest().ok_or(Exhausted::InUse)?;
        let until = oldest.0.after(self.rest);
        if until <= now { Ok(rested(oldest)) } else { Err(Exhausted::Resting { until }) }
    }

    /// Gives a number that was found for its owner, with no change in between.
    pub(crate) fn give(&mut self, Choice { number, since }: Choice) {
        match since {
            Some(since) => self.forget_rest(since, number),
            None => self.next = if number < self.capacity { number + 1 } else { 1 },
        }
        self.in_use.set(number);
        self.used += 1;
    }

    /// Takes a certain number that was recorded as given; `false` where it is out of range, in use or resting.
    pub(crate) fn occupy(&mut self, number: u32) -> bool {
        let is_free = self.is_free(number);
        if is_free {
            self.in_use.set(number);
            self.used += 1;
        }
        is_free
    }

    /// Takes back that a number was given, as if it had never been.
    pub(crate) fn vacate(&mut self, number: u32) {
        if self.in_use.unset(number) {
            self.used -= 1;
        }
    }

    /// Lets a number rest as it was recorded; `false` where it is out of range, in use or resting.
    pub(crate) fn rest(&mut self, number: u32, owner: Owner, since: Timestamp) -> bool {
        let is_free = self.is_free(number);
        if is_free {
            self.resting.set(number);
            self.rests.insert((since, number), owner);
            self.by_owner.insert((owner, since, number));
        }
        is_free
    }

    /// Gives a number back, to rest from `now`. Giving back what is not in use does nothing.
    pub(crate) fn release(&mut self, number: u32, owner: Owner, now: Timestamp) {
        if self.in_use.unset(number) {
            self.settle(now);
            self.used -= 1;
            self.rest(number, owner, now);
        }
    }

    /// Returns how many numbers are in use.
    pub(crate) const fn used(&self) -> u32 {
        self.used
    }

    /// Returns the number whose turn it is.
    pub(crate) const fn next(&self) -> u32 {
        self.next
    }

    /// Says whose turn it is, as it was recorded; `false` where there is no such number.
    pub(crate) const fn set_next(&mut self, number: u32) -> bool {
        let is_there = number >= 1 && number <= self.capacity;
        if is_there {
            self.next = number;
        }
        is_there
    }

    /// Returns the numbers that rest or have rested, with who had them and since when, oldest first.
    pub(crate) fn rests(&self) -> impl Iterator<Item = (u32, &Owner, Timestamp)> {
        self.rests.iter().map(|((since, number), owner)| (*number, owner, *since))
    }

    /// Returns until when a number of an owner rests, if one does.
    pub(crate) fn rests_until(&self, owner: &Owner, now: Timestamp) -> Option<Timestamp> {
        self.own(owner, now).map(|(since, _)| since.after(self.rest))
    }

    /// Returns the number of an owner that rests, the one it gave back last.
    fn own(&self, owner: &Owner, now: Timestamp) -> Option<(Timestamp, u32)> {
        let own = (*owner, Timestamp::ZERO, 0)..=(*owner, Timestamp::MAX, u32::MAX);
        let (_, since, number) = self.by_owner.range(own).next_back()?;
        (now < since.after(self.rest)).then_some((*since, *number))
    }

    /// Returns the number that was given back first, after since when it rests.
    fn oldest(&self) -> Option<(Timestamp, u32)> {
        self.rests.first_key_value().map(|(key, _)| *key)
    }

    /// Forgets the numbers that have rested longest, if they have rested and need not be remembered.
    fn settle(&mut self, now: Timestamp) {
        let settled = match self.reuse {
            Reuse::Oldest => 0,
            Reuse::InTurn => Self::SETTLED,
        };
        for _ in 0..settled {
            match self.rests.first_key_value() {
                Some((&(since, number), _)) if since.after(self.rest) <= now => self.forget_rest(since, number),
                _ => return,
            }
        }
    }

    fn forget_rest(&mut self, since: Timestamp, number: u32) {
        self.resting.unset(number);
        if let Some(owner) = self.rests.remove(&(since, number)) {
            self.by_owner.remove(&(owner, since, number));
        }
    }

    fn is_free(&self, number: u32) -> bool {
        number >= 1 && number <= self.capacity && !self.in_use.has(number) && !self.resting.has(number)
    }

    /// Returns the first number from `first` to `last` that neither is in use nor rests.
    fn free(&self, first: u32, last: u32) -> Option<u32> {
        let (first, last) = (u64::from(first), u64::from(last));
        for word in first / 64..=last / 64 {
            let mut taken = self.in_use.word(word) | self.resting.word(word);
            if word == first / 64 {
                taken |= (1 << (first % 64)) - 1;
            }
            let number = word * 64 + u64::from(taken.trailing_ones());
            if taken != u64::MAX {
                return u32::try_from(number).ok().filter(|_| number <= last);
            }
        }
        None
    }
}

/// A set of numbers, one bit for each up to the largest, so that equal sets are equal values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bits(Vec<u64>);

impl Bits {
    fn word(&self, at: u64) -> u64 {
        usize::try_from(at).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0)
    }

    fn has(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.0.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn set(&mut self, number: u32) {
        let (word, bit) = place(number);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= bit;
    }

    /// Takes a number out, and returns whether it was in.
    fn unset(&mut self, number: u32) -> bool {
        let was_in = self.has(number);
        if was_in {
            let (word, bit) = place(number);
            self.0[word] &= !bit;
            while self.0.last() == Some(&0) {
                self.0.pop();
            }
        }
        was_in
    }
}

const fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

#[cfg(test)]
mod tests;
