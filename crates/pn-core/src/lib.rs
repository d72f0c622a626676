#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod alloc;
pub mod app;
pub mod backend;
pub mod check;
pub mod container;
pub mod container_type;
pub mod diff;
#[cfg(feature = "serde")]
pub mod document;
pub mod id;
pub mod label;
pub mod mtu;
pub mod name;
pub mod net;
pub mod network;
pub mod node;
pub mod page;
pub mod plan;
pub mod policy;
pub mod ports;
pub mod project;
pub mod record;
pub mod source;
pub mod state;
pub mod subnet;
pub mod time;

pub use app::{App, Formation, FormationError, Hosting};
pub use backend::{
    Action, BackendError, Capabilities, DnsBackend, ErrorKind, Observed, Outcome, OverlayBackend, Report, Resolver,
    Transport,
};
pub use check::{Finding, Limits};
pub use container::{Container, Phase, Slot, SlotError};
pub use container_type::{ContainerType, ContainerTypeError, Exposure, TypeProfile};
pub use diff::{PlanChange, PlannedContainer};
pub use id::{AppId, ContainerId, IdError, NetworkId, NodeId, ProjectId};
pub use label::{Label, LabelError};
pub use name::{Name, NameError, NameFault, NameScope, NetworkDomain};
pub use net::{InterfaceName, MacAddr, NetError, PublicKey, Vni};
pub use network::{Encryption, Families, Ipv6Prefix, KeyScope, Network, NetworkRequest, Terms};
pub use node::{Availability, Node};
pub use page::{Page, PageError, PageRequest};
pub use plan::{AppNames, Endpoint, Generation, NetworkPlan, NodePlan, Plan, Stage, TypeNames, ZonePlan, ZoneSet};
pub use policy::{Policy, Region, Requirement};
pub use ports::{Port, Ports, PortsError, Protocol};
pub use project::Project;
pub use record::{LoadError, Numbers, Record, Rest};
pub use source::{Followed, PlanSource};
pub use state::{ApplyError, Change, NodePlanner, State};
pub use subnet::{Subnet, SubnetError};
pub use time::Timestamp;
