#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod agent;
pub mod allowed_ips;
pub mod conformance;
pub mod drops;
pub mod memory;
pub mod outbox;
pub mod packet;
pub mod peer;
pub mod queue;
pub mod recent;
pub mod reconcile;
pub mod tunnel;
pub mod vtep;
pub mod vxlan;

#[cfg(feature = "agent")]
pub use agent::{Agent, AgentHandle};
pub use agent::{AgentOptions, AgentStatus, Leave};
pub use allowed_ips::AllowedIps;
pub use drops::{DropCounters, DropReason};
pub use memory::{MemoryNames, MemoryOverlay};
pub use outbox::{Outbox, Run};
pub use peer::PrivateKey;
pub use queue::FairQueue;
pub use recent::Recent;
pub use tunnel::{Opener, PeerConfig, PeerStatus, Sealer, Tunnel};
pub use vtep::{Admitted, Egress, Ingress, Route, Routed, Vtep, Wrap};
