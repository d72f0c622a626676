//! Interfaces of the node's containers, as `pn start --netns` asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pn_core::{ApplyError, BackendError, Change, ContainerId, ErrorKind, NodeId};
use pn_fleet::interface::{self, Interface, Progress};
use pn_overlay::AgentHandle;
use pn_store::{Registry, RegistryError, StoreError};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::applied::{Applied, Way};
use crate::data_plane::DataPlane;

/// How long a container may take to be in an applied plan.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often it is looked for containers that are gone.
const EVERY: Duration = Duration::from_secs(1);

/// The interfaces of a node.
#[derive(Clone)]
pub(crate) struct Interfaces {
    pub(crate) registry: Registry,
    pub(crate) node: NodeId,
    pub(crate) data_plane: DataPlane,
    /// Who makes the node what its plans say.
    pub(crate) agent: AgentHandle,
    /// What came of the last of them.
    pub(crate) applied: watch::Receiver<Option<Applied>>,
}

/// What is known of containers.
#[derive(Debug, Default)]
struct Known {
    /// Those whose interfaces are as they are wanted.
    made: BTreeSet<ContainerId>,
    /// Those whose namespaces the data plane may keep.
    kept: BTreeSet<ContainerId>,
}

impl Interfaces {
    /// Makes the interfaces that are wanted, now and from now on.
    pub(crate) async fn run(self) {
        let mut known = Known::default();
        // An earlier agent may have left some whose containers are gone by now.
        loop {
            match self.data_plane.attached().await {
                Ok(kept) => break known.kept = kept,
                Err(error) => debug!(error = pn_examples::chain(&error), "what is kept is looked for again"),
            }
            sleep(EVERY).await;
        }
        loop {
            if let Err(error) = self.follow(&mut known).await {
                debug!(%error, "interfaces are followed anew");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }

    async fn follow(&self, known: &mut Known) -> Result<(), StoreError> {
        let store = &**self.registry.store();
        let (revision, mut wanted) = interface::list(store, self.node).await?;
        let mut changes = interface::watch(store, self.node, revision.next()).await?;
        let mut applied = self.applied.clone();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One that takes its time keeps no other waiting.
        let (mut tasks, mut busy) = (JoinSet::new(), BTreeMap::<ContainerId, AbortHandle>::new());
        loop {
            tokio::select! {
                Some(joined) = tasks.join_next_with_id() => {
                    let (task, made) = match joined {
                        Ok((task, made)) => (task, made?),
                        Err(error) => (error.id(), None),
                    };
                    busy.retain(|_, running| running.id() != task);
                    known.made.extend(made);
                    continue;
                }
                changed = changes.next() => {
                    changed?;
                    wanted = interface::list(store, self.node).await?.1;
                }
                Ok(()) = applied.changed() => {
                    if known.kept.iter().all(|container| wanted.contains_key(container)) {
                        continue;
                    }
                }
                // Somebody may have deleted an interface, and a plan taken it away and its container come back.
                _ = ticks.tick() => match self.data_plane.attached().await {
                    Ok(attached) => known.made.retain(|container| attached.contains(container)),
                    Err(error) => debug!(error = pn_examples::chain(&error), "what has interfaces is looked for again"),
                }
            }
            busy.iter().filter(|(container, _)| !wanted.contains_key(*container)).for_each(|(_, task)| task.abort());
            for (container, interface) in &wanted {
                if known.made.contains(container) || busy.contains_key(container) {
                    continue;
                }
                if let Progress::Failed(_) = interface.progress {
                    continue;
                }
                known.kept.insert(*container);
                let (this, container, interface) = (self.clone(), *container, interface.clone());
                let task = tasks.spawn(async move { this.make(container, &interface).await });
                busy.insert(container, task);
            }
            known.made.retain(|container| wanted.contains_key(container));
            self.let_go(&mut known.kept, &wanted).await?;
        }
    }

    /// Lets go of the namespaces of containers that are gone: neither wanted nor in the plan that was applied. That they are not
    /// recorded any more is not enough, for that may be a mistake, and is held then (L3).
    async fn let_go(
        &self,
        kept: &mut BTreeSet<ContainerId>,
        wanted: &BTreeMap<ContainerId, Interface>,
    ) -> Result<(), StoreError> {
        let Some(applied) = self.applied.borrow().clone() else { return Ok(()) };
        for container in applied.without(kept) {
            match wanted.get(&container).map(|interface| &interface.progress) {
                None => match self.data_plane.detach(container).await {
                    Ok(()) => drop(kept.remove(&container)),
                    Err(error) => debug!(%container, error = pn_examples::chain(&error), "its namespace is kept"),
                },
                // It failed: nobody else takes its interface back.
                Some(Progress::Ready { .. }) if self.is_unknown(container).await => {
                    interface::forget(&**self.registry.store(), self.node, container).await?;
                }
                Some(_) => (),
            }
        }
        Ok(())
    }

    /// Makes one interface, and its container ready when packets reach it. Returns the container, or nothing where there is
    /// nothing to make any more.
    async fn make(&self, container: ContainerId, interface: &Interface) -> Result<Option<ContainerId>, StoreError> {
        let (store, node) = (&**self.registry.store(), self.node);
        if let Err(why) = self.attach(container, interface).await {
            warn!(%container, %why, "no interface");
            if self.is_unknown(container).await {
                interface::forget(store, node, container).await?;
            } else if interface.progress == Progress::Wanted {
                interface::report(store, node, container, interface, Progress::Failed(why)).await?;
            }
            return Ok(None);
        }
        if interface.progress == Progress::Wanted {
            if !self.is_reached(container).await {
                interface::forget(store, node, container).await?;
                return Ok(None);
            }
            let progress = match self.registry.apply(Change::Ready(container)).await {
                Ok(applied) => Progress::Ready { revision: applied.revision().get() },
                Err(RegistryError::Refused(ApplyError::UnknownContainer { .. })) => {
                    interface::forget(store, node, container).await?;
                    return Ok(None);
                }
                Err(RegistryError::Store(error)) => return Err(error),
                Err(error) => Progress::Failed(pn_examples::chain(&error)),
            };
            interface::report(store, node, container, interface, progress).await?;
        }
        info!(%container, netns = %interface.netns.display(), "interface made");
        Ok(Some(container))
    }

    /// Gives a container's namespace to the data plane, as soon as it takes it.
    async fn attach(&self, container: ContainerId, interface: &Interface) -> Result<(), String> {
        let mut status = self.agent.subscribe();
        let mut why = "the container is in no plan".to_owned();
        let attach = async {
            loop {
                status.mark_unchanged();
                match self.data_plane.attach(container, &interface.netns).await {
                    // It is not in the applied plan yet, or not any more.
                    Err(error) if error.kind() == ErrorKind::NotFound && interface.netns.exists() => (),
                    // It may be that of a container that is going.
                    Err(error) if error.kind() == ErrorKind::Conflict => why = pn_examples::chain(&error),
                    result => return result.map_err(|error: BackendError| pn_examples::chain(&error)),
                }
                if let Ok(Err(_)) = timeout(EVERY, status.changed()).await {
                    return Err("the agent is stopping".to_owned());
                }
                // What goes with a plan goes right after it.
                sleep(Duration::from_millis(10)).await;
            }
        };
        let attached = timeout(PATIENCE, attach).await;
        attached.unwrap_or(Err(why))
    }

    /// Waits until packets reach a container whose namespace the data plane has; `false` where there is no such container. What
    /// is in the way is logged, and may go.
    async fn is_reached(&self, container: ContainerId) -> bool {
        let mut applied = self.applied.clone();
        let mut told = None;
        loop {
            let way = applied.borrow_and_update().as_ref().map_or(Way::Unplanned, |applied| applied.way(container));
            let is_planned = way != Way::Unplanned;
            match way {
                Way::There => return true,
                Way::Unplanned => (),
                // It may have failed because the namespace was not there yet.
                Way::Failed(why) if told.is_none() => {
                    told = Some(String::new());
                    debug!(%container, %why, "tried again");
                    self.agent.retry();
                }
                Way::Failed(why) => {
                    if told.as_ref() != Some(&why) {
                        warn!(%container, %why, "nothing reaches it, so that it is not made ready");
                        told = Some(why);
                    }
                }
            }
            match timeout(PATIENCE, applied.changed()).await {
                Ok(Err(_)) => return std::future::pending().await,
                Ok(Ok(())) => (),
                Err(_) if !is_planned && self.is_unknown(container).await => return false,
                Err(_) => (),
            }
        }
    }

    /// Returns whether the container is certain not to be recorded.
    async fn is_unknown(&self, container: ContainerId) -> bool {
        let found = self.registry.project_of_container(container).await;
        matches!(found, Err(RegistryError::Refused(ApplyError::UnknownContainer { .. })))
    }
}
