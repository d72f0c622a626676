//! Where containers are, by id.

use core::hash::BuildHasher;

use foldhash::fast::RandomState;
use prefetch_index::prefetch_index;

use crate::id::ContainerId;
use crate::net::Vni;

/// A container's network and the ordinal of its address there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) vni: Vni,
    pub(super) ordinal: u32,
}

/// The places of all containers of a region, by their ids.
///
/// An id is random, so that where it stands in a large table is in no cache. So a table holds as little as it can: of an id no
/// more than a hash, and whoever looks tells from a place whether the container there is the one. All that is looked at for an
/// id stands in one line of the processor's caches, which can be asked for ([`prefetch`](Self::prefetch)) before it is looked at.
///
/// An id's entry is in the line that its hash names or, where that was full, in one of the next: each line counts the entries that
/// passed it, so that a look knows where to end.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// None, or a power of two.
    lines: Vec<Line>,
    len: usize,
    hasher: RandomState,
}

/// What a processor fetches at once: 64 octets.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Line {
    entries: [Option<Entry>; 5],
    /// How many entries stand in later lines because this one was full.
    passed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    hash: u32,
    place: Place,
}

/// How many entries a line has on average when there have to be more lines: of five places, so that few entries pass a line
/// and most looks end with the first.
const FILL: usize = 3;

impl Index {
    /// Has the processor fetch what will be looked at for a container, while other work is done.
    pub(super) fn prefetch(&self, id: ContainerId) {
        if let Some(first) = self.walk(self.hash(id)).next() {
            prefetch_index(&self.lines, first);
        }
    }

    /// Returns the place of a container, of those that its id may have.
    pub(super) fn find(&self, id: ContainerId, is_at: impl Fn(Place) -> bool) -> Option<Place> {
        self.search(self.hash(id), is_at)
            .map(|(line, entry)| self.lines[line].entries[entry].expect("it was found").place)
    }

    /// Puts in a container that is nowhere.
    pub(super) fn insert(&mut self, id: ContainerId, place: Place) {
        if self.len == self.lines.len() * FILL {
            self.grow();
        }
        self.len += 1;
        self.put(Entry { hash: self.hash(id), place });
    }

    /// Takes a container out, if it is at that place.
    pub(super) fn remove(&mut self, id: ContainerId, place: Place) {
        let hash = self.hash(id);
        if let Some((line, entry)) = self.search(hash, |there| there == place) {
            self.walk(hash).take_while(|at| *at != line).for_each(|at| self.lines[at].passed -= 1);
            self.lines[line].entries[entry] = None;
            self.len -= 1;
        }
    }

    /// Finds an entry: its line, and which it is there.
    fn search(&self, hash: u32, is_at: impl Fn(Place) -> bool) -> Option<(usize, usize)> {
        let is_it = |entry: &Entry| entry.hash == hash && is_at(entry.place);
        for at in self.walk(hash) {
            let line = &self.lines[at];
            if let Some(entry) = line.entries.iter().position(|entry| entry.as_ref().is_some_and(&is_it)) {
                return Some((at, entry));
            }
            if line.passed == 0 {
                break;
            }
        }
        None
    }

    /// Puts an entry into the first line that has room for it.
    fn put(&mut self, entry: Entry) {
        for at in self.walk(entry.hash) {
            let line = &mut self.lines[at];
            if let Some(free) = line.entries.iter_mut().find(|place| place.is_none()) {
                *free = Some(entry);
                return;
            }
            line.passed += 1;
        }
        unreachable!("of five places, three are taken on average at most");
    }

    fn grow(&mut self) {
        let lines = vec![Line::default(); (self.lines.len() * 2).max(1)];
        let before = core::mem::replace(&mut self.lines, lines);
        before.iter().flat_map(|line| line.entries).flatten().for_each(|entry| self.put(entry));
    }

    /// Returns the lines in the order in which a hash fills them, each once.
    fn walk(&self, hash: u32) -> impl Iterator<Item = usize> + use<> {
        let count = self.lines.len();
        (0..count).map(move |step| (hash as usize + step) & (count - 1))
    }

    /// Hashes an id to what is kept of it: enough for some thirty million containers to be found at the first look.
    fn hash(&self, id: ContainerId) -> u32 {
        self.hasher.hash_one(id) as u32
    }
}

/// What is in an index follows from what is in the networks.
impl PartialEq for Index {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Index {}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    /// Makes a number that looks like none of its neighbours (SplitMix64, twice).
    fn scrambled(n: u64) -> u128 {
        let half = |n: u64| {
            let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            n ^ n >> 31
        };
        u128::from(half(n)) << 64 | u128::from(half(!n))
    }

    #[test]
    fn ids_with_the_same_hash_are_told_apart() {
        let mut index = Index::default();
        let place = |n: u32| Place { vni: Vni::new(n).unwrap(), ordinal: n };
        // Of numbers that follow each other, no two have one hash: these are as random as ids are.
        let id = |n: u32| ContainerId::from_u128(scrambled(n.into()));
        // Of 400 000 ids of 32 bits, some have the same hash: 18 pairs on average.
        let ids = 1..=400_000;
        let hashes: HashSet<u32> = ids.clone().map(|n| index.hash(id(n))).collect();
        assert!(hashes.len() < 400_000, "no two have the same hash");
        for n in ids.clone() {
            index.insert(id(n), place(n));
        }
        let is_at = |n: u32| move |found: Place| found == place(n);
        for n in ids.clone() {
            assert_eq!(index.find(id(n), is_at(n)), Some(place(n)));
        }
        for n in ids.clone().filter(|n| n % 2 == 0) {
            let id = id(n);
            // At another place it is somebody else.
            index.remove(id, place(n + 1));
            index.remove(id, place(n));
        }
        for n in ids {
            let expected = (n % 2 == 1).then(|| place(n));
            assert_eq!(index.find(id(n), is_at(n)), expected, "{n}");
        }
    }

    proptest! {
        /// Few lines are passed by many entries, also from the last to the first, and a look for what is not there ends.
        #[test]
        fn it_holds_what_a_map_holds(ids in 1_u32..=32, changes in prop::collection::vec(any::<u32>(), 0..400)) {
            let (mut index, mut model) = (Index::default(), HashMap::new());
            let id = |n: u32| ContainerId::from_u128(scrambled(n.into()));
            let place = |ordinal: u32| Place { vni: Vni::new(1).unwrap(), ordinal };
            for (ordinal, n) in (1..).zip(changes) {
                let n = n % ids;
                index.remove(id(n), place(ordinal));
                if let Some(held) = model.remove(&n) {
                    index.remove(id(n), held);
                } else {
                    model.insert(n, place(ordinal));
                    index.insert(id(n), place(ordinal));
                }
                for n in 0..ids {
                    index.prefetch(id(n));
                    prop_assert_eq!(index.find(id(n), |_| true), model.get(&n).copied());
                }
            }
            prop_assert_eq!(index.len, model.len());
            model.into_iter().for_each(|(n, held)| index.remove(id(n), held));
            prop_assert!(index.lines.iter().all(|line| line.passed == 0 && line.entries == [None; 5]));
        }
    }
}
