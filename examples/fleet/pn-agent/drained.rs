//! The end of containers that were stopped: when they have drained, they are removed.

use std::time::Duration;

use pn_core::{ApplyError, NetworkPlan, NodePlan};
use pn_fleet::interface;
use pn_overlay::AgentHandle;
use pn_store::{Registry, RegistryError};
use tokio::time::sleep;
use tracing::{debug, info};

/// How often it is looked for them.
const EVERY: Duration = Duration::from_secs(1);

/// Removes the node's containers that have drained, now and from now on.
pub(crate) async fn run(registry: Registry, agent: AgentHandle) {
    loop {
        sleep(EVERY).await;
        let Some(plan) = agent.realised() else { continue };
        for network in plan.networks.values() {
            if let Err(error) = remove(&registry, &plan, network).await {
                debug!(network = %network.id, %error, "they are removed later");
            }
        }
    }
}

/// Removes the node's containers of one network that have drained, and forgets their interfaces.
async fn remove(registry: &Registry, plan: &NodePlan, network: &NetworkPlan) -> Result<(), RegistryError> {
    // What has a way and no name drains or starts.
    let ours = network.endpoints.iter().filter(|endpoint| endpoint.node == plan.node);
    let unnamed: Vec<_> = ours.filter(|endpoint| !network.is_named(endpoint)).collect();
    if unnamed.is_empty() || registry.remove_drained(network.project, plan.node).await? == 0 {
        return Ok(());
    }
    for endpoint in unnamed {
        let container = endpoint.container;
        let found = registry.project_of_container(container).await;
        if let Err(RegistryError::Refused(ApplyError::UnknownContainer { .. })) = found {
            interface::forget(&**registry.store(), plan.node, container).await?;
            info!(%container, "drained and removed");
        }
    }
    Ok(())
}
