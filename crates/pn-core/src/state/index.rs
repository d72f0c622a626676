//! Where containers are, by id.

use core::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

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
/// An id is random, so that where it stands in a large table is in no cache: that is what a look waits for, and what an entry that
/// is written waits for again. So a table holds as little as it can: of an id no more than a hash, and whoever looks
/// tells from a place whether the container there is the one.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    entries: HashTable<Entry>,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u32,
    place: Place,
}

impl Index {
    /// Returns the place of a container, of those that its id may have.
    pub(super) fn find(&self, id: ContainerId, is_at: impl Fn(Place) -> bool) -> Option<Place> {
        let hash = self.hash(id);
        let is_it = |entry: &Entry| entry.hash == hash && is_at(entry.place);
        self.entries.find(spread(hash), is_it).map(|entry| entry.place)
    }

    /// Puts in a container that is nowhere.
    pub(super) fn insert(&mut self, id: ContainerId, place: Place) {
        let hash = self.hash(id);
        self.entries.insert_unique(spread(hash), Entry { hash, place }, |entry| spread(entry.hash));
    }

    /// Takes a container out, if it is at that place.
    pub(super) fn remove(&mut self, id: ContainerId, place: Place) {
        let hash = self.hash(id);
        if let Ok(entry) = self.entries.find_entry(spread(hash), |entry| entry.hash == hash && entry.place == place) {
            entry.remove();
        }
    }

    /// Hashes an id to what is kept of it: enough for some thirty million containers to be found at the first look.
    fn hash(&self, id: ContainerId) -> u32 {
        self.hasher.hash_one(id) as u32
    }
}

/// Makes what the table takes: the lowest bits say where an entry stands, and the highest seven tell it from its neighbours.
const fn spread(hash: u32) -> u64 {
    (hash as u64) << 32 | hash as u64
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
    use std::collections::HashSet;

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
}
