//! Which names have a way to what they lead to.

use core::net::Ipv4Addr;
use std::collections::BTreeSet;
use std::sync::Arc;

use pn_core::backend::Observed;
use pn_core::{AppNames, NetworkId, NetworkPlan, NodeId, NodePlan, PublicKey, TypeNames, ZonePlan, ZoneSet};

/// Takes the names from a set whose addresses have no way, as far as was observed, or another one than planned.
pub(super) fn with_ways(mut zones: ZoneSet, plan: &NodePlan, found: &Observed) -> ZoneSet {
    let wanted = Observed::from(plan);
    let is_open = |network: NetworkId, address: Ipv4Addr| {
        let (Some(wanted), Some(network)) = (wanted.networks.get(&network), found.networks.get(&network)) else {
            return false;
        };
        let Some(way) = wanted.endpoints.get(&address) else { return false };
        wanted.vni == network.vni && network.endpoints.get(&address) == Some(way)
    };
    let unreached = unreached(plan, &wanted, found);
    for (id, zone) in &mut zones.zones {
        let reached = |address: Ipv4Addr| {
            let endpoint = plan.networks.get(id).and_then(|network| network.endpoint(address));
            endpoint.is_some_and(|endpoint| !unreached.contains(&endpoint.node))
        };
        *zone = filtered(zone, |_, (_, address)| reached(*address) && is_open(*id, *address));
    }
    zones
}

/// Returns the names that may be answered after an attempt that failed in part: those of the plan where nothing that names
/// the network failed, those of `meanwhile` elsewhere, and of both only what has its way.
pub(super) fn after_failures<'a>(
    plan: &NodePlan,
    meanwhile: ZoneSet,
    failed: impl Iterator<Item = &'a str> + Clone,
    found: &Observed,
) -> ZoneSet {
    let mut zones = meanwhile;
    for (id, network) in plan.networks.iter() {
        if !failed.clone().any(|object| concerns(object, *id)) {
            zones.zones.insert(*id, Arc::clone(&network.zone));
        }
    }
    with_ways(zones, plan, found)
}

/// Returns the networks that are all of what a plan says after an attempt that failed in part.
pub(super) fn made<'a>(
    plan: &NodePlan,
    failed: impl Iterator<Item = &'a str> + Clone,
    found: &Observed,
) -> BTreeSet<NetworkId> {
    let wanted = Observed::from(plan);
    let unreached = unreached(plan, &wanted, found);
    let is_made = |network: &&Arc<NetworkPlan>| {
        let id = network.id;
        wanted.networks.get(&id) == found.networks.get(&id)
            && unreached.is_disjoint(&network.nodes.iter().copied().collect())
            && !failed.clone().any(|object| concerns(object, id))
    };
    plan.networks.values().filter(is_made).map(|network| network.id).collect()
}

/// Returns the nodes that are not reached: a way through a peer that is not there, or elsewhere, is none.
fn unreached(plan: &NodePlan, wanted: &Observed, found: &Observed) -> BTreeSet<NodeId> {
    let is_there = |key: &PublicKey| wanted.peers.get(key) == found.peers.get(key);
    plan.peers.values().filter(|node| !is_there(&node.public_key)).map(|node| node.id).collect()
}

/// Returns whether the failure of an object may concern a whole network. Peers and single endpoints do not: whether their
/// ways are there is seen.
fn concerns(object: &str, network: NetworkId) -> bool {
    if ["peer ", "endpoint ", "name server "].iter().any(|kind| object.starts_with(kind)) {
        return false;
    }
    let is_about_one = object.contains("pn-");
    !is_about_one || object.contains(&network.to_string())
}

/// Returns the names that are in both sets.
pub(super) fn common(mut zones: ZoneSet, other: &ZoneSet) -> ZoneSet {
    zones.zones.retain(|id, _| other.zones.contains_key(id));
    for (id, zone) in &mut zones.zones {
        let known = other.zones.get(id);
        *zone = filtered(zone, |of_type, container| {
            let known = known.and_then(|known| known.of_type(of_type.app, &of_type.container_type));
            known.is_some_and(|known| known.containers.binary_search(container).is_ok())
        });
    }
    zones
}

fn filtered(zone: &Arc<ZonePlan>, keep: impl Fn(&TypeNames, &(u32, Ipv4Addr)) -> bool) -> Arc<ZonePlan> {
    let is_kept = |of_type: &TypeNames| of_type.containers.iter().all(|container| keep(of_type, container));
    if zone.types().all(is_kept) {
        return Arc::clone(zone);
    }
    let mut zone = (**zone).clone();
    let apps = zone.apps.iter().map(|app| {
        if app.types.iter().all(is_kept) {
            return Arc::clone(app);
        }
        let types = app.types.iter().map(|of_type| {
            let containers = of_type.containers.iter().filter(|container| keep(of_type, container)).copied();
            TypeNames { containers: containers.collect(), ..of_type.clone() }
        });
        Arc::new(AppNames { app: app.app, types: types.collect() })
    });
    zone.apps = apps.collect();
    Arc::new(zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::{World, network};

    #[test]
    fn a_network_is_made_when_all_of_it_is_there_and_nothing_of_it_failed() {
        let mut world = World::new();
        world.run([1], 1, 1);
        world.run([2], 1, 3);
        world.run([3], 2, 1);
        world.run([4], 2, 2);
        let plan = world.plan();
        let check = |failed: &str, edit: &dyn Fn(&mut Observed)| {
            let mut found = Observed::from(&plan);
            edit(&mut found);
            made(&plan, [failed].into_iter().filter(|failed| !failed.is_empty()), &found)
        };
        let of = |networks: &[u128]| networks.iter().map(|n| network(*n)).collect::<BTreeSet<_>>();
        assert_eq!(check("", &|_| ()), of(&[1, 2]));
        assert_eq!(check(&format!("network {}", network(1)), &|_| ()), of(&[2]));
        assert_eq!(check("peer nd-1", &|_| ()), of(&[1, 2]), "that peer is there");
        assert_eq!(check("the tunnel", &|_| ()), of(&[]));
        let endpoints = |found: &mut Observed| {
            found.networks.get_mut(&network(2)).unwrap().endpoints.pop_first();
        };
        assert_eq!(check("", &endpoints), of(&[1]));
        let peer = |found: &mut Observed| {
            found.peers.remove(&plan.peers[&NodeId::from_u128(3)].public_key);
        };
        assert_eq!(check("", &peer), of(&[2]));
    }
}
