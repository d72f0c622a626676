//! What containers' namespaces hold, so that a change elsewhere does not have to read them all again.
//!
//! Only they are remembered: what isolates is in the namespaces of networks and of the tunnel, which are read each time. What is
//! remembered was read, or was made without a failure, and is believed for a while only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel::{Kernel, Namespace, Place};

/// What was read of containers' namespaces, or made of them.
#[derive(Debug)]
pub(crate) struct Memory {
    /// By the namespace's number: another in the same place is not the same.
    places: BTreeMap<Place, (u64, Namespace)>,
    /// When everything was read last.
    read_at: Option<Instant>,
    /// How long it is believed.
    believed: Duration,
}

impl Memory {
    pub(crate) const fn new(believed: Duration) -> Self {
        Self { places: BTreeMap::new(), read_at: None, believed }
    }

    /// Returns whether what was read is recent enough to be believed.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.read_at.is_some_and(|read_at| now.saturating_duration_since(read_at) < self.believed)
    }

    /// Returns what a namespace holds, if it is known.
    pub(crate) fn recall(&self, place: Place, number: u64) -> Option<&Namespace> {
        self.places.get(&place).filter(|(known, _)| *known == number).map(|(_, namespace)| namespace)
    }

    /// Takes what was read, of every namespace.
    pub(crate) fn read(&mut self, numbers: &BTreeMap<Place, u64>, is: &Kernel, now: Instant) {
        self.take(numbers, is);
        self.read_at = Some(now);
    }

    /// Takes what was made, without a failure. Where nothing is ours, a namespace is empty to us.
    pub(crate) fn made(&mut self, numbers: &BTreeMap<Place, u64>, should: &Kernel) {
        self.take(numbers, should);
    }

    /// Forgets everything: what is there is not certain.
    pub(crate) fn forget(&mut self) {
        self.places.clear();
        self.read_at = None;
    }

    fn take(&mut self, numbers: &BTreeMap<Place, u64>, kernel: &Kernel) {
        let containers = numbers.iter().filter(|(place, _)| matches!(place, Place::Container(_)));
        let known = |place| kernel.places.get(place).cloned().unwrap_or_default();
        self.places = containers.map(|(place, number)| (*place, (*number, known(place)))).collect();
    }
}
