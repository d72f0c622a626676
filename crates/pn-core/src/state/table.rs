//! Values by id.

use core::fmt;
use core::hash::Hash;
use core::ops::Index;
use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

/// A map in no order, whose look-ups cost the same however much is in it.
pub(super) type Unordered<K, V> = HashMap<K, V, RandomState>;

/// Values by id: found as in a hash map, and listed in the order of their ids.
#[derive(Clone)]
pub(super) struct Table<K, V> {
    values: Unordered<K, V>,
    ids: BTreeSet<K>,
}

impl<K: Copy + Ord + Hash, V> Table<K, V> {
    pub(super) fn get(&self, id: &K) -> Option<&V> {
        self.values.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &K) -> Option<&mut V> {
        self.values.get_mut(id)
    }

    pub(super) fn contains_key(&self, id: &K) -> bool {
        self.values.contains_key(id)
    }

    /// Puts a value in, and returns the one it takes the place of.
    pub(super) fn insert(&mut self, id: K, value: V) -> Option<V> {
        self.ids.insert(id);
        self.values.insert(id, value)
    }

    pub(super) fn remove(&mut self, id: &K) -> Option<V> {
        self.ids.remove(id);
        self.values.remove(id)
    }

    /// Returns ids and values, in the order of the ids.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> {
        self.ids.iter().map(|id| (id, &self.values[id]))
    }

    /// Returns the values, in the order of their ids.
    pub(super) fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.ids.iter().map(|id| &self.values[id])
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { values: Unordered::default(), ids: BTreeSet::new() }
    }
}

impl<K: Copy + Ord + Hash, V> Index<&K> for Table<K, V> {
    type Output = V;

    fn index(&self, id: &K) -> &V {
        &self.values[id]
    }
}

impl<K: Copy + Ord + Hash, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl<K: Copy + Ord + Hash, V: Eq> Eq for Table<K, V> {}

impl<K: Copy + Ord + Hash + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
