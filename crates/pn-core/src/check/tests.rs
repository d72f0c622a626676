//! Good plans with one thing broken at a time.

use super::*;
use crate::*;

fn node(n: u8) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Node::new(NodeId::from_u128(n.into()), "n".parse().unwrap(), underlay, tunnel, PublicKey::new([n; 32]))
}

fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

/// Two dual-stack networks, each with three ready containers on two nodes.
fn plan() -> Plan {
    let mut state = State::new(Region::default());
    let mut apply = |change| assert!(state.apply(Timestamp::ZERO, change).is_ok());
    let label = || "x".parse::<Label>().unwrap();
    for n in [1, 2] {
        apply(Change::AddNode(node(n)));
    }
    for n in [1, 2] {
        let (project, app) = (ProjectId::from_u128(n), AppId::from_u128(n));
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        let mut request = NetworkRequest::new(project, network(n), terms);
        request.families = Families::DualStack;
        apply(Change::AddProject(Project::new(project, label())));
        apply(Change::EnablePrivateNetwork(request));
        apply(Change::AddApp(App::new(app, project, label())));
        apply(Change::Scale { app, formation: Formation::web(3) });
        for index in 1..=3u32 {
            let container = ContainerId::from_u128(n * 10 + u128::from(index));
            let slot = Slot::new(app, ContainerType::web(), index).unwrap();
            apply(Change::Start { container, slot, node: NodeId::from_u128(u128::from(index) % 2 + 1) });
            apply(Change::Ready(container));
        }
    }
    state.plan()
}

/// Breaks network 1 of a good plan and returns what is found, as text.
fn check(edit: impl FnOnce(&mut NetworkPlan)) -> Vec<String> {
    let mut plan = plan();
    edit(Arc::make_mut(plan.networks.get_mut(&network(1)).unwrap()));
    let found = plan.check(&Limits::default());
    // What is wrong with a network is wrong on each of its nodes.
    let on_node = plan.node(NodeId::from_u128(1)).check(&Limits::default());
    assert!(found.iter().all(|finding| on_node.contains(finding)), "{found:?} {on_node:?}");
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn what_a_state_plans_is_in_order() {
    assert_eq!(plan().check(&Limits::default()), []);
    assert_eq!(plan().node(NodeId::from_u128(1)).check(&Limits::default()), []);
    assert_eq!(plan().node(NodeId::from_u128(9)).check(&Limits::default()), []);
}

#[test]
fn each_fault_is_found() {
    let (n1, n2) = (network(1), network(2));
    let (c1, c2) = (ContainerId::from_u128(11), ContainerId::from_u128(12));
    let app = AppId::from_u128(1);
    let outside = Ipv4Addr::new(10, 240, 4, 1);
    assert_eq!(check(|plan| plan.vni = Vni::new(2).unwrap()), [format!("networks {n1} and {n2} both have VNI 2")]);
    assert_eq!(
        check(|plan| {
            plan.endpoints[1].address = plan.endpoints[0].address;
        }),
        [
            format!("containers {c1} and {c2} of network {n1} both have 10.240.0.1"),
            format!("2.web.{app} of network {n1} leads to 10.240.0.2, which its container does not have"),
        ]
    );
    assert_eq!(
        check(|plan| plan.endpoints[2].address = outside)[0],
        format!("container {} has 10.240.4.1, which is not of network {n1}", ContainerId::from_u128(13))
    );
    let twice =
        |id, other, network| format!("container {id} has two endpoints, in network {other} and in network {network}");
    assert_eq!(check(|plan| plan.endpoints[1].container = c1), [twice(c1, n1, n1)]);
    let of_other = ContainerId::from_u128(21);
    assert_eq!(check(|plan| plan.endpoints[0].container = of_other), [twice(of_other, n1, n2)]);
    assert_eq!(check(|plan| plan.endpoints.swap(0, 1)), [format!("the endpoints of network {n1} are not in order")]);
    assert_eq!(
        check(|plan| plan.nodes = [1, 2, 9].map(NodeId::from_u128).into()),
        [format!("the nodes of network {n1} are not those of its containers")]
    );
    let nodes = [1, 2].map(NodeId::from_u128);
    assert_eq!(
        check(|plan| plan.mtu = 1391),
        nodes.map(|node| format!("network {n1} has MTU 1391: node {node} can have 576 to 1390"))
    );
    assert_eq!(check(|plan| plan.mtu = 1279), [format!("network {n1} has MTU 1279: IPv6 needs 1280")]);
    let name = |plan: &mut NetworkPlan, container: (u32, Ipv4Addr)| {
        let zone = Arc::make_mut(&mut plan.zone);
        Arc::make_mut(&mut zone.apps[0]).types[0].containers[0] = container;
    };
    let expected = |index, address| {
        [format!("{index}.web.{app} of network {n1} leads to {address}, which its container does not have")]
    };
    assert_eq!(check(|plan| name(plan, (1, outside))), expected(1, outside));
    let other = Ipv4Addr::new(10, 240, 0, 3);
    assert_eq!(check(|plan| name(plan, (1, other))), expected(1, other), "another slot's address");
}

#[test]
fn nodes_that_share_or_are_missing_are_found() {
    let mut plan = plan();
    let two = NodeId::from_u128(2);
    let mut twin = node(2);
    (twin.underlay, twin.tunnel_address, twin.public_key) =
        (node(1).underlay, node(1).tunnel_address, node(1).public_key);
    plan.nodes.insert(two, Arc::new(twin));
    let found: Vec<_> = plan.check(&Limits::default()).iter().map(ToString::to_string).collect();
    let one = NodeId::from_u128(1);
    let shared = [node(1).underlay.to_string(), node(1).tunnel_address.to_string(), node(1).public_key.to_string()];
    assert_eq!(found, shared.map(|shared| format!("nodes {one} and {two} both have {shared}")));
    plan.nodes.remove(&two);
    let found = plan.check(&Limits::default());
    assert_eq!(found.len(), 4, "two containers of each network");
    assert!(found.iter().all(|finding| matches!(finding, Finding::UnknownNode { node, .. } if *node == two)));
}

#[test]
fn a_peer_that_a_node_lacks_is_found() {
    let (one, two) = (NodeId::from_u128(1), NodeId::from_u128(2));
    let mut on_one = plan().node(one);
    assert!(Arc::make_mut(&mut on_one.peers).remove(&two).is_some());
    let found = on_one.check(&Limits::default());
    let containers = [11, 13, 21, 23].map(ContainerId::from_u128);
    let missing = |container: &ContainerId| {
        let network = network(container.as_u128() / 10);
        format!("container {container} of network {network} is on node {two}, which the plan does not have")
    };
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, containers.iter().map(missing).collect::<Vec<_>>());
    let mut on_two = plan().node(two);
    on_two.host = None;
    let found = on_two.check(&Limits::default());
    assert!(
        !found.is_empty()
            && found.iter().all(|finding| matches!(finding, Finding::UnknownNode { node, .. } if *node == two))
    );
}

#[test]
fn n9_what_a_kernel_cannot_hold_is_found() {
    let limits = Limits { neighbours: 3, bridge_ports: 1 };
    let found: Vec<_> = plan().check(&limits).iter().map(ToString::to_string).collect();
    let (one, two) = (NodeId::from_u128(1), NodeId::from_u128(2));
    let ports =
        |n| format!("node {two} would have 2 containers of network {}, and a bridge has ports for 1", network(n));
    let neighbours = format!("node {one} would have 4 neighbours, and its kernel holds 3: raise gc_thresh3");
    assert_eq!(found, [ports(1), ports(2), neighbours.clone()]);
    let on_one: Vec<_> = plan().node(one).check(&limits).iter().map(ToString::to_string).collect();
    assert_eq!(on_one, [neighbours]);
}
