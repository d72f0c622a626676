//! The names of one app, laid out so that a lookup touches little memory.

use core::hash::{BuildHasher, Hasher};
use core::net::Ipv4Addr;
use std::collections::HashMap;
use std::sync::Arc;

use pn_core::{AppId, AppNames, TypeNames};

/// The names of one app. It is made once, and shared by every zone in which they are the same.
#[derive(Debug)]
pub(crate) struct AppBlock {
    names: Arc<AppNames>,
    /// Its types, ordered by key.
    types: Box<[TypeBlock]>,
    /// The containers of all types; those of one stand together, ordered by index.
    containers: Box<[(u32, Ipv4Addr)]>,
}

/// A declared type of an app.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TypeBlock {
    key: u128,
    /// Where its containers begin, and how many there are.
    first: u32,
    count: u32,
    /// Its place in the plan.
    position: u32,
}

/// How many octets of a label a key holds.
const IN_KEY: usize = 15;

/// Returns the first octets of a label in lower case, and its length: all there is to know of a short label.
fn key(label: &[u8]) -> u128 {
    let mut octets = [0; IN_KEY + 1];
    let len = label.len().min(IN_KEY);
    octets[..len].copy_from_slice(&label[..len]);
    octets.make_ascii_lowercase();
    // At most 63.
    octets[IN_KEY] = label.len() as u8;
    u128::from_be_bytes(octets)
}

impl AppBlock {
    pub(super) fn new(names: Arc<AppNames>) -> Self {
        let mut first = 0;
        let types = names.types.iter().zip(0..).map(|(of_type, position)| {
            let (key, count) = (key(of_type.container_type.as_str().as_bytes()), of_type.containers.len() as u32);
            first += count;
            TypeBlock { key, first: first - count, count, position }
        });
        let mut types: Box<[TypeBlock]> = types.collect();
        types.sort_unstable_by_key(|of_type| of_type.key);
        let mut containers = Vec::with_capacity(first as usize);
        names.types.iter().for_each(|of_type| containers.extend_from_slice(&of_type.containers));
        Self { types, containers: containers.into(), names }
    }

    /// Finds a declared type by its label, in any case.
    pub(crate) fn of_type(&self, label: &[u8]) -> Option<&TypeBlock> {
        let key = key(label);
        let from = self.types.partition_point(|of_type| of_type.key < key);
        let mut alike = self.types[from..].iter().take_while(|of_type| of_type.key == key);
        let is_it = |of_type: &&TypeBlock| {
            label.len() <= IN_KEY
                || self.names_of(of_type).container_type.as_str().as_bytes().eq_ignore_ascii_case(label)
        };
        alike.find(is_it)
    }

    /// Returns what the plan says of a type.
    pub(crate) fn names_of(&self, of_type: &TypeBlock) -> &TypeNames {
        &self.names.types[of_type.position as usize]
    }

    /// Returns the containers of a type.
    pub(crate) fn containers(&self, of_type: &TypeBlock) -> &[(u32, Ipv4Addr)] {
        &self.containers[of_type.first as usize..][..of_type.count as usize]
    }

    /// Returns the `web` containers.
    pub(crate) fn web(&self) -> &[(u32, Ipv4Addr)] {
        self.of_type(b"web").map_or(&[], |of_type| self.containers(of_type))
    }

    /// Returns the container in a slot, alone.
    pub(crate) fn container(&self, of_type: &TypeBlock, index: u32) -> Option<&[(u32, Ipv4Addr)]> {
        let containers = self.containers(of_type);
        // Mostly every slot is filled, and it stands in its own place.
        let at = index.wrapping_sub(1) as usize;
        if let Some(found) = containers.get(at..=at)
            && found[0].0 == index
        {
            return Some(found);
        }
        let at = containers.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        Some(&containers[at..=at])
    }
}

/// The apps of a zone. Zones that follow each other share the parts in which they are the same, so that a change costs little
/// where there are many apps.
#[derive(Debug, Clone)]
pub(crate) struct Apps(Box<[Arc<Part>; PARTS]>);

/// Apps by id.
type Part = HashMap<AppId, Arc<AppBlock>, IdHasher>;

/// Some tens: of 10 000 apps, few in each, and few parts.
const PARTS: usize = 64;

impl Default for Apps {
    fn default() -> Self {
        let nothing = Arc::new(Part::default());
        Self(Box::new(core::array::from_fn(|_| Arc::clone(&nothing))))
    }
}

impl Apps {
    pub(crate) fn get(&self, app: AppId) -> Option<&AppBlock> {
        self.0[part(app)].get(&app).map(|block| &**block)
    }

    pub(super) fn insert(&mut self, app: AppId, block: AppBlock) {
        Arc::make_mut(&mut self.0[part(app)]).insert(app, Arc::new(block));
    }

    pub(super) fn remove(&mut self, app: AppId) {
        Arc::make_mut(&mut self.0[part(app)]).remove(&app);
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
