use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::app::FormationError;
use crate::container::Slot;
use crate::container_type::ContainerType;
use crate::id::{AppId, ContainerId, NetworkId, NodeId, ProjectId};
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
    /// The id and the VNI of a network that was disabled rest.
    #[error("private network {network} was disabled: its id cannot be used again until {until}")]
    NetworkResting { network: NetworkId, until: Timestamp },
    /// Containers could not tell the resolver from a neighbour.
    #[error(
        "private network {network} with {subnet} cannot have its resolver at {resolver}: a single address outside of the subnet is needed"
    )]
    Resolver { network: NetworkId, subnet: Subnet, resolver: Ipv4Addr },
    /// Every VNI is in use.
    #[error("private network {network} cannot be created: all {count} VNIs are in use")]
    VnisInUse { network: NetworkId, count: u32 },
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
    /// The platform keeps the type for itself.
    #[error("app {app} cannot have containers of type {container_type}, which the platform keeps for itself")]
    ReservedType { app: AppId, container_type: ContainerType },
    /// The region's profile takes other types only.
    #[error("app {app} cannot have containers of type {container_type}: this region takes 1 to 24 letters and digits")]
    TypeProfile { app: AppId, container_type: ContainerType },
    /// The type must have no container.
    #[error("app {app} has {count} containers of type {container_type}: it must have none")]
    TypeHasContainers { app: AppId, container_type: ContainerType, count: usize },
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
    /// What is left for containers is too small for their IP.
    #[error(
        "node {node} has underlay MTU {underlay_mtu}, which leaves {left} octets to containers: at least {least} are needed"
    )]
    NodeMtu { node: NodeId, underlay_mtu: u16, left: u16, least: u16 },
    /// Packets cannot go from one family of addresses to the other.
    #[error(
        "nodes {node} and {other} cannot both be in private network {network}: one has IPv4 and the other IPv6 addresses"
    )]
    NodeFamilies { node: NodeId, other: NodeId, network: NetworkId },
    /// The node has registered again since.
    #[error("node {node} is fenced: registration {given} is older than {known}")]
    Fenced { node: NodeId, given: u64, known: u64 },
    /// The node takes no new containers.
    #[error("node {node} is draining and takes no new containers")]
    NodeDraining { node: NodeId },
    /// There is no key to promote.
    #[error("node {node} has not offered a next public key")]
    NoKeyOffered { node: NodeId },
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
    #[error("app {app} does not declare the container type {container_type}: scale it first")]
    UndeclaredType { app: AppId, container_type: ContainerType },
    /// The app's formation has fewer containers of the type.
    #[error("slot {slot} is beyond its app's formation, which has {count} of that type")]
    BeyondFormation { slot: Slot, count: u32 },
    /// A live container fills the slot.
    #[error("slot {slot} is filled by {by}: stop it, or replace it")]
    SlotTaken { slot: Slot, by: ContainerId },
    /// Only a ready container can be replaced.
    #[error("container {container} is not ready, so it cannot be replaced")]
    NotReady { container: ContainerId },
    /// Only a draining container can be removed.
    #[error("container {container} is live: stop it first, or say that it failed")]
    Live { container: ContainerId },
    /// Caches may still know its name.
    #[error("container {container} has to drain until {until}")]
    StillDraining { container: ContainerId, until: Timestamp },
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
