//! What was found last, by what was asked.

/// How many places there are.
const PLACES: usize = 64;

/// What was found for the last keys. Each has one place, which a number leads to that comes with it: to look takes one comparison,
/// and of keys that share a place the last is there. Numbers that follow each other lead to different places.
#[derive(Debug, Clone)]
pub struct Recent<Key, Value>(Vec<Option<(Key, Value)>>);

impl<Key, Value> Default for Recent<Key, Value> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Key: PartialEq, Value> Recent<Key, Value> {
    /// Returns what was found for a key, if that is still there.
    #[must_use]
    pub fn get(&self, number: u64, key: &Key) -> Option<&Value> {
        let (same, value) = self.0.get(place(number))?.as_ref()?;
        (same == key).then_some(value)
    }

    /// Remembers what was found for a key, instead of what was at its place.
    pub fn insert(&mut self, number: u64, key: Key, value: Value) {
        if self.0.is_empty() {
            self.0.resize_with(PLACES, || None);
        }
        self.0[place(number)] = Some((key, value));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

const fn place(number: u64) -> usize {
    number as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_at_a_place_is_there_and_nothing_is_taken_for_another() {
        let mut recent = Recent::default();
        assert_eq!(recent.get(1, &"a"), None);
        recent.insert(1, "a", 1);
        assert_eq!((recent.get(1, &"a"), recent.get(1, &"b"), recent.get(2, &"a")), (Some(&1), None, None));
        recent.insert(1, "b", 2);
        assert_eq!((recent.get(1, &"a"), recent.get(1, &"b")), (None, Some(&2)));
        recent.clear();
        assert_eq!(recent.get(1, &"b"), None);
    }
}
