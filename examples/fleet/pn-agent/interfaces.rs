//! Interfaces of the node's containers, as `pn start --netns` asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pn_core::{ApplyError, Change, ContainerId, ErrorKind, NodeId};
use pn_fleet::interface::{self, Interface, Progress};
use pn_overlay::{AgentHandle, AgentStatus};
use pn_store::{Registry, RegistryError, StoreError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::data_plane::DataPlane;

/// How long a container may take to be in an applied plan.
const PATIENCE: Duration = Duration::from_secs(15);

/// The interfaces of a node.
pub(crate) struct Interfaces {
    pub(crate) registry: Registry,
    pub(crate) node: NodeId,
    pub(crate) data_plane: DataPlane,
    /// Who makes the node what its plans say.
    pub(crate) agent: AgentHandle,
}

impl Interfaces {
    /// Makes the interfaces that are wanted, now and from now on.
    pub(crate) async fn run(self) {
        let mut made = BTreeSet::new();
        loop {
            if let Err(error) = self.follow(&mut made).await {
                debug!(%error, "interfaces are followed anew");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }

    async fn follow(&self, made: &mut BTreeSet<ContainerId>) -> Result<(), StoreError> {
        let store = &**self.registry.store();
        let (revision, mut wanted) = interface::list(store, self.node).await?;
        let mut changes = interface::watch(store, self.node, revision.next()).await?;
        loop {
            let mut tasks = JoinSet::new();
            for (container, interface) in wanted.iter().filter(|(container, _)| !made.contains(*container)) {
                let (container, interface) = (*container, interface.clone());
                let (registry, data_plane, applied) =
                    (self.registry.clone(), self.data_plane.clone(), self.agent.subscribe());
                let node = self.node;
                tasks.spawn(async move {
                    make(&registry, node, &data_plane, applied, container, &interface)
                        .await
                        .map(|is_made| (container, is_made))
                });
            }
            while let Some(task) = tasks.join_next().await {
                if let Ok(task) = task
                    && let (container, true) = task?
                {
                    made.insert(container);
                }
            }
            self.let_go(made, &wanted).await;
            match timeout(EVERY, changes.next()).await {
                Ok(changed) => {
                    changed?;
                    wanted = interface::list(store, self.node).await?.1;
                }
                Err(_) => continue,
            }
        }
    }

    /// Lets go of the namespaces of containers that are gone: neither wanted nor in the plan that was applied. That they are not
    /// recorded any more is not enough, for that may be a mistake, and is held then (L3).
    async fn let_go(&self, made: &mut BTreeSet<ContainerId>, wanted: &BTreeMap<ContainerId, Interface>) {
        let Some(plan) = self.agent.realised().filter(|_| !self.agent.status().is_pending) else { return };
        let mut gone: BTreeSet<ContainerId> = made.iter().filter(|id| !wanted.contains_key(*id)).copied().collect();
        for network in plan.networks.values() {
            for endpoint in &network.endpoints {
                gone.remove(&endpoint.container);
            }
        }
        for container in gone {
            match self.data_plane.detach(container).await {
                Ok(()) => drop(made.remove(&container)),
                Err(error) => debug!(%container, error = pn_examples::chain(&error), "its namespace is kept"),
            }
        }
    }
}

/// How often it is looked for containers that are gone.
const EVERY: Duration = Duration::from_secs(1);

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
