//! What of a plan this node cannot or must not realise: it is reported, and the rest goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::sys::socket::SockProtocol;
use pn_core::{
    BackendError, ContainerId, Endpoint, ErrorKind, Finding, Limits, NetworkId, NetworkPlan, NodeId, NodePlan, Report,
    Vni,
};

use crate::netlink::Netlink;
use crate::worker::error;
use crate::{lower, observe};

/// Returns the plan without what is to be left out. A network that is too large, or whose packets could reach whom they are not
/// for, stays as `before` has it, if it does: what runs is not to suffer from what does not fit any more. Where nobody knows what
/// was before, one that is too large has the containers here that are `connected`.
pub(crate) fn screen(
    plan: &NodePlan,
    before: Option<&NodePlan>,
    connected: &BTreeSet<ContainerId>,
    limits: &Limits,
    report: &mut Report,
) -> NodePlan {
    check_underlay(plan, report);
    let mut doubtful: BTreeSet<NodeId> = BTreeSet::new();
    let mut kept: BTreeSet<NetworkId> = BTreeSet::new();
    let mut shrunk: BTreeMap<NetworkId, Arc<NetworkPlan>> = BTreeMap::new();
    for finding in plan.check(limits) {
        // Permanent neighbours, and others we have none, do not count towards the kernel's limit.
        if let Finding::Neighbours { .. } = finding {
            tracing::debug!(%finding, "a limit of the kernel that does not bind permanent neighbours");
            continue;
        }
        let mut object = finding.to_string();
        if let Finding::BridgePorts { network, .. } = finding {
            let smaller = plan.networks.get(&network).filter(|_| before.is_none());
            match smaller.and_then(|network| shrink(network, plan.node, connected)) {
                Some(smaller) => drop(shrunk.insert(network, Arc::new(smaller))),
                None => drop(kept.insert(network)),
            }
            object.push_str(": start some of them on other nodes");
            report.record(&object, Err(BackendError::new(ErrorKind::Full, "realise", &object)));
            continue;
        }
        if let Finding::VniTwice { networks, .. } = finding {
            kept.extend(networks);
            object.push_str(": give one of them another; until then both stay as they were");
        }
        if let Finding::AddressTwice { network, .. } | Finding::AddressOutside { network, .. } = finding {
            kept.insert(network);
            object.push_str(": start one of its containers anew; until then the network stays as it was");
        }
        if let Finding::NodesShare { nodes, .. } = finding {
            doubtful.extend(nodes);
            object.push_str(": register one of them with another; until then neither is spoken to");
        }
        report.record(&object, Err(BackendError::new(ErrorKind::Conflict, "realise", &object)));
    }
    for network in plan.networks.values().filter(|network| !lower::is_supported(network)) {
        let object = format!(
            "network {} with encryption {:?}, keys per {:?}",
            network.id, network.encryption, network.key_scope
        );
        report.record(&object, Err(BackendError::new(ErrorKind::Unsupported, "create", &object)));
    }
    let mut plan = plan.only(|network| lower::is_supported(network) && !kept.contains(&network.id));
    if !shrunk.is_empty() {
        let mut networks = (*plan.networks).clone();
        networks.extend(shrunk.into_iter().filter(|(id, _)| plan.networks.contains_key(id)));
        plan.networks = networks.into();
    }
    if let Some(before) = before {
        plan = plan.keeping(before, |id| kept.contains(&id));
        plan = without_taken(plan, &kept, report);
    }
    if !doubtful.is_empty() {
        // Whom packets would go to is not known; a node that nobody knows gets and sends none.
        Arc::make_mut(&mut plan.peers).retain(|id, _| !doubtful.contains(id));
    }
    plan
}

/// Returns a network with those containers here that are connected, if any is.
fn shrink(network: &NetworkPlan, here: NodeId, connected: &BTreeSet<ContainerId>) -> Option<NetworkPlan> {
    let is_connected = |endpoint: &&Endpoint| endpoint.node == here && connected.contains(&endpoint.container);
    network.endpoints.iter().find(is_connected)?;
    let mut network = network.clone();
    let endpoints = network.endpoints.iter().filter(|endpoint| endpoint.node != here || is_connected(endpoint));
    network.endpoints = endpoints.cloned().collect();
    Some(network)
}

/// Leaves out networks whose VNI one that stays as it was has.
fn without_taken(plan: NodePlan, kept: &BTreeSet<NetworkId>, report: &mut Report) -> NodePlan {
    let vnis = plan.networks.values().filter(|network| kept.contains(&network.id)).map(|network| network.vni);
    let vnis: BTreeSet<Vni> = vnis.collect();
    let is_taken = |network: &NetworkPlan| !kept.contains(&network.id) && vnis.contains(&network.vni);
    for network in plan.networks.values().filter(|network| is_taken(network)) {
        let object = format!("network {}: another, which stays as it was, has VNI {}", network.id, network.vni);
        report.record(&object, Err(BackendError::new(ErrorKind::Conflict, "realise", &object)));
    }
    plan.only(|network| !is_taken(network))
}

/// Reports an underlay whose packets are smaller than the plan says: large packets would vanish there. An address that no
/// interface has, as behind a translator, says nothing.
fn check_underlay(plan: &NodePlan, report: &mut Report) {
    let Some(host) = &plan.host else {
        return;
    };
    let address = host.underlay.ip();
    let found =
        Netlink::open(SockProtocol::NetlinkRoute).and_then(|mut netlink| observe::interface_of(address, &mut netlink));
    match found {
        Ok(Some((name, mtu))) if mtu < host.underlay_mtu.into() => {
            let planned = host.underlay_mtu;
            let object = format!(
                "underlay MTU {planned}: interface {name}, which has {address}, has MTU {mtu}; raise it, or register the node with {mtu}"
            );
            report.record(&object, Err(BackendError::new(ErrorKind::Conflict, "use", &object)));
        }
        Ok(_) => {}
        Err(source) => report.record("the underlay", Err(error("read", format!("the interface of {address}"), source))),
    }
}

/// Reports containers that nobody has handed over, or whose namespaces are gone.
pub(crate) fn report_unattached(plan: &NodePlan, attached: &BTreeSet<ContainerId>, report: &mut Report) {
    for network in plan.networks.values() {
        let local = network.endpoints.iter().filter(|endpoint| endpoint.node == plan.node);
        for endpoint in local.filter(|endpoint| !attached.contains(&endpoint.container)) {
            let object =
                format!("container {} of network {}: attach its network namespace", endpoint.container, network.id);
            report.record(&object, Err(BackendError::new(ErrorKind::NotFound, "connect", &object)));
        }
    }
}
