//! The traits that data planes and name servers implement, and what they report.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::Arc;

use async_trait::async_trait;

use crate::id::NetworkId;
use crate::net::{MacAddr, PublicKey, Vni};
use crate::network::{Encryption, KeyScope};
use crate::plan::{Generation, NodePlan, ZoneSet};
use crate::subnet::Subnet;

/// A data plane: makes one node what its plan says.
///
/// # Contract
/// - `apply` makes **one idempotent attempt** at the whole plan. It compares with what it observes, in both directions, so
///   what is not in the plan goes; the empty plan is teardown. It goes on after a failed step and reports every object.
/// - `observe(apply(p))` equals `Observed::from(p)`; a second `apply` of the same plan reports no change; `apply(a)` then
///   `apply(b)` leads where `apply(b)` alone leads.
/// - A plan older than the last applied one is refused as a whole with [`ErrorKind::Superseded`].
/// - Objects that the backend did not make are left alone.
///
/// # Cancel safety
/// A dropped `apply` leaves a state from which the next one converges.
#[async_trait]
pub trait OverlayBackend: fmt::Debug + Send + Sync {
    /// Says what this backend can do. It never changes while the backend lives.
    fn capabilities(&self) -> Capabilities;

    /// Makes the node what the plan says, as far as it can, and reports each object.
    async fn apply(&self, plan: &NodePlan) -> Report;

    /// Reads what the node is.
    ///
    /// # Errors
    /// [`BackendError`] where it cannot be read.
    async fn observe(&self) -> Result<Observed, BackendError>;
}

/// A name server, or a way to feed one: makes the published names what a plan says.
///
/// # Contract
/// - `publish` replaces everything that was published before; a network that is not in the set has no names afterwards.
/// - Every answer belongs to one generation: a change is seen whole or not at all.
/// - A set older than the last published one is refused with [`ErrorKind::Superseded`].
///
/// # Cancel safety
/// A dropped `publish` leaves a state from which the next one converges.
#[async_trait]
pub trait DnsBackend: fmt::Debug + Send + Sync {
    /// Publishes the zones and reports each.
    async fn publish(&self, zones: &ZoneSet) -> Report;
}

/// Answers DNS queries that arrive inside a network, for data planes that answer in place.
///
/// The network comes from the port or socket the query arrived on, never from an address in it.
pub trait Resolver: fmt::Debug + Send + Sync {
    /// Answers one query, a DNS message without TCP's length prefix. `None` means silence.
    fn resolve(&self, network: NetworkId, transport: Transport, query: &[u8]) -> Option<Vec<u8>>;
}

/// What a DNS query came over, which bounds the size of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream.
    Tcp,
}

/// What a backend can do, so that nobody has to find out by failing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What to call the backend in logs and status.
    pub name: &'static str,
    /// The ways of protecting packets it has.
    pub encryption: &'static [Encryption],
    /// The scopes of keys it has.
    pub key_scopes: &'static [KeyScope],
}

impl Capabilities {
    /// Makes the capabilities of a backend.
    #[must_use]
    pub const fn new(name: &'static str, encryption: &'static [Encryption], key_scopes: &'static [KeyScope]) -> Self {
        Self { name, encryption, key_scopes }
    }
}

/// What a backend found on its node, in the terms of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The nodes it exchanges packets with.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
    /// The networks it has a part in.
    pub networks: BTreeMap<NetworkId, ObservedNetwork>,
}

/// A peer as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedPeer {
    /// Where it receives UDP on the underlay.
    pub underlay: SocketAddr,
    /// The one address it may send from inside the tunnel.
    pub tunnel_address: IpAddr,
}

/// A network as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// Its VXLAN network identifier.
    pub vni: Vni,
    /// Where its addresses come from.
    pub subnet: Subnet,
    /// The largest IP packet, in octets.
    pub mtu: u16,
    /// The containers it delivers to.
    pub endpoints: BTreeMap<Ipv4Addr, ObservedEndpoint>,
}

/// Where a container's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedEndpoint {
    /// The MAC address of its interface.
    pub mac: MacAddr,
    /// The tunnel address of the node it runs on, which may be this one.
    pub via: IpAddr,
}

impl From<&NodePlan> for Observed {
    /// Says what is observed where a plan is realised.
    fn from(plan: &NodePlan) -> Self {
        let peer = |underlay, tunnel_address| ObservedPeer { underlay, tunnel_address };
        let peers = plan.peers.values().map(|node| (node.public_key, peer(node.underlay, node.tunnel_address)));
        let networks = plan.networks.iter().map(|(id, network)| {
            let endpoints = network.endpoints.iter().filter_map(|endpoint| {
                let via = plan.member(endpoint.node)?.tunnel_address;
                Some((endpoint.address, ObservedEndpoint { mac: endpoint.mac(), via }))
            });
            let (vni, subnet, mtu) = (network.vni, network.subnet, network.mtu);
            (*id, ObservedNetwork { vni, subnet, mtu, endpoints: endpoints.collect() })
        });
        Self { peers: peers.collect(), networks: networks.collect() }
    }
}

/// What happened to each object of a plan. Nothing that failed is left out.
#[derive(Debug, Clone, Default)]
#[must_use = "a report may hold failures"]
pub struct Report {
    /// The generation that was applied or refused.
    pub generation: Generation,
    /// One entry for each object that changed or should have.
    pub outcomes: Vec<Outcome>,
}

/// What happened to one object.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The object, for example `network pn-…` or `peer nd-…`.
    pub object: String,
    /// What was done, or why it was not.
    pub result: Result<Action, BackendError>,
}

/// What was done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It was not there.
    Created,
    /// It was different.
    Updated,
    /// It should not have been there.
    Removed,
}

impl Report {
    /// Makes a report without outcomes, which is complete success without a change.
    pub const fn new(generation: Generation) -> Self {
        Self { generation, outcomes: Vec::new() }
    }

    /// Makes the report of a plan that was refused as a whole.
    pub fn refused(generation: Generation, error: BackendError) -> Self {
        let outcome = Outcome { object: error.object().to_owned(), result: Err(error) };
        Self { generation, outcomes: vec![outcome] }
    }

    /// Adds what happened to one object.
    pub fn record(&mut self, object: impl fmt::Display, result: Result<Action, BackendError>) {
        self.outcomes.push(Outcome { object: object.to_string(), result });
    }

    /// Returns whether nothing had to be done.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// Returns the failures.
    pub fn failures(&self) -> impl Iterator<Item = &BackendError> {
        self.outcomes.iter().filter_map(|outcome| outcome.result.as_ref().err())
    }

    /// Returns the report as a result, with the first failure for an error.
    ///
    /// # Errors
    /// The first failure, where there is one.
    pub fn into_result(self) -> Result<(), BackendError> {
        self.failures().next().cloned().map_or(Ok(()), Err)
    }
}

/// The kinds of failure a backend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The plan is older than what is applied already.
    Superseded,
    /// The backend cannot do what the plan asks for.
    Unsupported,
    /// The plan is for another node, or the node's own key or address differ from the plan's.
    WrongNode,
    /// There is no such object.
    NotFound,
    /// The process may not do it.
    PermissionDenied,
    /// Something that belongs to somebody else is in the way.
    Conflict,
    /// There is more than there is room for.
    Full,
    /// The operating system refused.
    Io,
    /// There was no answer in time.
    TimedOut,
    /// The backend was shut down.
    Closed,
}

/// Why a backend could not do something to an object.
#[derive(Debug, Clone)]
pub struct BackendError {
    kind: ErrorKind,
    operation: &'static str,
    object: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl BackendError {
    /// Makes an error: what was being done, and to what.
    #[must_use]
    pub fn new(kind: ErrorKind, operation: &'static str, object: impl fmt::Display) -> Self {
        Self { kind, operation, object: object.to_string(), source: None }
    }

    /// Makes the refusal of a plan older than the applied one.
    #[must_use]
    pub fn superseded(given: Generation, applied: Generation) -> Self {
        let object = format!("generation {given}: generation {applied} is applied already");
        Self::new(ErrorKind::Superseded, "apply", object)
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns what was being done.
    #[must_use]
    pub const fn operation(&self) -> &'static str {
        self.operation
    }

    /// Returns what it was done to.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Returns whether the same attempt may succeed later without anybody changing anything.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Io | ErrorKind::TimedOut | ErrorKind::Conflict)
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.kind {
            ErrorKind::Superseded => "the plan is superseded",
            ErrorKind::Unsupported => "this backend cannot do it",
            ErrorKind::WrongNode => "the plan is not for this node",
            ErrorKind::NotFound => "there is none",
            ErrorKind::PermissionDenied => "permission denied",
            ErrorKind::Conflict => "something else is in the way",
            ErrorKind::Full => "there is no room for it",
            ErrorKind::Io => "the operating system refused",
            ErrorKind::TimedOut => "there was no answer in time",
            ErrorKind::Closed => "the backend is closed",
        };
        write!(f, "cannot {} {}: {reason}", self.operation, self.object)
    }
}

impl StdError for BackendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}
