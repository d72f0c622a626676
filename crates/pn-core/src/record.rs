//! Records: the state as a list of what exists, to be stored, followed and put together again.

use core::fmt;
use core::net::Ipv4Addr;
use std::collections::BTreeSet;

use crate::app::App;
use crate::container::{Container, Slot};
use crate::id::{AppId, ContainerId, NetworkId, NodeId, ProjectId};
use crate::net::Vni;
use crate::network::Network;
use crate::node::Node;
use crate::plan::Generation;
use crate::policy::Region;
use crate::project::Project;
use crate::state::State;
use crate::time::Timestamp;

/// Something that exists, with every decision that was made about it. Its `Display` says which it is.
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
    /// An address or a VNI that was given back and rests.
    Rest(Rest),
    /// The number whose turn it is to be given; 1 where it is not recorded.
    Next(Numbers, u32),
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project(project) => write!(f, "project {}", project.id),
            Self::App(app) => write!(f, "app {}", app.id),
            Self::Network(network) => write!(f, "private network {}", network.id),
            Self::Node(node) => write!(f, "node {}", node.id),
            Self::Container(container) => write!(f, "container {}", container.id),
            Self::Rest(rest) => write!(f, "{rest:?}"),
            Self::Next(of, number) => write!(f, "the turn of {number} of {of:?}"),
        }
    }
}

/// A number that was given back, who may have it again at once, and since when it rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rest {
    /// An address of a network.
    Address {
        /// The network.
        network: NetworkId,
        /// The address.
        address: Ipv4Addr,
        /// The slot that had it.
        slot: Slot,
        /// When it was given back.
        since: Timestamp,
    },
    /// A VNI, and with it the id of the network that had it.
    Vni {
        /// The VNI.
        vni: Vni,
        /// The network that had it.
        network: NetworkId,
        /// When it was given back.
        since: Timestamp,
    },
}

/// The numbers that are given in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numbers {
    /// The region's VNIs.
    Vnis,
    /// The ordinals of a network's addresses.
    Addresses(NetworkId),
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
    /// What stands among the records of one project is another's, a node, or the region's.
    #[error("{what} is not of project {project}, whose records these are")]
    Foreign { what: String, project: ProjectId },
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
    /// What rests is in use, out of range, or of a network that is not recorded.
    #[error("{rest:?} does not rest: it is in use, out of range, or of a private network that is not recorded")]
    Rest { rest: Rest },
    /// There is no such number, or no such network.
    #[error("it cannot be the turn of {number} of {of:?}")]
    Next { of: Numbers, number: u32 },
}

impl State {
    /// Returns everything that exists, and what rests, in an order in which [`load`](Self::load) takes it: loaded again, it
    /// is an equal state.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let networks: BTreeSet<NetworkId> = self.networks().map(|network| network.id).collect();
        let mut records: Vec<Record> = self.nodes().cloned().map(Record::Node).collect();
        records.extend(self.projects().cloned().map(Record::Project));
        self.push_networks(&networks, &mut records);
        records.extend(self.apps().cloned().map(Record::App));
        networks.iter().for_each(|network| records.extend(self.containers(*network).map(Record::Container)));
        networks.iter().for_each(|network| self.push_rests(*network, &mut records));
        self.push_vni_rests(&mut records);
        records
    }

    /// Returns everything that is recorded of a project: itself, its network, apps, containers and resting addresses.
    #[must_use]
    pub fn records_of(&self, project: ProjectId) -> Vec<Record> {
        let mut records: Vec<Record> = self.project(project).cloned().map(Record::Project).into_iter().collect();
        let network = self.network_of(project);
        records.extend(network.cloned().map(Record::Network));
        records.extend(self.apps_of(project).cloned().map(Record::App));
        if let Some(Network { id, .. }) = network {
            records.extend(self.containers(*id).map(Record::Container));
            self.push_rests(*id, &mut records);
        }
        records
    }

    /// Returns the VNIs that rest, and the one whose turn it is, as records.
    #[must_use]
    pub fn vni_records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        self.push_vni_rests(&mut records);
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
        loader.load_records(records)?;
        Ok(loader)
    }
}

#[cfg(test)]
mod tests;
