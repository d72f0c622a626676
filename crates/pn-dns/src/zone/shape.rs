//! The types that apps declare: many apps declare the same, and what finds a type by its label is shared by them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pn_core::{AppNames, ContainerType};

/// The first octets of a type's label in lower case, and its length: all there is to know of a short label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u128);

/// How many octets of a label a key holds.
const IN_KEY: usize = 15;

impl Key {
    pub(crate) fn new(label: &[u8]) -> Self {
        let mut octets = [0; IN_KEY + 1];
        let len = label.len().min(IN_KEY);
        octets[..len].copy_from_slice(&label[..len]);
        // At most 63.
        Self::of_longer(&octets, label.len() as u8)
    }

    /// Makes the key of a label from the octets that begin with it, and its length: without a branch for the length, which
    /// differs from one question to the next.
    #[inline]
    pub(crate) fn of_longer(octets: &[u8; IN_KEY + 1], len: u8) -> Self {
        let kept = (1 << (8 * u32::from(len).min(IN_KEY as u32))) - 1;
        let mut octets = lower_case(u128::from_le_bytes(*octets) & kept).to_le_bytes();
        octets[IN_KEY] = len;
        Self(u128::from_le_bytes(octets))
    }

    /// Returns where to look first, in a table of any length.
    #[inline]
    const fn hash(self) -> usize {
        let folded = (self.0 as u64 ^ ((self.0 >> 64) as u64).rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (folded >> 32) as usize
    }
}

/// Makes 16 octets lower case, all at once.
const fn lower_case(octets: u128) -> u128 {
    const EACH: u128 = u128::MAX / 0xff;
    // The highest bit of each octet tells whether it is at least `A`, and whether it is above `Z`.
    let low = octets & (0x7f * EACH);
    let (from_a, above_z) = (low + (0x80 - b'A' as u128) * EACH, low + (0x7f - b'Z' as u128) * EACH);
    octets | (from_a & !above_z & !octets & (0x80 * EACH)) >> 2
}

/// The types of an app.
#[derive(Debug)]
pub(crate) struct Shape {
    /// In the order of the plan.
    types: Box<[ContainerType]>,
    /// Keys and the positions they lead to; a power of two of places, of which at most two of three are taken.
    table: Box<[Option<(Key, u32)>]>,
}

impl Shape {
    fn new(names: &AppNames) -> Self {
        let types: Box<[ContainerType]> = names.types.iter().map(|of_type| of_type.container_type).collect();
        let mut table = vec![None; (types.len() * 3 / 2 + 1).next_power_of_two()];
        let mask = table.len() - 1;
        for (of_type, position) in types.iter().zip(0..) {
            let key = Key::new(of_type.as_str().as_bytes());
            let mut place = key.hash();
            while table[place & mask].is_some() {
                place = place.wrapping_add(1);
            }
            table[place & mask] = Some((key, position));
        }
        Self { types, table: table.into() }
    }

    /// Returns how many types there are.
    pub(super) fn len(&self) -> usize {
        self.types.len()
    }

    /// Returns the position of a type by its label, in any case.
    pub(super) fn position(&self, key: Key, label: &[u8]) -> Option<u32> {
        let (mask, mut place) = (self.table.len() - 1, key.hash());
        while let Some((found, position)) = self.table[place & mask] {
            let is_it = || {
                label.len() <= IN_KEY || self.types[position as usize].as_str().as_bytes().eq_ignore_ascii_case(label)
            };
            if found == key && is_it() {
                return Some(position);
            }
            place = place.wrapping_add(1);
        }
        None
    }

    fn is_of(&self, names: &AppNames) -> bool {
        self.types.iter().eq(names.types.iter().map(|of_type| &of_type.container_type))
    }
}

/// The shapes of a zone's apps and of those of the zones before it.
#[derive(Debug, Default)]
pub(super) struct Shapes(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By a hash of their types' keys.
    shapes: HashMap<u64, Vec<Weak<Shape>>>,
    /// How many there were when those that no app has any more were taken out.
    swept: usize,
}

impl Shapes {
    /// Returns how many shapes are kept, those that no app has any more among them.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shapes.values().map(Vec::len).sum()
    }

    /// Returns the shape of an app.
    pub(super) fn shape(&self, names: &AppNames) -> Arc<Shape> {
        let keys = names.types.iter().map(|of_type| Key::new(of_type.container_type.as_str().as_bytes()));
        let hash = keys.fold(0, |hash: u64, key| hash.rotate_left(5).wrapping_add(key.hash() as u64));
        // What panics here leaves nothing half done.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alike = known.shapes.entry(hash).or_default();
        if let Some(shape) = alike.iter().filter_map(Weak::upgrade).find(|shape| shape.is_of(names)) {
            return shape;
        }
        let shape = Arc::new(Shape::new(names));
        // One that went and comes back does not stand beside what it was.
        alike.retain(|shape| shape.strong_count() > 0);
        alike.push(Arc::downgrade(&shape));
        // As often as they become twice as many: what that costs each new one does not grow with them.
        if known.shapes.len() > 2 * known.swept + 16 {
            known.shapes.retain(|_, alike| {
                alike.retain(|shape| shape.strong_count() > 0);
                !alike.is_empty()
            });
            known.swept = known.shapes.len();
        }
        shape
    }
}
