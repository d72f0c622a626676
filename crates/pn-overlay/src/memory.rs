//! A data plane that only remembers: for tests of what drives backends, and the simplest example of one.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use pn_core::backend::{Observed, OverlayBackend};
use pn_core::{Action, BackendError, Capabilities, Encryption, Generation, KeyScope, NodePlan, Report};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn obeys_the_laws() {
        conformance::overlay(|_| async { MemoryOverlay::new() }).await;
    }
}
