//! The names that are published at the moment.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use async_trait::async_trait;
use fastrand::Rng;
use pn_core::{
    Action, BackendError, DnsBackend, Generation, NetworkId, Report, Resolver, Stage, Transport, ZonePlan, ZoneSet,
};

use crate::answer::{Verdict, View, respond};
use crate::counts::{Count, Counters, Counts, Drop};
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
    freshness: AtomicU8,
    counters: Counters,
}

/// Whether what is published still follows its source (D10).
///
/// Whoever drives the names, and has a clock, says so: when the source was heard last is no matter of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Freshness {
    /// It does.
    #[default]
    Current,
    /// The source has not been heard for some time. The last state is answered, and counted as stale.
    Stale,
    /// The source has not been heard for so long that the last state is worth nothing: SERVFAIL.
    Expired,
}

impl Freshness {
    /// How long a source is silent before what it said is stale, where nothing else is said.
    pub const STALE_AFTER: Duration = Duration::from_secs(30);

    /// How long a source is silent before what it said is expired, where nothing else is said.
    pub const EXPIRED_AFTER: Duration = Duration::from_secs(24 * 3600);

    /// Judges a silence by when it is too long.
    #[must_use]
    pub fn of_silence(silence: Duration, stale_after: Duration, expired_after: Duration) -> Self {
        match () {
            () if silence >= expired_after => Self::Expired,
            () if silence >= stale_after => Self::Stale,
            () => Self::Current,
        }
    }
}

/// Zones of one generation.
#[derive(Debug)]
pub(crate) struct Published {
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
        let (publishing, seed) = (Mutex::new(()), AtomicU64::new(seed));
        Self { published, publishing, seed, freshness: AtomicU8::new(0), counters: Counters::default() }
    }

    /// Says whether what is published still follows its source.
    pub fn set_freshness(&self, freshness: Freshness) {
        let before = self.freshness.swap(freshness as u8, Ordering::Relaxed);
        if before != freshness as u8 {
            tracing::info!(?freshness, generation = %self.generation(), "freshness of names");
        }
    }

    /// Returns whether what is published still follows its source.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        match self.freshness.load(Ordering::Relaxed) {
            0 => Freshness::Current,
            1 => Freshness::Stale,
            _ => Freshness::Expired,
        }
    }

    /// Returns what became of the queries that were resolved here; servers count their own.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// Returns what is published, to answer some queries from.
    pub(crate) fn read(&self) -> Guard<Arc<Published>> {
        self.published.load()
    }

    /// Returns a seed that nobody else gets.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.fetch_add(1, Ordering::Relaxed)
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
                    let (plan, serial) = (Arc::clone(plan), set.serial());
                    Arc::new(match before {
                        Some(before) => before.succeeded_by(plan, serial),
                        None => Zone::new(plan, serial),
                    })
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
        let (published, freshness) = (self.read(), self.freshness());
        let (mut rng, mut reply) = (Rng::with_seed(self.seed()), Vec::new());
        if respond(&published.view(network, freshness), transport, query, &mut rng, &mut reply) == Verdict::Silence {
            self.counters.add(Count::Dropped(Drop::NoQuery));
            return None;
        }
        self.counters.add_reply(transport, &reply);
        if freshness != Freshness::Current {
            self.counters.add(Count::Stale(transport));
        }
        Some(reply)
    }
}

impl Published {
    /// Returns what is seen from inside a network.
    pub(crate) fn view(&self, network: NetworkId, freshness: Freshness) -> View<'_> {
        let zone = self.zones.get(&network).map(|zone| &**zone);
        View { zone, is_expired: freshness == Freshness::Expired, ..View::default() }
    }
}

/// Returns whether two plans say the same, in no time where they are one.
fn is_same(a: &Arc<ZonePlan>, b: &Arc<ZonePlan>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

#[cfg(test)]
mod tests;
