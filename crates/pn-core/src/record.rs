//! Records: the state as a list of what exists, to be stored, followed and put together again.

use std::collections::BTreeSet;

use crate::app::App;
use crate::container::Container;
use crate::id::{AppId, ContainerId, NetworkId, NodeId, ProjectId};
use crate::network::Network;
use crate::node::Node;
use crate::plan::Generation;
use crate::policy::Region;
use crate::project::Project;
use crate::state::State;

/// Something that exists, with every decision that was made about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// A project.
    Project(Project),
    /// An app, with its formation.
    App(App),
    /// A private network, with its VNI.
    Network(Network),
    /// A node.
    Node(Node),
    /// A container, with its address.
    Container(Container),
}

/// Why records are no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are the ids that the message names")]
pub enum LoadError {
    /// Something is recorded twice.
    #[error("{what} is recorded twice")]
    Twice { what: String },
    /// An app belongs to a project that is not recorded.
    #[error("app {app} belongs to project {project}, which is not recorded")]
    AppProject { app: AppId, project: ProjectId },
    /// A network belongs to a project that is not recorded, or that has another.
    #[error("private network {network} belongs to project {project}, which is not recorded or has another")]
    NetworkProject { network: NetworkId, project: ProjectId },
    /// Two networks have one VNI.
    #[error("private network {network} has a VNI that another has")]
    Vni { network: NetworkId },
    /// A container is of an app that is not recorded in a network.
    #[error("container {container} is of app {app}, which is not recorded in a private network")]
    ContainerApp { container: ContainerId, app: AppId },
    /// A container is on a node that is not recorded.
    #[error("container {container} is on node {node}, which is not recorded")]
    ContainerNode { container: ContainerId, node: NodeId },
    /// A container's address is not of its network, or is another's.
    #[error("container {container} has an address that is not of its network, or another's")]
    Address { container: ContainerId },
    /// A container fills a slot that another fills.
    #[error("container {container} fills a slot that another fills")]
    Slot { container: ContainerId },
}

impl State {
    /// Returns everything that exists, in an order in which [`load`](Self::load) takes it.
    ///
    /// Rests are not recorded yet: a state that was loaded may give out at once what had just been given back.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let networks: BTreeSet<NetworkId> = self.networks().map(|network| network.id).collect();
        let mut records: Vec<Record> = self.nodes().cloned().map(Record::Node).collect();
        records.extend(self.projects().cloned().map(Record::Project));
        self.push_networks(&networks, &mut records);
        records.extend(self.apps().cloned().map(Record::App));
        networks.iter().for_each(|network| records.extend(self.containers(*network).map(Record::Container)));
        records
    }

    /// Returns what a node has to know: itself, its networks with all their containers, and the nodes these run on.
    #[must_use]
    pub fn share(&self, node: NodeId) -> Vec<Record> {
        let plan = self.node_plan(node);
        let networks: BTreeSet<NetworkId> = plan.networks.keys().copied().collect();
        let nodes = plan.host.iter().chain(plan.peers.values()).map(|node| Record::Node(Node::clone(node)));
        let mut records: Vec<Record> = nodes.collect();
        let projects: BTreeSet<ProjectId> =
            networks.iter().filter_map(|network| self.network(*network)).map(|network| network.project).collect();
        records.extend(projects.iter().filter_map(|project| self.project(*project)).cloned().map(Record::Project));
        self.push_networks(&networks, &mut records);
        let apps = self.apps().filter(|app| projects.contains(&app.project));
        records.extend(apps.cloned().map(Record::App));
        networks.iter().for_each(|network| records.extend(self.containers(*network).map(Record::Container)));
        records
    }

    fn push_networks(&self, networks: &BTreeSet<NetworkId>, records: &mut Vec<Record>) {
        records.extend(networks.iter().filter_map(|network| self.network(*network)).cloned().map(Record::Network));
    }

    /// Puts a state together from records, in any order, as of a generation.
    ///
    /// A share is enough for its node: the plan of the node is the same as from everything.
    ///
    /// # Errors
    /// [`LoadError`] where the records contradict each other.
    pub fn load(
        region: Region,
        generation: Generation,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Self, LoadError> {
        let mut loader = Self::loader(region, generation);
        let mut rest: [Vec<Record>; 3] = Default::default();
        for record in records {
            match &record {
                // What others refer to comes first.
                Record::Node(_) | Record::Project(_) => loader.load_record(record)?,
                Record::Network(_) => rest[0].push(record),
                Record::App(_) => rest[1].push(record),
                Record::Container(_) => rest[2].push(record),
            }
        }
        rest.into_iter().flatten().try_for_each(|record| loader.load_record(record))?;
        Ok(loader)
    }
}

#[cfg(test)]
mod tests;
