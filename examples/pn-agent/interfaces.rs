//! Interfaces of the node's containers, as `pn start --netns` asks for them.

use std::collections::BTreeMap;
use std::time::Duration;

use pn_core::{ApplyError, Change, ContainerId, ErrorKind, NodeId};
use pn_examples::interface::{self, Interface, Progress};
use pn_overlay::AgentStatus;
use pn_store::{Registry, RegistryError, StoreError};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::data_plane::DataPlane;

/// How long a container may take to be in an applied plan.
const PATIENCE: Duration = Duration::from_secs(15);

/// Makes the interfaces that are wanted, now and from now on.
pub(crate) async fn run(
    registry: Registry,
    node: NodeId,
    data_plane: DataPlane,
    applied: watch::Receiver<AgentStatus>,
) {
    let mut made = BTreeMap::new();
    loop {
        if let Err(error) = follow(&registry, node, &data_plane, &applied, &mut made).await {
            debug!(%error, "interfaces are followed anew");
            sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn follow(
    registry: &Registry,
    node: NodeId,
    data_plane: &DataPlane,
    applied: &watch::Receiver<AgentStatus>,
    made: &mut BTreeMap<ContainerId, Interface>,
) -> Result<(), StoreError> {
    let store = &**registry.store();
    let (revision, mut wanted) = interface::list(store, node).await?;
    let mut changes = interface::watch(store, node, revision.next()).await?;
    loop {
        made.retain(|container, _| wanted.contains_key(container));
        let new: Vec<_> =
            wanted.iter().filter(|(id, _)| !made.contains_key(*id)).map(|(id, it)| (*id, it.clone())).collect();
        let tasks = new.into_iter().map(|(container, interface)| {
            let (registry, data_plane, applied) = (registry.clone(), data_plane.clone(), applied.clone());
            tokio::spawn(async move {
                let is_made = make(&registry, node, &data_plane, applied, container, &interface).await;
                (container, interface, is_made)
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            if let Ok((container, interface, is_made)) = task.await
                && is_made?
            {
                made.insert(container, interface);
            }
        }
        changes.next().await?;
        wanted = interface::list(store, node).await?.1;
    }
}

/// Makes one interface, and its container ready; `false` where there is nothing to make any more.
async fn make(
    registry: &Registry,
    node: NodeId,
    data_plane: &DataPlane,
    mut applied: watch::Receiver<AgentStatus>,
    container: ContainerId,
    interface: &Interface,
) -> Result<bool, StoreError> {
    let store = &**registry.store();
    match &interface.progress {
        Progress::Failed(_) => return Ok(false),
        Progress::Wanted | Progress::Ready { .. } => (),
    }
    let attach = async {
        loop {
            applied.mark_unchanged();
            match data_plane.attach(container, &interface.netns).await {
                // It is not in the applied plan yet, or not any more.
                Err(error) if error.kind() == ErrorKind::NotFound && interface.netns.exists() => (),
                result => return result.map_err(|error| pn_examples::chain(&error)),
            }
            if applied.changed().await.is_err() {
                return Err("the agent is stopping".to_owned());
            }
        }
    };
    let attached = timeout(PATIENCE, attach).await.unwrap_or_else(|_| Err("the container is in no plan".to_owned()));
    if let Err(why) = attached {
        warn!(%container, %why, "no interface");
        if registry.project_of_container(container).await.is_err() {
            interface::forget(store, node, container).await?;
        } else if interface.progress == Progress::Wanted {
            interface::report(store, node, container, interface, Progress::Failed(why)).await?;
        }
        return Ok(false);
    }
    info!(%container, netns = %interface.netns.display(), "interface made");
    if interface.progress == Progress::Wanted {
        let progress = match registry.apply(Change::Ready(container)).await {
            Ok(applied) => Progress::Ready { revision: applied.revision().get() },
            Err(RegistryError::Refused(ApplyError::UnknownContainer { .. })) => {
                interface::forget(store, node, container).await?;
                return Ok(false);
            }
            Err(RegistryError::Store(error)) => return Err(error),
            Err(error) => Progress::Failed(pn_examples::chain(&error)),
        };
        interface::report(store, node, container, interface, progress).await?;
    }
    Ok(true)
}
