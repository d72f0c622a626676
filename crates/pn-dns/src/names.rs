//! The names that are published at the moment.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use fastrand::Rng;
use pn_core::{
    Action, BackendError, DnsBackend, Generation, NetworkId, Report, Resolver, Stage, Transport, ZonePlan, ZoneSet,
};

use crate::answer::{View, answer};
use crate::zone::Zone;

/// The zones of every network, replaced as a whole by each `publish` and read without a lock by each query.
///
/// When `publish` returns, every query that starts later sees the change. The serial number of a zone changes only when
/// the zone does: it is that of the set that last changed it.
///
/// A network that is not published is not known: what is asked from inside it gets SERVFAIL.
#[derive(Debug)]
pub struct Names {
    published: ArcSwap<Published>,
    /// Held while a set is compared with the published one and put in its place.
    publishing: Mutex<()>,
    /// Seed of the next answer's randomness.
    seed: AtomicU64,
}

/// Zones of one generation.
#[derive(Debug)]
struct Published {
    generation: Generation,
    stage: Stage,
    zones: BTreeMap<NetworkId, Arc<Zone>>,
}

impl Names {
    /// Makes names with nothing published. The seed decides the order of addresses in answers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Before any set, so that the first meanwhile-set is taken, too.
        let (generation, stage) = (Generation::ZERO, Stage::Meanwhile);
        let published = ArcSwap::from_pointee(Published { generation, stage, zones: BTreeMap::new() });
        Self { published, publishing: Mutex::new(()), seed: AtomicU64::new(seed) }
    }

    /// Returns the generation that is published.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.published.load().generation
    }

    /// Returns the zone of a network, if it is published.
    #[must_use]
    pub fn zone(&self, network: NetworkId) -> Option<Arc<Zone>> {
        self.published.load().zones.get(&network).cloned()
    }

    /// Returns what is published.
    #[must_use]
    pub fn published(&self) -> ZoneSet {
        let published = self.published.load();
        let zones = published.zones.iter().map(|(network, zone)| (*network, Arc::clone(zone.plan())));
        ZoneSet { generation: published.generation, stage: published.stage, zones: zones.collect() }
    }

    fn replace(&self, set: &ZoneSet) -> Report {
        // The lock guards no data, so a panic elsewhere leaves nothing half done.
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.published.load();
        let generation = set.generation;
        if (generation, set.stage) < (old.generation, old.stage) {
            return Report::refused(generation, BackendError::superseded(generation, old.generation));
        }
        let mut report = Report::new(generation);
        let mut zones = BTreeMap::new();
        for (network, plan) in &set.zones {
            let zone = match old.zones.get(network) {
                Some(zone) if is_same(zone.plan(), plan) => Arc::clone(zone),
                before => {
                    let action = if before.is_some() { Action::Updated } else { Action::Created };
                    report.record(format_args!("zone {network}"), Ok(action));
                    Arc::new(Zone::new(Arc::clone(plan), set.serial()))
                }
            };
            zones.insert(*network, zone);
        }
        for network in old.zones.keys().filter(|network| !zones.contains_key(*network)) {
            report.record(format_args!("zone {network}"), Ok(Action::Removed));
        }
        self.published.store(Arc::new(Published { generation, stage: set.stage, zones }));
        tracing::debug!(%generation, changes = report.outcomes.len(), "published names");
        report
    }
}

#[async_trait]
impl DnsBackend for Names {
    async fn publish(&self, zones: &ZoneSet) -> Report {
        self.replace(zones)
    }
}

impl Resolver for Names {
    fn resolve(&self, network: NetworkId, transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
        let published = self.published.load();
        let view = published.zones.get(&network).map_or_else(View::default, |zone| View::of(zone));
        let mut rng = Rng::with_seed(self.seed.fetch_add(1, Ordering::Relaxed));
        answer(view, transport, query, &mut rng)
    }
}

/// Returns whether two plans say the same, in no time where they are one.
fn is_same(a: &Arc<ZonePlan>, b: &Arc<ZonePlan>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

#[cfg(test)]
mod tests;
