//! Private networks.

use crate::id::{NetworkId, ProjectId};
use crate::net::Vni;
use crate::project::Terms;
use crate::subnet::Subnet;

/// How a network's packets are protected between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Encryption {
    /// VXLAN inside WireGuard.
    #[default]
    WireGuard,
    /// Plain VXLAN, for an underlay that is trusted or encrypts by itself. A backend that cannot do it says so.
    None,
}

/// What a WireGuard identity stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum KeyScope {
    /// One identity for each node, shared by its containers of every network; VXLAN travels inside.
    #[default]
    Node,
    /// One identity for each container, inside VXLAN. A backend that cannot do it says so.
    Container,
}

/// A project's private network, as it was recorded when it was enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Network {
    /// Identifies it.
    pub id: NetworkId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// Its VXLAN network identifier, unique in the region.
    pub vni: Vni,
    /// Where its containers' addresses come from.
    pub subnet: Subnet,
    /// How its packets are protected.
    pub encryption: Encryption,
    /// What a WireGuard identity stands for.
    pub key_scope: KeyScope,
    /// The terms under which it was enabled.
    pub terms: Option<Terms>,
}
