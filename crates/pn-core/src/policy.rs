//! The rules and defaults of a region, which an embedder may change.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::container_type::TypeProfile;
use crate::label::Label;
use crate::net::Vni;
use crate::subnet::Subnet;
use crate::time::Timestamp;

/// Whether something that needs a condition may go without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// It may not.
    Required,
    /// It may.
    Optional,
}

/// The rules of a region. The defaults are the product's.
///
/// ```
/// use pn_core::{Policy, Region, State};
///
/// let mut policy = Policy::default();
/// policy.ttl = core::time::Duration::from_secs(1);
/// let state = State::new(Region::with_policy(policy));
/// # assert_eq!(state.policy().ttl.as_secs(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// The subnet of a new network: 10.240.0.0/22.
    pub subnet: Subnet,
    /// How long an address rests before another slot gets it: 60 s.
    pub address_rest: Duration,
    /// The greatest VNI that is given: every 24-bit one. A smaller one leaves the others to whoever shares the underlay.
    pub last_vni: Vni,
    /// How long a VNI rests before another network gets it: 1 h.
    pub vni_rest: Duration,
    /// Time to live of positive DNS answers: 5 s.
    pub ttl: Duration,
    /// How long a container that lost its name keeps its address at least before it is removed: 5 s. It is never less than
    /// [`ttl`](Self::ttl), as long as the name lives in caches.
    pub drain: Duration,
    /// Which container types apps may have: every label.
    pub types: TypeProfile,
    /// What the names of a container's environment variables start with, before an underscore: `SCALINGO`.
    pub environment_prefix: Label,
    /// Where containers reach the resolver of their network: 169.254.53.53, link-local, so that it costs no address.
    pub resolver: Ipv4Addr,
    /// Whether enabling a private network needs accepted terms: required.
    pub terms: Requirement,
    /// Whether a project must have no app when its private network is enabled: required.
    pub empty_project: Requirement,
    /// Whether an app must have ordinary hosting, not health-data hosting: required.
    pub ordinary_hosting: Requirement,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            subnet: Subnet::DEFAULT,
            address_rest: Duration::from_secs(60),
            last_vni: Vni::new(Vni::MAX).expect("the greatest VNI is one"),
            vni_rest: Duration::from_secs(3600),
            ttl: Duration::from_secs(5),
            drain: Duration::from_secs(5),
            types: TypeProfile::Label,
            environment_prefix: "SCALINGO".parse().expect("letters are a label"),
            resolver: Ipv4Addr::new(169, 254, 53, 53),
            terms: Requirement::Required,
            empty_project: Requirement::Required,
            ordinary_hosting: Requirement::Required,
        }
    }
}

impl Policy {
    /// Returns when a container that lost its name at a moment has drained.
    pub(crate) fn drained_at(&self, since: Timestamp) -> Timestamp {
        since.after(self.drain.max(self.ttl))
    }
}

/// What a [`State`](crate::State) is made for: one set of nodes that share their VNIs, under one policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Region {
    /// Its rules.
    pub policy: Policy,
}

impl Region {
    /// Makes a region with rules of its own.
    #[must_use]
    pub const fn with_policy(policy: Policy) -> Self {
        Self { policy }
    }
}
