//! The end of containers that were stopped: when they have drained, they are removed.

use std::time::Duration;

use pn_core::{Change, ContainerId, NodePlan};
use pn_examples::interface;
use pn_store::{Clock as _, Registry, RegistryError, SystemClock};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info};

/// How often it is looked for them.
const EVERY: Duration = Duration::from_secs(1);

/// Removes the node's containers that have drained, now and from now on.
pub(crate) async fn run(registry: Registry, plans: watch::Receiver<Option<NodePlan>>) {
    loop {
        sleep(EVERY).await;
        let Some(plan) = plans.borrow().clone() else { continue };
        for container in unnamed(&plan) {
            if let Err(error) = remove(&registry, &plan, container).await {
                debug!(%container, %error, "it is removed later");
            }
        }
    }
}

/// Lists the node's containers that have a way and no name: they drain or start.
fn unnamed(plan: &NodePlan) -> Vec<ContainerId> {
    let mut unnamed = Vec::new();
    for network in plan.networks.values() {
        let ours = network.endpoints.iter().filter(|endpoint| endpoint.node == plan.node);
        unnamed.extend(ours.filter(|endpoint| !network.is_named(endpoint)).map(|endpoint| endpoint.container));
    }
    unnamed
}

async fn remove(registry: &Registry, plan: &NodePlan, container: ContainerId) -> Result<(), RegistryError> {
    let project = registry.project_of_container(container).await?;
    let state = registry.project(project).await?;
    let Some(network) = state.network_of_container(container) else { return Ok(()) };
    if state.drained(network, SystemClock.now()).any(|drained| drained == container) {
        registry.apply(Change::Remove(container)).await?;
        interface::forget(&**registry.store(), plan.node, container).await?;
        info!(%container, "drained and removed");
    }
    Ok(())
}
