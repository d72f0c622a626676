//! What an agent needs of a data plane.

use core::time::Duration;
use std::sync::Arc;

use async_trait::async_trait;
use pn_core::backend::Observed;
use pn_core::{DnsBackend, Followed, OverlayBackend, PlanSource, Report, ZoneSet};
use tokio::sync::mpsc;

use super::{Host, plans};
use crate::MemoryNames;
use crate::agent::{Agent, AgentOptions, Leave, Phase};

/// How long an agent may take for one plan.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets an agent lead a data plane through every plan, another agent take over in the middle, and leave. At every moment, each
/// name that is answered has its way.
///
/// # Panics
/// If a law is broken, or a plan is not there after a minute; the message says which. Outside a tokio runtime with time
/// enabled.
pub async fn driven<B: OverlayBackend + 'static, F: Future<Output = B>>(make: impl FnOnce(Host) -> F) {
    let (host, plans) = plans();
    let overlay = Arc::new(make(host.clone()).await);
    let names =
        Arc::new(Witness { names: MemoryNames::new(), overlay: Arc::clone(&overlay) as Arc<dyn OverlayBackend> });
    let begin = || {
        let (words, source) = mpsc::unbounded_channel();
        let servers: Vec<Arc<dyn DnsBackend>> = vec![Arc::clone(&names) as _];
        let driven = Arc::clone(&overlay) as Arc<dyn OverlayBackend>;
        let mut options = AgentOptions::new(1);
        options.drain = Duration::ZERO;
        let (agent, handle) = Agent::new(host.node.id, driven, servers, options);
        (words, handle, tokio::spawn(agent.run(Words(source))))
    };
    let (mut words, mut handle, mut running) = begin();
    for (number, plan) in plans.iter().enumerate() {
        if number == plans.len() / 2 {
            handle.shutdown(Leave::Running);
            running.await.expect("the agent ends by itself");
            (words, handle, running) = begin();
        }
        let generation = plan.generation;
        drop(words.send(Followed::Plan(plan.clone())));
        // These plans take containers away without stopping them first.
        drop(words.send(Followed::Confirmed(generation)));
        let mut status = handle.subscribe();
        let settled = status.wait_for(|status| status.is_settled() && status.applied == Some(generation));
        let is_settled = matches!(tokio::time::timeout(PATIENCE, settled).await, Ok(Ok(_)));
        assert!(is_settled, "generation {generation} is not there: {:?}", handle.status());
        let observed = overlay.observe().await.expect("a backend that applied can observe");
        assert_eq!(observed, Observed::from(plan), "an agent led to something else than generation {generation}");
        assert_eq!(
            names.names.published(),
            plan.zones(),
            "an agent published something else than generation {generation}"
        );
    }
    handle.shutdown(Leave::Nothing);
    let last = running.await.expect("the agent ends by itself");
    assert_eq!(last.phase, Phase::Stopped);
    assert!(last.failures.is_empty(), "the node was not taken down: {:?}", last.failures);
    let observed = overlay.observe().await.expect("a backend that was taken down can observe");
    assert_eq!(observed, Observed::default(), "something is left of the node");
}

/// A name server that looks whether what it is told is true.
#[derive(Debug)]
struct Witness {
    names: MemoryNames,
    overlay: Arc<dyn OverlayBackend>,
}

#[async_trait]
impl DnsBackend for Witness {
    async fn publish(&self, zones: &ZoneSet) -> Report {
        let observed = self.overlay.observe().await.expect("a backend that is driven can observe");
        for (id, zone) in &zones.zones {
            for (_, address) in zone.types().flat_map(|of_type| of_type.containers.iter()) {
                let has_way = observed.networks.get(id).is_some_and(|network| network.endpoints.contains_key(address));
                assert!(has_way, "{address} of network {id} has a name and no way in generation {}", zones.generation);
            }
        }
        self.names.publish(zones).await
    }
}

#[derive(Debug)]
struct Words(mpsc::UnboundedReceiver<Followed>);

#[async_trait]
impl PlanSource for Words {
    async fn next(&mut self) -> Followed {
        self.0.recv().await.unwrap_or(Followed::Closed)
    }
}

#[cfg(test)]
mod tests {
    use crate::{MemoryOverlay, conformance};

    #[tokio::test(start_paused = true)]
    async fn memory_can_be_driven() {
        conformance::driven(|_| async { MemoryOverlay::new() }).await;
    }
}
