//! The mass-delete breaker (L3): which part of a plan is not obeyed before somebody has confirmed it.
//!
//! Ordinary life takes a container away in steps: it loses its name, drains, and goes. So what counts is only a container that
//! goes **while it still has its name**, and whose slot nobody fills in its place. A plan is then held
//!
//! - network by network, where more of its named containers go than [`Tolerance`] allows;
//! - for a network that leaves the node while containers *of this node* still had their names in it. (That a network leaves
//!   with its last container here is ordinary, however many it has elsewhere.);
//! - as a whole, where the region does not know the node any more though networks are on it. A state refuses to remove such
//!   a node, so this is how an emptied store looks.

use core::fmt;
use core::net::Ipv4Addr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pn_core::backend::Observed;
use pn_core::{NetworkId, NetworkPlan, Node, NodePlan, Slot};

/// What one plan may take away without being asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tolerance {
    /// How much of a network's named containers may go at once, in percent: 50.
    pub percent: usize,
    /// Fewer containers than this may always go: 3.
    pub minimum: usize,
    /// A network may leave the node while fewer named containers than this are on it: 1, so none. Set it higher where
    /// containers that crash go at once ([`Change::Fail`](pn_core::Change::Fail)) and are not stopped first.
    pub last_containers: usize,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { percent: 50, minimum: 3, last_containers: 1 }
    }
}

impl Tolerance {
    const fn is_exceeded(&self, going: usize, of: usize) -> bool {
        going >= self.minimum && going.saturating_mul(100) > of.saturating_mul(self.percent)
    }
}

/// What of a plan is held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The networks that would lose too much, and what.
    pub held: BTreeMap<NetworkId, Removal>,
}

/// What a network would lose.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// Why that is too much.
    pub reason: Reason,
    /// The addresses that would lose their containers.
    pub going: BTreeSet<Ipv4Addr>,
    /// How many there are of the kind that counts.
    pub of: usize,
}

/// Why something is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// More of the network's named containers would go than is tolerated.
    Share,
    /// The network would leave the node while containers of this node have names in it.
    WholeNetwork,
    /// Everything would go: the region does not know the node any more.
    Everything,
    /// The network would take a VNI, a tunnel address or a key that a held one still uses.
    InTheWay,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Share => "more of them than is tolerated",
            Self::WholeNetwork => "the whole network",
            Self::Everything => "everything: the region does not know the node any more",
            Self::InTheWay => "it waits for another network that is held",
        })
    }
}

/// Compares a plan with the one that it follows.
#[must_use]
pub fn judge(before: &NodePlan, after: &NodePlan, tolerance: &Tolerance) -> Verdict {
    let everything = after.host.is_none();
    let judged = before.networks.iter().filter_map(|(id, old)| {
        let removal = match after.networks.get(id) {
            _ if everything => Some(removal(Reason::Everything, old)),
            Some(new) if Arc::ptr_eq(old, new) => None,
            Some(new) => share(old, new, tolerance),
            None => {
                let is_here = |node| node == before.node;
                let live = old.endpoints.iter().filter(|endpoint| is_here(endpoint.node) && old.is_named(endpoint));
                (live.count() >= tolerance.last_containers.max(1)).then(|| removal(Reason::WholeNetwork, old))
            }
        };
        Some((*id, removal?))
    });
    Verdict { held: judged.collect() }
}

/// Compares a node's first plan with what its data plane holds from an earlier life, of which names are not known: every
/// container of this node counts, and each network is judged by its share alone.
#[must_use]
pub fn judge_first(found: &Observed, after: &NodePlan, tolerance: &Tolerance) -> Verdict {
    let wanted = Observed::from(after);
    let here = after.host.as_ref().map(|host| host.tunnel_address);
    let mut held = BTreeMap::new();
    let (mut all_here, mut going_here) = (0, 0);
    for (id, network) in &found.networks {
        let stays = |address: &Ipv4Addr| wanted.networks.get(id).is_some_and(|new| new.endpoints.contains_key(address));
        let going: BTreeSet<Ipv4Addr> = network.endpoints.keys().copied().filter(|address| !stays(address)).collect();
        let local = |address: &&Ipv4Addr| network.endpoints.get(*address).map(|endpoint| endpoint.via) == here;
        all_here += network.endpoints.keys().filter(local).count();
        going_here += going.iter().filter(local).count();
        let of = network.endpoints.len();
        let is_kept = wanted.networks.contains_key(id);
        let reason = match here {
            None => Some(Reason::Everything),
            Some(_) if is_kept && tolerance.is_exceeded(going.len(), of) => Some(Reason::Share),
            Some(_) if !is_kept && tolerance.is_exceeded(going.iter().filter(local).count(), 0) => {
                Some(Reason::WholeNetwork)
            }
            Some(_) => None,
        };
        held.extend(reason.map(|reason| (*id, Removal { reason, going, of })));
    }
    if held.is_empty() && tolerance.is_exceeded(going_here, all_here) {
        // Many small networks go, none of them large enough to count alone.
        let gone = found.networks.iter().filter(|(id, _)| !wanted.networks.contains_key(*id));
        held.extend(gone.map(|(id, network)| {
            let going: BTreeSet<Ipv4Addr> = network.endpoints.keys().copied().collect();
            (*id, Removal { reason: Reason::Everything, of: going.len(), going })
        }));
    }
    Verdict { held }
}

fn removal(reason: Reason, network: &NetworkPlan) -> Removal {
    let going: BTreeSet<Ipv4Addr> = network.endpoints.iter().map(|endpoint| endpoint.address).collect();
    Removal { reason, of: going.len(), going }
}

/// Judges what a network that stays would lose.
fn share(old: &NetworkPlan, new: &NetworkPlan, tolerance: &Tolerance) -> Option<Removal> {
    let stays = |endpoint: &pn_core::Endpoint| {
        new.endpoint(endpoint.address).is_some_and(|same| same.container == endpoint.container)
    };
    let going = old.endpoints.iter().filter(|endpoint| !stays(endpoint) && old.is_named(endpoint));
    let going: Vec<_> = going.collect();
    if going.len() < tolerance.minimum {
        return None;
    }
    let filled: BTreeSet<Slot> = new.endpoints.iter().map(pn_core::Endpoint::slot).collect();
    let going = going.into_iter().filter(|endpoint| !filled.contains(&endpoint.slot()));
    let going: BTreeSet<Ipv4Addr> = going.map(|endpoint| endpoint.address).collect();
    let of = old.zone.types().map(|of_type| of_type.containers.len()).sum();
    tolerance.is_exceeded(going.len(), of).then_some(Removal { reason: Reason::Share, going, of })
}

/// Makes the plan that keeps the held networks as `before` has them, and everything else as `after` does.
///
/// What `after` would put into the way of a held network is added to `held`: two networks with one VNI would be one, and so
/// would two nodes with one key or tunnel address; and a container is in one network.
#[must_use]
pub fn merge(before: &NodePlan, after: &NodePlan, held: &mut BTreeMap<NetworkId, Removal>) -> NodePlan {
    loop {
        let merged = after.keeping(before, |id| held.contains_key(&id));
        if held.is_empty() {
            return merged;
        }
        let in_the_way = in_the_way(&merged, held);
        if in_the_way.is_empty() {
            return merged;
        }
        let nothing = Removal { reason: Reason::InTheWay, going: BTreeSet::new(), of: 0 };
        held.extend(in_the_way.into_iter().map(|id| (id, nothing.clone())));
    }
}

/// Finds the networks that are not held and share what must be a held network's own.
fn in_the_way(merged: &NodePlan, held: &BTreeMap<NetworkId, Removal>) -> BTreeSet<NetworkId> {
    let (kept, others): (Vec<_>, Vec<_>) = merged.networks.values().partition(|network| held.contains_key(&network.id));
    let vnis: BTreeSet<_> = kept.iter().map(|network| network.vni).collect();
    let containers: BTreeSet<_> =
        kept.iter().flat_map(|network| network.endpoints.iter().map(|endpoint| endpoint.container)).collect();
    let members: BTreeSet<_> = kept.iter().flat_map(|network| network.nodes.iter().copied()).collect();
    let nodes = || merged.host.iter().chain(merged.peers.values());
    let is_alike = |a: &Node, b: &Node| {
        a.tunnel_address == b.tunnel_address || a.public_key == b.public_key || a.underlay == b.underlay
    };
    let claims: Vec<&Node> = nodes().filter(|node| members.contains(&node.id)).map(Arc::as_ref).collect();
    let is_rival = |node: &Node| claims.iter().any(|claim| claim.id != node.id && is_alike(claim, node));
    let strangers = nodes().filter(|node| !members.contains(&node.id));
    let rivals: BTreeSet<_> = strangers.filter(|node| is_rival(node)).map(|node| node.id).collect();
    let is_in_the_way = |network: &&&Arc<NetworkPlan>| {
        vnis.contains(&network.vni)
            || network.nodes.iter().any(|node| rivals.contains(node))
            || network.endpoints.iter().any(|endpoint| containers.contains(&endpoint.container))
    };
    others.iter().filter(is_in_the_way).map(|network| network.id).collect()
}

#[cfg(test)]
mod tests;
