//! What the node says about itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pn_core::{Generation, Timestamp};
use pn_dns::{Freshness, Names};
use pn_overlay::{AgentHandle, AgentStatus};
use pn_store::{Held, NodeStatus, Reporter};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::data_plane::DataPlane;

/// How long nothing is said where nothing happens.
const EVERY: Duration = Duration::from_secs(1);

/// How old counts may be: a kernel is asked for those of each network by itself, on the thread that applies plans.
const COUNTED_EVERY: Duration = Duration::from_secs(10);

/// Tells the names how long nothing was heard, so that they are not answered for ever (D10).
pub(crate) async fn age(names: Arc<Names>, mut agent: watch::Receiver<AgentStatus>) {
    // By a clock that nobody sets.
    let mut lost: Option<(Timestamp, Instant)> = None;
    loop {
        let since = agent.borrow_and_update().stale.as_ref().map(|stale| stale.since);
        lost = since.map(|since| lost.filter(|(known, _)| *known == since).unwrap_or_else(|| (since, Instant::now())));
        let silence = lost.map_or(Duration::ZERO, |(_, at)| at.elapsed());
        let (stale, expired) = (Freshness::STALE_AFTER, Freshness::EXPIRED_AFTER);
        names.set_freshness(Freshness::of_silence(silence, stale, expired));
        if let Ok(Err(_)) = timeout(EVERY, agent.changed()).await {
            return;
        }
    }
}

/// Logs what whoever runs the node wants to know at once.
pub(crate) async fn log(mut agent: watch::Receiver<AgentStatus>) {
    let mut before = agent.borrow_and_update().clone();
    while agent.changed().await.is_ok() {
        let now = agent.borrow_and_update().clone();
        match (&before.fenced, &now.fenced) {
            (None, Some(why)) => warn!(%why, "fenced: nothing is forwarded or answered"),
            (Some(_), None) => info!("not fenced any more"),
            _ => (),
        }
        match (&before.stale, &now.stale) {
            (None, Some(stale)) => warn!(why = %stale.why, "the store is lost; what is there goes on"),
            (Some(_), None) => info!("the store is back"),
            _ => (),
        }
        for (network, held) in now.held.iter().filter(|(network, _)| !before.held.contains_key(network)) {
            warn!(%network, going = held.going, of = held.of, reason = %held.reason, "held until it is confirmed");
        }
        before = now;
    }
}

/// Reports whenever something changed, and every second.
pub(crate) async fn run(mut reporter: Reporter, agent: AgentHandle, data_plane: DataPlane) {
    let mut changes = agent.subscribe();
    let mut counts = Counts::default();
    loop {
        let status = changes.borrow_and_update().clone();
        let plan = agent.realised();
        let dropped = counts.at(Instant::now(), || data_plane.dropped()).await;
        let node_status = node_status(&status, &data_plane, dropped);
        if let Err(error) = reporter.report(node_status, plan.as_ref()).await {
            debug!(%error, "the status is reported later");
        }
        if let Ok(Err(_)) = timeout(EVERY, changes.changed()).await {
            return;
        }
    }
}

/// What was counted last, and when.
#[derive(Debug, Default)]
struct Counts {
    counted: Option<(Instant, BTreeMap<String, u64>)>,
}

impl Counts {
    /// Returns what is counted, anew where the last time is too long ago.
    async fn at<F>(&mut self, now: Instant, count: impl FnOnce() -> F) -> BTreeMap<String, u64>
    where
        F: Future<Output = BTreeMap<String, u64>>,
    {
        match &self.counted {
            Some((at, counts)) if now.saturating_duration_since(*at) < COUNTED_EVERY => counts.clone(),
            _ => self.counted.insert((now, count().await)).1.clone(),
        }
    }
}

fn node_status(agent: &AgentStatus, data_plane: &DataPlane, dropped: BTreeMap<String, u64>) -> NodeStatus {
    let applied = agent.announced.unwrap_or(Generation::ZERO);
    let mut status = NodeStatus::new(applied, agent.backend, data_plane.encryption());
    status.apart = agent.apart.clone();
    let held = agent.held.iter().map(|(network, held)| {
        format!("{} of {} named containers of {network} would go ({})", held.going, held.of, held.reason)
    });
    let reason = held.collect::<Vec<_>>().join(", ");
    let generation = agent.held.values().map(|held| held.generation).max();
    status.held = generation.map(|generation| Held { generation, reason });
    status.stale_since = agent.stale.as_ref().map(|stale| stale.since);
    status.failures = agent.failures.iter().map(|(object, failure)| format!("{object}: {}", failure.message)).collect();
    status.counters = dropped;
    status.counters.insert("repairs".to_owned(), agent.repairs);
    status.limits = data_plane.limits();
    status
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_kernel_is_asked_for_counts_rarely() {
        let (start, asked, mut counts) = (Instant::now(), Cell::new(0), Counts::default());
        for (after, expected) in [(0, 1), (1, 1), (9, 1), (10, 2), (19, 2), (45, 3), (46, 3)] {
            let count = || {
                asked.set(asked.get() + 1);
                std::future::ready(BTreeMap::from([("forged_source".to_owned(), asked.get())]))
            };
            let counted = counts.at(start + Duration::from_secs(after), count).await;
            assert_eq!((counted["forged_source"], asked.get()), (expected, expected), "after {after} s");
        }
    }
}
