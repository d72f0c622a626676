//! A data plane and a name server that only remember: for tests of what drives backends, and the simplest examples of them.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use pn_core::backend::{Observed, OverlayBackend};
use pn_core::{
    Action, BackendError, Capabilities, DnsBackend, Encryption, Generation, KeyScope, NodePlan, Report, ZoneSet,
};

use crate::reconcile;

/// A backend whose node is a value in memory.
#[derive(Debug, Default)]
pub struct MemoryOverlay(Mutex<(Generation, Observed)>);

impl MemoryOverlay {
    /// Makes a node with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes what is on the node behind everybody's back, as an administrator or a fault would.
    pub fn tamper(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).1);
    }
}

#[async_trait]
impl OverlayBackend for MemoryOverlay {
    fn capabilities(&self) -> Capabilities {
        let encryption = &[Encryption::WireGuard, Encryption::None];
        Capabilities::new("memory", encryption, &[KeyScope::Node, KeyScope::Container])
    }

    async fn apply(&self, plan: &NodePlan) -> Report {
        let mut node = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if plan.generation < node.0 {
            return Report::refused(plan.generation, BackendError::superseded(plan.generation, node.0));
        }
        let wanted = Observed::from(plan);
        let mut report = Report::new(plan.generation);
        for difference in reconcile::differences(&node.1, &wanted) {
            report.record(difference.object, Ok::<Action, _>(difference.action));
        }
        *node = (plan.generation, wanted);
        report
    }

    async fn observe(&self) -> Result<Observed, BackendError> {
        let node = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(node.1.clone())
    }
}

/// A name server whose answers are a value in memory.
#[derive(Debug, Default)]
pub struct MemoryNames(Mutex<Option<ZoneSet>>);

impl MemoryNames {
    /// Makes a name server that answers nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns what it answers.
    #[must_use]
    pub fn published(&self) -> ZoneSet {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }
}

#[async_trait]
impl DnsBackend for MemoryNames {
    async fn publish(&self, zones: &ZoneSet) -> Report {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |set: &ZoneSet| (set.generation, set.stage);
        if let Some(published) = published.as_ref().filter(|published| age(zones) < age(published)) {
            return Report::refused(zones.generation, BackendError::superseded(zones.generation, published.generation));
        }
        let before = published.replace(zones.clone()).unwrap_or_default().zones;
        let mut report = Report::new(zones.generation);
        for (network, zone) in &zones.zones {
            match before.get(network) {
                None => report.record(format_args!("zone {network}"), Ok(Action::Created)),
                Some(known) if known != zone => report.record(format_args!("zone {network}"), Ok(Action::Updated)),
                Some(_) => {}
            }
        }
        for network in before.keys().filter(|network| !zones.zones.contains_key(*network)) {
            report.record(format_args!("zone {network}"), Ok(Action::Removed));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn obeys_the_laws() {
        conformance::overlay(|_| async { MemoryOverlay::new() }).await;
    }
}
