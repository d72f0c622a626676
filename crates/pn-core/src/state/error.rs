use core::net::{IpAddr, SocketAddr};

use crate::app::FormationError;
use crate::container::Slot;
use crate::id::{AppId, ContainerId, NetworkId, NodeId, ProjectId};
use crate::mtu;
use crate::subnet::Subnet;
use crate::time::Timestamp;

/// Why a [`Change`](super::Change) was refused. The state is as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are the ids and values that the message names")]
pub enum ApplyError {
    /// No project has this id.
    #[error("project {project} does not exist")]
    UnknownProject { project: ProjectId },
    /// The id is taken.
    #[error("project {project} exists already")]
    ProjectExists { project: ProjectId },
    /// The project must be empty first.
    #[error("project {project} has {count} apps: it must have none")]
    ProjectHasApps { project: ProjectId, count: usize },
    /// The project has a private network already.
    #[error("project {project} has private network {network} enabled")]
    PrivateNetworkEnabled { project: ProjectId, network: NetworkId },
    /// The project has no private network.
    #[error("project {project} has no private network: enable it first")]
    NoPrivateNetwork { project: ProjectId },
    /// The region's policy wants accepted terms.
    #[error("the terms of private networking were not accepted for project {project}")]
    TermsNotAccepted { project: ProjectId },
    /// The id is taken.
    #[error("private network {network} exists already")]
    NetworkExists { network: NetworkId },
    /// Every VNI is in use.
    #[error("private network {network} cannot be created: all 16777215 VNIs are in use")]
    VnisInUse { network: NetworkId },
    /// Every VNI that is free still rests.
    #[error("private network {network} cannot be created yet: the free VNIs rest until {until}")]
    VnisResting { network: NetworkId, until: Timestamp },
    /// No app has this id.
    #[error("app {app} does not exist")]
    UnknownApp { app: AppId },
    /// The id is taken.
    #[error("app {app} exists already")]
    AppExists { app: AppId },
    /// The app must have no container.
    #[error("app {app} has {count} containers: it must have none")]
    AppHasContainers { app: AppId, count: usize },
    /// Health-data hosting has no access to private networks.
    #[error("app {app} has health-data hosting (HDS), which private networks are closed to")]
    HealthData { app: AppId },
    /// The formation does not fit the app's.
    #[error("app {app} cannot be scaled")]
    Formation { app: AppId, source: FormationError },
    /// No node has this id.
    #[error("node {node} does not exist")]
    UnknownNode { node: NodeId },
    /// The id is taken.
    #[error("node {node} exists already")]
    NodeExists { node: NodeId },
    /// Other nodes cannot send to such an address.
    #[error("node {node} has underlay address {underlay}, to which nobody can send")]
    NodeUnderlay { node: NodeId, underlay: SocketAddr },
    /// The tunnel address must be one that a packet can come from.
    #[error("node {node} has tunnel address {address}, which no packet can come from")]
    NodeTunnelAddress { node: NodeId, address: IpAddr },
    /// What is left for containers is too small for IPv4.
    #[error("node {node} has underlay MTU {underlay_mtu}, which leaves {left} octets to containers: at least {min} are needed", min = mtu::IPV4_MINIMUM)]
    NodeMtu { node: NodeId, underlay_mtu: u16, left: u16 },
    /// An address or key may belong to one node only.
    #[error("nodes {node} and {other} cannot both have {shared}")]
    NodesShare { node: NodeId, other: NodeId, shared: String },
    /// The node must run no container.
    #[error("node {node} runs {count} containers: it must run none")]
    NodeHasContainers { node: NodeId, count: u32 },
    /// No container has this id.
    #[error("container {container} does not exist")]
    UnknownContainer { container: ContainerId },
    /// The id is taken: a new incarnation needs a new one.
    #[error("container {container} exists already")]
    ContainerExists { container: ContainerId },
    /// The app's formation does not declare the slot's type.
    #[error("slot {slot} has a type that its app does not declare: scale it first")]
    UndeclaredType { slot: Slot },
    /// The app's formation has fewer containers of the type.
    #[error("slot {slot} is beyond its app's formation, which has {count} of that type")]
    BeyondFormation { slot: Slot, count: u32 },
    /// A live container fills the slot.
    #[error("slot {slot} is filled by {by}: stop it, or replace it")]
    SlotTaken { slot: Slot, by: ContainerId },
    /// Only a ready container can be replaced.
    #[error("container {container} is not ready, so it cannot be replaced")]
    NotReady { container: ContainerId },
    /// A draining container does not come back.
    #[error("container {container} is draining and cannot be ready again")]
    Draining { container: ContainerId },
    /// The network is full.
    #[error("private network {network} is full: all {capacity} addresses of {subnet} are in use", capacity = subnet.capacity())]
    AddressesInUse { network: NetworkId, subnet: Subnet },
    /// Every free address still rests.
    #[error("private network {network} has no address to give yet: those of {subnet} that are free rest until {until}")]
    AddressesResting { network: NetworkId, subnet: Subnet, until: Timestamp },
}
