//! What came of the plan that was applied last, container by container.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use pn_core::backend::{Observed, OverlayBackend};
use pn_core::{BackendError, Capabilities, ContainerId, Endpoint, NetworkId, NodePlan, Report};
use tokio::sync::watch;

/// A data plane that tells what came of each plan.
#[derive(Debug)]
pub(crate) struct Told {
    overlay: Arc<dyn OverlayBackend>,
    applied: watch::Sender<Option<Applied>>,
}

/// A plan that was applied, and what of it failed.
#[derive(Debug, Clone)]
pub(crate) struct Applied {
    plan: NodePlan,
    failures: Vec<BackendError>,
}

/// Whether packets reach a container of this node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The plan does not have it.
    Unplanned,
    /// They do not, and why.
    Failed(String),
    /// They do.
    There,
}

impl Told {
    pub(crate) fn new(overlay: Arc<dyn OverlayBackend>) -> (Self, watch::Receiver<Option<Applied>>) {
        let (applied, told) = watch::channel(None);
        (Self { overlay, applied }, told)
    }
}

#[async_trait]
impl OverlayBackend for Told {
    fn capabilities(&self) -> Capabilities {
        self.overlay.capabilities()
    }

    async fn apply(&self, plan: &NodePlan) -> Report {
        let report = self.overlay.apply(plan).await;
        self.applied.send_replace(Some(Applied { plan: plan.clone(), failures: report.failures().cloned().collect() }));
        report
    }

    async fn observe(&self) -> Result<Observed, BackendError> {
        self.overlay.observe().await
    }
}

impl Applied {
    /// Returns those of the containers that the plan does not have, and of which nothing is left to be taken away.
    pub(crate) fn without(&self, containers: &BTreeSet<ContainerId>) -> BTreeSet<ContainerId> {
        // What failed as a whole may not have been tried at all.
        if self.failures.iter().any(|error| !["ct-", "pn-", "peer "].iter().any(|id| error.object().contains(id))) {
            return BTreeSet::new();
        }
        let mut gone = containers.clone();
        for network in self.plan.networks.values() {
            for endpoint in &network.endpoints {
                gone.remove(&endpoint.container);
            }
        }
        gone.retain(|id| !self.failures.iter().any(|error| error.object().contains(&id.to_string())));
        gone
    }

    /// Returns whether packets reach a container.
    pub(crate) fn way(&self, container: ContainerId) -> Way {
        let networks = self.plan.networks.values();
        let found = networks.flat_map(|network| network.endpoints.iter().map(|endpoint| (network.id, endpoint)));
        let is_it = |endpoint: &Endpoint| endpoint.container == container && endpoint.node == self.plan.node;
        let Some((network, endpoint)) = found.into_iter().find(|(_, endpoint)| is_it(endpoint)) else {
            return Way::Unplanned;
        };
        let why = self.failures.iter().find(|error| concerns(error.object(), network, endpoint));
        why.map_or(Way::There, |error| Way::Failed(pn_examples::chain(error)))
    }
}

/// Returns whether the failure of an object keeps packets from a container of this node: its own, its network's, or that of
/// everything.
fn concerns(object: &str, network: NetworkId, endpoint: &Endpoint) -> bool {
    if object.starts_with("peer ") {
        return false;
    }
    if object.starts_with("endpoint ") {
        return object == format!("endpoint {} of network {network}", endpoint.address);
    }
    // Ids have a prefix of their own.
    let container = endpoint.container.to_string();
    match (object.contains("ct-"), object.contains("pn-")) {
        (true, _) => object.contains(&container),
        (false, true) => object.contains(&network.to_string()),
        (false, false) => true,
    }
}

#[cfg(test)]
mod tests {
    use pn_core::{
        App, AppId, Change, ContainerType, ErrorKind, NetworkRequest, Node, NodeId, Project, ProjectId, PublicKey,
        Region, Slot, State, Terms, Timestamp,
    };

    use super::*;

    #[test]
    fn what_fails_keeps_packets_from_whom_it_concerns() {
        let [one, other, elsewhere, unknown] = [1, 2, 3, 9].map(ContainerId::from_u128);
        let (here, there) = (NodeId::from_u128(1), NodeId::from_u128(2));
        let (network, foreign) = (NetworkId::from_u128(1), NetworkId::from_u128(2));
        let mut state = State::new(Region::default());
        let mut change = |change| state.apply(Timestamp::ZERO, change).unwrap();
        for (id, n) in [(here, 1), (there, 2)] {
            let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
            let label = format!("node-{n}").parse().unwrap();
            change(Change::AddNode(Node::new(id, label, underlay, tunnel, PublicKey::new([n; 32]))));
        }
        let (project, app, label) = (ProjectId::from_u128(1), AppId::from_u128(1), "x");
        let terms = Terms {
            accepted_by: label.parse().unwrap(),
            version: label.parse().unwrap(),
            accepted_at: Timestamp::ZERO,
        };
        change(Change::AddProject(Project::new(project, label.parse().unwrap())));
        change(Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)));
        change(Change::AddApp(App::new(app, project, label.parse().unwrap())));
        change(Change::Scale { app, formation: "web:3".parse().unwrap() });
        for (index, (container, node)) in [(one, here), (other, here), (elsewhere, there)].into_iter().enumerate() {
            let slot = Slot::new(app, ContainerType::web(), index as u32 + 1).unwrap();
            change(Change::Start { container, slot, node });
        }
        let address = state.container(one).unwrap().address;
        let plan = state.node_plan(here);
        let way = |object: &str, container| {
            let failures = match object {
                "" => Vec::new(),
                object => vec![BackendError::new(ErrorKind::Conflict, "change", object)],
            };
            Applied { plan: plan.clone(), failures }.way(container)
        };
        assert_eq!(way("", one), Way::There);
        assert_eq!((way("", unknown), way("", elsewhere)), (Way::Unplanned, Way::Unplanned));
        let is_failed = |object: &str, container| matches!(way(object, container), Way::Failed(_));
        for (object, of_one, of_other) in [
            (format!("endpoint {address} of network {network}"), true, false),
            (format!("endpoint {address} of network {foreign}"), false, false),
            (format!("the interface of container {one}"), true, false),
            (format!("container {one} of network {network}: attach its network namespace"), true, false),
            (format!("network {network}"), true, true),
            (format!("network {foreign}"), false, false),
            (format!("peer {}", PublicKey::new([2; 32])), false, false),
            ("the tunnel's namespace".to_owned(), true, true),
        ] {
            assert_eq!((is_failed(&object, one), is_failed(&object, other)), (of_one, of_other), "{object}");
        }

        let without = |object: &str| {
            let failures = vec![BackendError::new(ErrorKind::Conflict, "change", object)];
            let gone = Applied { plan: plan.clone(), failures }.without(&[one, elsewhere, unknown].into());
            gone.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(without(&format!("the interface of container {one}")), [unknown]);
        assert_eq!(without(&format!("the interface of container {unknown}")), [], "it is still there");
        assert_eq!(without(&format!("generation {}", plan.generation)), [], "the plan was not applied");
    }
}
