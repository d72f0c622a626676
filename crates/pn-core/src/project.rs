//! Projects: what a private network belongs to.

use crate::id::{NetworkId, ProjectId};
use crate::label::Label;
use crate::network::{Encryption, Families, KeyScope};
use crate::subnet::Subnet;
use crate::time::Timestamp;

/// A group of apps, which may have one private network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Identifies it.
    pub id: ProjectId,
    /// What people call it.
    pub label: Label,
}

impl Project {
    /// Makes a project.
    #[must_use]
    pub const fn new(id: ProjectId, label: Label) -> Self {
        Self { id, label }
    }
}

/// Somebody's consent to the terms of private networking, recorded when it is enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Who accepted them.
    pub accepted_by: Label,
    /// Which version of them.
    pub version: Label,
    /// When they were accepted.
    pub accepted_at: Timestamp,
}

/// A request to give a project a private network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkRequest {
    /// The project.
    pub project: ProjectId,
    /// The network it gets.
    pub network: NetworkId,
    /// The terms that were accepted; [`Policy`](crate::Policy) says whether it goes without.
    pub terms: Option<Terms>,
    /// Where addresses come from; the policy's subnet where nothing is asked for.
    pub subnet: Option<Subnet>,
    /// Which addresses its containers have.
    pub families: Families,
    /// How its packets are protected.
    pub encryption: Encryption,
    /// What a WireGuard identity stands for.
    pub key_scope: KeyScope,
}

impl NetworkRequest {
    /// Makes a request under accepted terms, with the defaults for everything else.
    #[must_use]
    pub const fn new(project: ProjectId, network: NetworkId, terms: Terms) -> Self {
        Self {
            project,
            network,
            terms: Some(terms),
            subnet: None,
            families: Families::Ipv4,
            encryption: Encryption::WireGuard,
            key_scope: KeyScope::Node,
        }
    }
}
