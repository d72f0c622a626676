//! Documents: what the model's records look like when they are stored or sent (feature `serde`).
//!
//! Transfer types of their own stand between the model and every format, so that the model can change and what was written
//! stays readable. Each document says its version; one of an unknown version is refused, and one of an older version is read
//! as what it meant then.
//!
//! ```
//! use pn_core::{Project, ProjectId, Record};
//!
//! let record = Record::Project(Project::new(ProjectId::from_u128(1), "shop".parse()?));
//! let json = record.to_json();
//! assert_eq!(
//!     json,
//!     r#"{"version":2,"kind":"project","id":"prj-00000000-0000-0000-0000-000000000001","label":"shop"}"#
//! );
//! assert_eq!(Record::from_json(&json)?, record);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use core::fmt::Display;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::str::FromStr;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::app::{App, Hosting};
use crate::container::{Container, Phase, Slot};
use crate::network::{Encryption, Ipv6Prefix, KeyScope, Network, Terms};
use crate::node::{Availability, Node};
use crate::project::Project;
use crate::record::{Numbers, Record, Rest};
use crate::time::Timestamp;

/// The version that is written. Version 1 is read, too: it knew no IPv6, no next key, no registration and no availability.
/// Kinds were added to version 2 that an earlier release refuses: what rests, and whose turn it is.
pub const VERSION: u32 = 2;

/// Why what was read is no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is not JSON, or not in the form of its version.
    #[error("not a document: {reason}")]
    Syntax {
        /// What is wrong, and where.
        reason: String,
    },
    /// It was written by a newer release, or is none of ours.
    #[error("a document of version {version}: this release reads versions 1 to {VERSION}")]
    Version {
        /// The version it says.
        version: u32,
    },
    /// A field does not hold what the model allows.
    #[error("{field} of the document is wrong: {reason}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Record {
    /// Writes the record as a document of the current version.
    ///
    /// # Panics
    /// Never: every record has a form in JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let document = Versioned { version: VERSION, body: Body::from(self) };
        serde_json::to_string(&document).expect("strings, numbers and maps with text keys are JSON")
    }

    /// Reads a document of the current version or an older one.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn from_json(json: &str) -> Result<Self, DocumentError> {
        let syntax = |error: serde_json::Error| DocumentError::Syntax { reason: error.to_string() };
        // The version first: what a newer release wrote may have any form.
        let Version { version } = serde_json::from_str(json).map_err(syntax)?;
        if !(1..=VERSION).contains(&version) {
            return Err(DocumentError::Version { version });
        }
        let Versioned { body, .. } = serde_json::from_str(json).map_err(syntax)?;
        Self::try_from(body)
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Every version's form; what a version did not know has a default.
#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Project(ProjectBody),
    App(AppBody),
    Network(NetworkBody),
    Node(NodeBody),
    Container(ContainerBody),
    RestingAddress(RestingAddressBody),
    RestingVni(RestingVniBody),
    Next(NextBody),
}

#[derive(Serialize, Deserialize)]
struct ProjectBody {
    id: String,
    label: String,
}

#[derive(Serialize, Deserialize)]
struct AppBody {
    id: String,
    project: String,
    label: String,
    #[serde(default)]
    hosting: HostingBody,
    formation: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ports: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum HostingBody {
    #[default]
    Ordinary,
    HealthData,
}

#[derive(Serialize, Deserialize)]
struct NetworkBody {
    id: String,
    project: String,
    vni: u32,
    subnet: String,
    #[serde(default)]
    ipv6: bool,
    encryption: EncryptionBody,
    key_scope: KeyScopeBody,
    #[serde(default)]
    terms: Option<TermsBody>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EncryptionBody {
    Wireguard,
    None,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeyScopeBody {
    Node,
    Container,
}

#[derive(Serialize, Deserialize)]
struct TermsBody {
    accepted_by: String,
    version: String,
    accepted_at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct NodeBody {
    id: String,
    label: String,
    underlay: SocketAddr,
    tunnel_address: IpAddr,
    public_key: String,
    #[serde(default)]
    next_public_key: Option<String>,
    underlay_mtu: u16,
    #[serde(default)]
    registration: u64,
    #[serde(default)]
    availability: AvailabilityBody,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum AvailabilityBody {
    #[default]
    Open,
    Draining,
}

#[derive(Serialize, Deserialize)]
struct ContainerBody {
    id: String,
    app: String,
    container_type: String,
    index: u32,
    node: String,
    address: Ipv4Addr,
    phase: PhaseBody,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseBody {
    Starting,
    Ready,
    DrainingSinceMs(u64),
}

#[derive(Serialize, Deserialize)]
struct RestingAddressBody {
    network: String,
    address: Ipv4Addr,
    app: String,
    container_type: String,
    index: u32,
    since_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct RestingVniBody {
    vni: u32,
    network: String,
    since_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct NextBody {
    /// The network whose addresses are meant; none for VNIs.
    network: Option<String>,
    number: u32,
}

impl From<&Record> for Body {
    fn from(record: &Record) -> Self {
        match record {
            Record::Project(Project { id, label }) => {
                Self::Project(ProjectBody { id: id.to_string(), label: label.to_string() })
            }
            Record::App(app) => Self::App(AppBody {
                id: app.id.to_string(),
                project: app.project.to_string(),
                label: app.label.to_string(),
                hosting: match app.hosting {
                    Hosting::Ordinary => HostingBody::Ordinary,
                    Hosting::HealthData => HostingBody::HealthData,
                },
                formation: app.formation.to_string(),
                ports: app.ports.iter().map(|(of_type, ports)| (of_type.to_string(), ports.to_string())).collect(),
            }),
            Record::Network(network) => Self::Network(NetworkBody {
                id: network.id.to_string(),
                project: network.project.to_string(),
                vni: network.vni.get(),
                subnet: network.subnet.to_string(),
                ipv6: network.ipv6.is_some(),
                encryption: match network.encryption {
                    Encryption::WireGuard => EncryptionBody::Wireguard,
                    Encryption::None => EncryptionBody::None,
                },
                key_scope: match network.key_scope {
                    KeyScope::Node => KeyScopeBody::Node,
                    KeyScope::Container => KeyScopeBody::Container,
                },
                terms: network.terms.as_ref().map(|terms| TermsBody {
                    accepted_by: terms.accepted_by.to_string(),
                    version: terms.version.to_string(),
                    accepted_at_ms: terms.accepted_at.as_millis(),
                }),
            }),
            Record::Node(node) => Self::Node(NodeBody {
                id: node.id.to_string(),
                label: node.label.to_string(),
                underlay: node.underlay,
                tunnel_address: node.tunnel_address,
                public_key: node.public_key.to_string(),
                next_public_key: node.next_public_key.map(|key| key.to_string()),
                underlay_mtu: node.underlay_mtu,
                registration: node.registration,
                availability: match node.availability {
                    Availability::Open => AvailabilityBody::Open,
                    Availability::Draining => AvailabilityBody::Draining,
                },
            }),
            Record::Container(container) => Self::Container(ContainerBody {
                id: container.id.to_string(),
                app: container.slot.app().to_string(),
                container_type: container.slot.container_type().to_string(),
                index: container.slot.index(),
                node: container.node.to_string(),
                address: container.address,
                phase: match container.phase {
                    Phase::Starting => PhaseBody::Starting,
                    Phase::Ready => PhaseBody::Ready,
                    Phase::Draining { since } => PhaseBody::DrainingSinceMs(since.as_millis()),
                },
            }),
            Record::Rest(Rest::Address { network, address, slot, since }) => Self::RestingAddress(RestingAddressBody {
                network: network.to_string(),
                address: *address,
                app: slot.app().to_string(),
                container_type: slot.container_type().to_string(),
                index: slot.index(),
                since_ms: since.as_millis(),
            }),
            Record::Rest(Rest::Vni { vni, network, since }) => Self::RestingVni(RestingVniBody {
                vni: vni.get(),
                network: network.to_string(),
                since_ms: since.as_millis(),
            }),
            Record::Next(of, number) => Self::Next(NextBody {
                network: match of {
                    Numbers::Vnis => None,
                    Numbers::Addresses(network) => Some(network.to_string()),
                },
                number: *number,
            }),
        }
    }
}

impl TryFrom<Body> for Record {
    type Error = DocumentError;

    fn try_from(body: Body) -> Result<Self, DocumentError> {
        Ok(match body {
            Body::Project(ProjectBody { id, label }) => {
                Self::Project(Project::new(field("id", &id)?, field("label", &label)?))
            }
            Body::App(app) => Self::App(App {
                id: field("id", &app.id)?,
                project: field("project", &app.project)?,
                label: field("label", &app.label)?,
                hosting: match app.hosting {
                    HostingBody::Ordinary => Hosting::Ordinary,
                    HostingBody::HealthData => Hosting::HealthData,
                },
                formation: field("formation", &app.formation)?,
                ports: app
                    .ports
                    .iter()
                    .map(|(of_type, ports)| Ok((field("ports", of_type)?, field("ports", ports)?)))
                    .collect::<Result<_, DocumentError>>()?,
            }),
            Body::Network(network) => Self::Network(network.into_network()?),
            Body::Node(node) => Self::Node(Node {
                next_public_key: node.next_public_key.map(|key| field("next_public_key", &key)).transpose()?,
                underlay_mtu: node.underlay_mtu,
                registration: node.registration,
                availability: match node.availability {
                    AvailabilityBody::Open => Availability::Open,
                    AvailabilityBody::Draining => Availability::Draining,
                },
                ..Node::new(
                    field("id", &node.id)?,
                    field("label", &node.label)?,
                    node.underlay,
                    node.tunnel_address,
                    field("public_key", &node.public_key)?,
                )
            }),
            Body::Container(container) => Self::Container(Container {
                id: field("id", &container.id)?,
                slot: slot(&container.app, &container.container_type, container.index)?,
                node: field("node", &container.node)?,
                address: container.address,
                phase: match container.phase {
                    PhaseBody::Starting => Phase::Starting,
                    PhaseBody::Ready => Phase::Ready,
                    PhaseBody::DrainingSinceMs(since) => Phase::Draining { since: Timestamp::from_millis(since) },
                },
            }),
            Body::RestingAddress(rest) => Self::Rest(Rest::Address {
                network: field("network", &rest.network)?,
                address: rest.address,
                slot: slot(&rest.app, &rest.container_type, rest.index)?,
                since: Timestamp::from_millis(rest.since_ms),
            }),
            Body::RestingVni(rest) => Self::Rest(Rest::Vni {
                vni: rest.vni.try_into().map_err(|error: crate::NetError| wrong("vni", &error))?,
                network: field("network", &rest.network)?,
                since: Timestamp::from_millis(rest.since_ms),
            }),
            Body::Next(next) => {
                let of = next.network.map(|network| field("network", &network)).transpose()?;
                Self::Next(of.map_or(Numbers::Vnis, Numbers::Addresses), next.number)
            }
        })
    }
}

impl NetworkBody {
    fn into_network(self) -> Result<Network, DocumentError> {
        let id = field("id", &self.id)?;
        let terms = |terms: TermsBody| {
            let accepted_by = field("terms.accepted_by", &terms.accepted_by)?;
            let version = field("terms.version", &terms.version)?;
            Ok(Terms { accepted_by, version, accepted_at: Timestamp::from_millis(terms.accepted_at_ms) })
        };
        Ok(Network {
            id,
            project: field("project", &self.project)?,
            vni: self.vni.try_into().map_err(|error: crate::NetError| wrong("vni", &error))?,
            subnet: field("subnet", &self.subnet)?,
            ipv6: self.ipv6.then(|| Ipv6Prefix::of_network(id)),
            encryption: match self.encryption {
                EncryptionBody::Wireguard => Encryption::WireGuard,
                EncryptionBody::None => Encryption::None,
            },
            key_scope: match self.key_scope {
                KeyScopeBody::Node => KeyScope::Node,
                KeyScopeBody::Container => KeyScope::Container,
            },
            terms: self.terms.map(terms).transpose()?,
        })
    }
}

fn slot(app: &str, container_type: &str, index: u32) -> Result<Slot, DocumentError> {
    let slot = Slot::new(field("app", app)?, field("container_type", container_type)?, index);
    slot.map_err(|error| wrong("index", &error))
}

fn field<T: FromStr<Err: Display>>(name: &'static str, text: &str) -> Result<T, DocumentError> {
    text.parse().map_err(|error| wrong(name, &error))
}

fn wrong(field: &'static str, reason: &impl Display) -> DocumentError {
    DocumentError::Field { field, reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
