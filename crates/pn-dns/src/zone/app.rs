//! The names of one app, laid out so that a lookup touches little memory.

use core::hash::{BuildHasher, Hasher};
use std::collections::HashMap;
use std::sync::Arc;

use pn_core::{AppId, AppNames, TypeNames};

use super::shape::{Key, Shape, Shapes};

/// The names of one app. It is made once, and shared by every zone in which they are the same.
#[derive(Debug)]
pub(crate) struct AppBlock {
    names: Arc<AppNames>,
    shape: Arc<Shape>,
    /// Where the containers of each type end among all; then the address of each container, and the index of its slot where
    /// those of a type are not 1, 2, 3 and so on.
    words: Box<[Word]>,
    /// How many containers there are.
    count: u32,
}

/// An address as a message has it, or a number.
type Word = [u8; 4];

/// A declared type of an app.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TypeBlock<'a> {
    /// The addresses of its containers, ordered by the index of their slots.
    pub(crate) addresses: &'a [Word],
    /// The indexes; none where they are 1, 2, 3 and so on.
    indexes: &'a [Word],
}

impl AppBlock {
    pub(super) fn new(names: Arc<AppNames>, shapes: &Shapes) -> Self {
        let containers = || names.types.iter().flat_map(|of_type| &of_type.containers);
        let mut count = 0;
        let ends = names.types.iter().map(|of_type| {
            count += of_type.containers.len() as u32;
            count.to_ne_bytes()
        });
        let mut words: Vec<Word> = ends.collect();
        words.extend(containers().map(|(_, address)| address.octets()));
        let in_turn = |of_type: &TypeNames| of_type.containers.iter().zip(1..).all(|((index, _), turn)| *index == turn);
        if !names.types.iter().all(in_turn) {
            words.extend(containers().map(|(index, _)| index.to_ne_bytes()));
        }
        Self { shape: shapes.shape(&names), names, words: words.into(), count }
    }

    /// Finds a declared type by its label, in any case.
    pub(crate) fn of_type(&self, label: &[u8]) -> Option<(&TypeNames, TypeBlock<'_>)> {
        let position = self.position(Key::new(label), label)?;
        Some((self.names.types.get(position as usize)?, self.block(position)?))
    }

    /// Returns the position in the plan of a declared type.
    pub(crate) fn position(&self, key: Key, label: &[u8]) -> Option<u32> {
        self.shape.position(key, label)
    }

    /// Returns the containers of a type by its position.
    pub(crate) fn block(&self, position: u32) -> Option<TypeBlock<'_>> {
        let (ends, containers) = self.words.split_at_checked(self.shape.len())?;
        let end = |position: u32| Some(u32::from_ne_bytes(*ends.get(position as usize)?) as usize);
        let range = position.checked_sub(1).map_or(Some(0), end)?..end(position)?;
        let (addresses, indexes) = containers.split_at_checked(self.count as usize)?;
        let indexes = if indexes.is_empty() { &[] } else { indexes.get(range.clone())? };
        Some(TypeBlock { addresses: addresses.get(range)?, indexes })
    }
}

impl<'a> TypeBlock<'a> {
    /// Returns the place of the container in a slot, among the others of its type.
    pub(crate) fn place(&self, index: u32) -> Option<usize> {
        let place = if self.indexes.is_empty() {
            index.checked_sub(1)? as usize
        } else {
            self.indexes.binary_search_by_key(&index, |index| u32::from_ne_bytes(*index)).ok()?
        };
        (place < self.addresses.len()).then_some(place)
    }

    /// Returns the address of the container in a slot, alone.
    pub(crate) fn address(&self, index: u32) -> Option<&'a [Word]> {
        let place = self.place(index)?;
        self.addresses.get(place..=place)
    }
}

/// The apps of a zone. Zones that follow each other share the parts in which they are the same, so that a change costs little
/// where there are many apps.
#[derive(Debug, Clone)]
pub(crate) struct Apps {
    parts: Box<[Arc<Part>; PARTS]>,
    shapes: Arc<Shapes>,
}

/// Apps by id.
type Part = HashMap<AppId, Arc<AppBlock>, IdHasher>;

/// Some tens: of 10 000 apps, few in each, and few parts.
const PARTS: usize = 64;

impl Default for Apps {
    fn default() -> Self {
        let nothing = Arc::new(Part::default());
        Self { parts: Box::new(core::array::from_fn(|_| Arc::clone(&nothing))), shapes: Arc::default() }
    }
}

impl Apps {
    pub(crate) fn get(&self, app: AppId) -> Option<&AppBlock> {
        self.parts[part(app)].get(&app).map(|block| &**block)
    }

    pub(super) fn insert(&mut self, names: Arc<AppNames>) {
        let app = names.app;
        let block = AppBlock::new(names, &self.shapes);
        Arc::make_mut(&mut self.parts[part(app)]).insert(app, Arc::new(block));
    }

    pub(super) fn remove(&mut self, app: AppId) {
        Arc::make_mut(&mut self.parts[part(app)]).remove(&app);
    }
}

/// Returns the part that an app is in: bits that its place in the part does not depend on alone.
fn part(app: AppId) -> usize {
    (IdHasher.hash_one(app) >> 40) as usize % PARTS
}

/// Hashes ids, which come from the plan, by folding their octets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct IdHasher;

impl BuildHasher for IdHasher {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(0)
    }
}

/// The octets seen so far.
#[derive(Debug)]
pub(crate) struct Folded(u64);

impl Hasher for Folded {
    fn write(&mut self, octets: &[u8]) {
        for chunk in octets.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0 ^ u64::from_be_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }

    fn finish(&self) -> u64 {
        // The table takes the low bits for the place and the high ones for the tag.
        self.0 ^ self.0 >> 32
    }
}
