//! The rules that a table or a story tells best; `machine` has all of them against a naive model.

mod machine;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::app::Hosting;
use crate::container::Slot;
use crate::container_type::ContainerType;
use crate::name::Name;
use crate::net::PublicKey;
use crate::network::{NetworkRequest, Terms};
use crate::node::Availability;
use crate::policy::Requirement;

const T0: Timestamp = Timestamp::ZERO;

fn project(n: u128) -> ProjectId {
    ProjectId::from_u128(n)
}

fn app(n: u128) -> AppId {
    AppId::from_u128(n)
}

fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

fn node(n: u128) -> NodeId {
    NodeId::from_u128(n)
}

fn container(n: u128) -> ContainerId {
    ContainerId::from_u128(n)
}

fn slot(n: u128, container_type: &str, index: u32) -> Slot {
    Slot::new(app(n), container_type.parse().unwrap(), index).unwrap()
}

fn terms() -> Terms {
    Terms { accepted_by: "ada".parse().unwrap(), version: "beta-1".parse().unwrap(), accepted_at: T0 }
}

fn new_node(n: u8) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Node::new(node(n.into()), format!("node-{n}").parse().unwrap(), underlay, tunnel, PublicKey::new([n; 32]))
}

fn add_app(n: u128, project_number: u128, formation: &str) -> [Change; 2] {
    let added = App::new(app(n), project(project_number), format!("app-{n}").parse().unwrap());
    [Change::AddApp(added), Change::Scale { app: app(n), formation: formation.parse().unwrap() }]
}

fn enable(n: u128) -> NetworkRequest {
    NetworkRequest::new(project(n), network(n), terms())
}

/// Two projects with a network and an app each, three nodes.
fn two_networks() -> State {
    two_networks_of(Region::default())
}

fn two_networks_of(region: Region) -> State {
    let mut state = State::new(region);
    let mut changes = Vec::new();
    for n in [1, 2] {
        changes.push(Change::AddProject(Project::new(project(n), format!("p{n}").parse().unwrap())));
        changes.push(Change::EnablePrivateNetwork(enable(n)));
        changes.extend(add_app(n, n, "web:2000 worker:3"));
    }
    changes.extend([1, 2, 3].map(|n| Change::AddNode(new_node(n))));
    for change in changes {
        state.apply(T0, change).unwrap();
    }
    state
}

fn start(n: u128, slot: Slot, node_number: u128) -> Change {
    Change::Start { container: container(n), slot, node: node(node_number) }
}

/// Applies what must be refused, and checks that it was, with this message, and that nothing changed.
#[track_caller]
fn refused(state: &mut State, now: Timestamp, change: Change, message: &str) {
    let before = state.clone();
    let error = state.apply(now, change).expect_err(message);
    assert_eq!(error.to_string(), message);
    assert_eq!(*state, before);
}

#[test]
fn a_22_gives_1022_distinct_addresses_and_then_an_error() {
    let mut state = two_networks();
    for n in 1..=1022 {
        state.apply(T0, start(n.into(), slot(1, "web", n), 1)).unwrap();
    }
    assert_eq!([1, 2, 3].map(|n| state.used_addresses(network(n))), [Some(1022), Some(0), None]);
    assert_eq!(state.app(app(1)).map(|app| app.id), Some(app(1)));
    let addresses: BTreeSet<Ipv4Addr> = state.containers(network(1)).map(|container| container.address).collect();
    assert_eq!(addresses.len(), 1022);
    assert_eq!(addresses.first(), Some(&Ipv4Addr::new(10, 240, 0, 1)));
    assert_eq!(addresses.last(), Some(&Ipv4Addr::new(10, 240, 3, 254)));
    let full = format!("private network {} is full: all 1022 addresses of 10.240.0.0/22 are in use", network(1));
    refused(&mut state, T0, start(1023, slot(1, "web", 1023), 1), &full);

    let later = T0.after(Duration::from_secs(100));
    state.apply(later, Change::Fail(container(5))).unwrap();
    let resting = format!(
        "private network {} has no address to give yet: those of 10.240.0.0/22 that are free rest until 160.000 s",
        network(1)
    );
    refused(&mut state, later, start(1023, slot(1, "web", 1023), 1), &resting);
    state.apply(later, start(1024, slot(1, "web", 5), 2)).unwrap();
    assert_eq!(state.container(container(1024)).unwrap().address, Ipv4Addr::new(10, 240, 0, 5), "N4: its own at once");
}

#[test]
fn n6_every_network_has_the_same_addresses() {
    let mut state = two_networks();
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    state.apply(T0, start(2, slot(2, "web", 1), 1)).unwrap();
    let [first, second] = [1, 2].map(|n| state.container(container(n)).unwrap().address);
    assert_eq!(first, second);
    assert_ne!(state.network(network(1)).unwrap().vni, state.network(network(2)).unwrap().vni);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut state = two_networks();
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    let (p1, n1, a1, c1) = (project(1), network(1), app(1), container(1));
    let bad_node = Node { underlay_mtu: 685, ..new_node(4) };
    let twin = Node { tunnel_address: new_node(2).tunnel_address, ..new_node(4) };
    let hds = App { hosting: Hosting::HealthData, ..App::new(app(9), p1, "x".parse().unwrap()) };
    let foreign = Slot::new(app(8), ContainerType::web(), 1).unwrap();
    for (change, message) in [
        (Change::AddProject(Project::new(p1, "x".parse().unwrap())), format!("project {p1} exists already")),
        (Change::RemoveProject(p1), format!("project {p1} has 1 apps: it must have none")),
        (Change::RemoveProject(project(7)), format!("project {} does not exist", project(7))),
        (Change::EnablePrivateNetwork(enable(1)), format!("project {p1} has private network {n1} enabled")),
        (Change::DisablePrivateNetwork(p1), format!("project {p1} has 1 apps: it must have none")),
        (
            Change::AddApp(hds),
            format!("app {} has health-data hosting (HDS), which private networks are closed to", app(9)),
        ),
        (Change::RemoveApp(a1), format!("app {a1} has 1 containers: it must have none")),
        (Change::RemoveApp(app(7)), format!("app {} does not exist", app(7))),
        (Change::Scale { app: a1, formation: "Web:1".parse().unwrap() }, format!("app {a1} cannot be scaled")),
        (Change::AddNode(new_node(1)), format!("node {} exists already", node(1))),
        (Change::UpdateNode(new_node(4)), format!("node {} does not exist", node(4))),
        (
            Change::AddNode(bad_node),
            format!(
                "node {} has underlay MTU 685, which leaves 575 octets to containers: at least 576 are needed",
                node(4)
            ),
        ),
        (Change::AddNode(twin), format!("nodes {} and {} cannot both have 100.64.0.2", node(4), node(2))),
        (Change::RemoveNode(node(1)), format!("node {} runs 1 containers: it must run none", node(1))),
        (
            start(2, slot(1, "web", 1), 2),
            format!("slot {} is filled by {c1}: stop it, or replace it", slot(1, "web", 1)),
        ),
        (start(1, slot(1, "web", 2), 2), format!("container {c1} exists already")),
        (start(2, slot(1, "web", 2), 9), format!("node {} does not exist", node(9))),
        (start(2, foreign, 1), format!("app {} does not exist", app(8))),
        (start(2, slot(1, "cron", 1), 1), format!("app {a1} does not declare the container type cron: scale it first")),
        (
            start(2, slot(1, "worker", 4), 1),
            format!("slot {} is beyond its app's formation, which has 3 of that type", slot(1, "worker", 4)),
        ),
        (
            Change::Replace { container: container(2), replaces: c1, node: node(1) },
            format!("container {c1} is not ready, so it cannot be replaced"),
        ),
        (Change::Ready(container(9)), format!("container {} does not exist", container(9))),
        (Change::Stop(container(9)), format!("container {} does not exist", container(9))),
    ] {
        refused(&mut state, T0, change, &message);
    }
}

/// Ports are declared alike with an app and later.
#[test]
fn ports_are_of_declared_types() {
    let mut state = two_networks();
    let of = |container_type: &str, ports: &str| App {
        ports: [(container_type.parse().unwrap(), ports.parse().unwrap())].into(),
        ..App::new(app(9), project(1), "x".parse().unwrap())
    };
    for ports in ["80/tcp", ""] {
        let message = format!("app {} does not declare the container type worker: scale it first", app(9));
        refused(&mut state, T0, Change::AddApp(of("worker", ports)), &message);
    }
    for (spelled, ports) in [("web", "80/tcp"), ("WEB", "80/tcp"), ("web", "")] {
        let (mut with, mut later) = (state.clone(), state.clone());
        let (container_type, declared) = (spelled.parse().unwrap(), ports.parse().unwrap());
        with.apply(T0, Change::AddApp(of(spelled, ports))).unwrap();
        later.apply(T0, Change::AddApp(App::new(app(9), project(1), "x".parse().unwrap()))).unwrap();
        later.apply(T0, Change::DeclarePorts { app: app(9), container_type, ports: declared }).unwrap();
        assert_eq!(format!("{:?}", with.app(app(9))), format!("{:?}", later.app(app(9))));
    }
}

#[test]
fn an_app_outside_a_private_network_starts_nothing_here() {
    let mut state = two_networks();
    state.apply(T0, Change::AddProject(Project::new(project(3), "p3".parse().unwrap()))).unwrap();
    for change in add_app(3, 3, "web:1") {
        state.apply(T0, change).unwrap();
    }
    let message = format!("project {} has no private network: enable it first", project(3));
    refused(&mut state, T0, start(1, slot(3, "web", 1), 1), &message);
    let message = format!("project {} has 1 apps: it must have none", project(3));
    refused(&mut state, T0, Change::EnablePrivateNetwork(enable(3)), &message);
    let without_terms = NetworkRequest { terms: None, ..enable(3) };
    state.apply(T0, Change::RemoveApp(app(3))).unwrap();
    let message = format!("the terms of private networking were not accepted for project {}", project(3));
    refused(&mut state, T0, Change::EnablePrivateNetwork(without_terms), &message);
    state.apply(T0, Change::EnablePrivateNetwork(enable(3))).unwrap();
}

#[test]
fn n8_a_freed_vni_is_not_given_again_soon() {
    let mut state = State::new(Region::default());
    state.apply(T0, Change::AddProject(Project::new(project(1), "p".parse().unwrap()))).unwrap();
    let mut seen = BTreeSet::new();
    for n in 1..=50 {
        let request = NetworkRequest::new(project(1), network(n), terms());
        state.apply(T0, Change::EnablePrivateNetwork(request)).unwrap();
        assert!(seen.insert(state.network_of(project(1)).unwrap().vni), "N8: given again at once");
        state.apply(T0, Change::DisablePrivateNetwork(project(1))).unwrap();
    }
}

#[test]
fn n8_a_network_id_rests_with_its_vni() {
    let mut state = State::new(Region::default());
    for n in [1, 2] {
        state.apply(T0, Change::AddProject(Project::new(project(n), "p".parse().unwrap()))).unwrap();
    }
    let request = |n| Change::EnablePrivateNetwork(NetworkRequest::new(project(n), network(1), terms()));
    state.apply(T0, request(1)).unwrap();
    state.apply(T0, Change::DisablePrivateNetwork(project(1))).unwrap();
    let message = format!("private network {} was disabled: its id cannot be used again until 3600.000 s", network(1));
    refused(&mut state, T0, request(2), &message);
    refused(&mut state, T0, request(1), &message);
    state.apply(T0.after(Duration::from_secs(3600)), request(2)).unwrap();
}

#[test]
fn n4_a_clock_that_goes_back_shortens_no_rest() {
    let mut state = two_networks();
    let at = |seconds: u64| Timestamp::from_millis(seconds * 1000);
    for n in 1..=1022 {
        state.apply(at(1000), start(n.into(), slot(1, "web", n), 1)).unwrap();
    }
    state.apply(at(900), Change::Fail(container(1))).unwrap();
    let error = state.apply(at(1000), start(2000, slot(1, "web", 1023), 1)).unwrap_err();
    assert!(matches!(error, ApplyError::AddressesResting { until, .. } if until == at(1060)), "{error}");
}

#[test]
fn a_subnet_holds_single_hosts_and_not_the_resolver() {
    let mut state = State::new(Region::default());
    state.apply(T0, Change::AddProject(Project::new(project(1), "p".parse().unwrap()))).unwrap();
    let request = NetworkRequest { subnet: Some("169.254.53.48/29".parse().unwrap()), ..enable(1) };
    let message = format!(
        "private network {} with 169.254.53.48/29 cannot have its resolver at 169.254.53.53: a single address outside of the subnet is needed",
        network(1)
    );
    refused(&mut state, T0, Change::EnablePrivateNetwork(request), &message);
    let policy = Policy { resolver: Ipv4Addr::new(224, 0, 0, 1), ..Policy::default() };
    let mut state = State::new(Region::with_policy(policy));
    state.apply(T0, Change::AddProject(Project::new(project(1), "p".parse().unwrap()))).unwrap();
    let error = state.apply(T0, Change::EnablePrivateNetwork(enable(1))).unwrap_err();
    assert!(matches!(error, ApplyError::Resolver { .. }), "{error}");
}

#[test]
fn nodes_of_two_families_share_no_network() {
    let mut state = two_networks();
    let v6 = |n: u16| SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n), 51820));
    state.apply(T0, Change::AddNode(Node { underlay: v6(4), ..new_node(4) })).unwrap();
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    let message = format!(
        "nodes {} and {} cannot both be in private network {}: one has IPv4 and the other IPv6 addresses",
        node(4),
        node(1),
        network(1)
    );
    refused(&mut state, T0, start(2, slot(1, "web", 2), 4), &message);
    state.apply(T0, start(3, slot(2, "web", 1), 4)).unwrap();
    state.apply(T0, start(4, slot(1, "web", 3), 2)).unwrap();
    let moved = Node { tunnel_address: IpAddr::V6("fd00::1".parse().unwrap()), ..new_node(1) };
    let error = state.apply(T0, Change::UpdateNode(moved)).unwrap_err();
    assert!(matches!(error, ApplyError::NodeFamilies { .. }), "{error}");
}

#[test]
fn a_node_has_addresses_that_packets_can_come_from_and_room_for_ip() {
    let mut state = two_networks();
    for underlay in ["192.0.2.4:0", "0.0.0.0:51820", "224.0.0.1:51820", "[::]:51820", "[ff02::1]:51820"] {
        let underlay = underlay.parse().unwrap();
        let error = state.apply(T0, Change::AddNode(Node { underlay, ..new_node(4) })).unwrap_err();
        assert_eq!(error, ApplyError::NodeUnderlay { node: node(4), underlay });
    }
    for address in ["0.0.0.0", "224.0.0.1", "::", "ff02::1"] {
        let address = address.parse().unwrap();
        let error = state.apply(T0, Change::AddNode(Node { tunnel_address: address, ..new_node(4) })).unwrap_err();
        assert_eq!(error, ApplyError::NodeTunnelAddress { node: node(4), address });
    }
    let small = |underlay_mtu| Change::AddNode(Node { underlay_mtu, ..new_node(4) });
    let message = format!(
        "node {} has underlay MTU 685, which leaves 575 octets to containers: at least 576 are needed",
        node(4)
    );
    refused(&mut state, T0, small(685), &message);
    state.apply(T0, small(686)).unwrap();
}

#[test]
fn a_policy_decides_whether_a_project_with_apps_may_become_private() {
    let with_app = |hosting, ordinary_hosting| {
        let mut policy = Policy::default();
        (policy.empty_project, policy.ordinary_hosting) = (Requirement::Optional, ordinary_hosting);
        let mut state = State::new(Region { policy });
        let added = App { hosting, ..App::new(app(1), project(1), "a".parse().unwrap()) };
        for change in [Change::AddProject(Project::new(project(1), "p".parse().unwrap())), Change::AddApp(added)] {
            state.apply(T0, change).unwrap();
        }
        state.apply(T0, Change::EnablePrivateNetwork(enable(1)))
    };
    assert!(with_app(Hosting::Ordinary, Requirement::Required).is_ok());
    assert!(with_app(Hosting::HealthData, Requirement::Optional).is_ok());
    let error = with_app(Hosting::HealthData, Requirement::Required).unwrap_err();
    assert_eq!(error, ApplyError::HealthData { app: app(1) });
}

#[test]
fn n8_the_id_of_a_disabled_network_rests_whatever_else_is_enabled() {
    let mut state = two_networks();
    state.apply(T0, Change::RemoveApp(app(1))).unwrap();
    state.apply(T0, Change::DisablePrivateNetwork(project(1))).unwrap();
    state.apply(T0, Change::AddProject(Project::new(project(3), "p".parse().unwrap()))).unwrap();
    state.apply(T0.after(Duration::from_secs(9)), Change::EnablePrivateNetwork(enable(3))).unwrap();
    let rested = T0.after(Region::default().policy.vni_rest);
    let until = Timestamp::from_millis(rested.as_millis() - 1);
    let error = state.apply(until, Change::EnablePrivateNetwork(enable(1))).unwrap_err();
    assert_eq!(error, ApplyError::NetworkResting { network: network(1), until: rested });
    state.apply(rested, Change::EnablePrivateNetwork(enable(1))).unwrap();
}

#[test]
fn m2_a_dual_stack_network_needs_1280_octets() {
    let mut state = two_networks();
    state.apply(T0, Change::AddProject(Project::new(project(3), "p".parse().unwrap()))).unwrap();
    let request = NetworkRequest { families: crate::Families::DualStack, ..enable(3) };
    state.apply(T0, Change::EnablePrivateNetwork(request)).unwrap();
    for change in add_app(3, 3, "web:9") {
        state.apply(T0, change).unwrap();
    }
    state.apply(T0, Change::AddNode(Node { underlay_mtu: 1389, ..new_node(4) })).unwrap();
    let message = format!(
        "node {} has underlay MTU 1389, which leaves 1279 octets to containers: at least 1280 are needed",
        node(4)
    );
    refused(&mut state, T0, start(1, slot(3, "web", 1), 4), &message);
    state.apply(T0, start(2, slot(1, "web", 1), 4)).unwrap();
    state.apply(T0, Change::UpdateNode(Node { underlay_mtu: 1390, ..new_node(4) })).unwrap();
    state.apply(T0, start(1, slot(3, "web", 1), 4)).unwrap();
    refused(&mut state, T0, Change::UpdateNode(Node { underlay_mtu: 1389, ..new_node(4) }), &message);
    assert_eq!(state.plan().networks[&network(3)].ipv6, Some(crate::Ipv6Prefix::of_network(network(3))));
}

#[test]
fn k3_a_key_is_offered_and_then_promoted() {
    let mut state = two_networks();
    let key = |n| PublicKey::new([n; 32]);
    let keys = |state: &State| state.node(node(1)).map(|node| (node.public_key, node.next_public_key)).unwrap();
    let offer = |n| Change::OfferKey { node: node(1), public_key: key(n) };
    refused(
        &mut state,
        T0,
        Change::PromoteKey(node(1)),
        &format!("node {} has not offered a next public key", node(1)),
    );
    refused(&mut state, T0, offer(2), &format!("nodes {} and {} cannot both have {}", node(1), node(2), key(2)));
    state.apply(T0, offer(11)).unwrap();
    state.apply(T0, offer(12)).unwrap();
    assert_eq!(keys(&state), (key(1), Some(key(12))));
    state.apply(T0, Change::OfferKey { node: node(2), public_key: key(11) }).expect("the withdrawn key is free");
    state.apply(T0, Change::PromoteKey(node(1))).unwrap();
    assert_eq!(keys(&state), (key(12), None));
    state.apply(T0, Change::OfferKey { node: node(3), public_key: key(1) }).expect("the retired key is free");
}

#[test]
fn l6_an_older_registration_is_fenced() {
    let mut state = two_networks();
    state.apply(T0, Change::UpdateNode(Node { registration: 2, ..new_node(1) })).unwrap();
    let message = format!("node {} is fenced: registration 1 is older than 2", node(1));
    refused(&mut state, T0, Change::UpdateNode(Node { registration: 1, ..new_node(1) }), &message);
    state.apply(T0, Change::SetAvailability { node: node(1), availability: Availability::Draining }).unwrap();
    let message = format!("node {} is draining and takes no new containers", node(1));
    refused(&mut state, T0, start(1, slot(1, "web", 1), 1), &message);
}

#[test]
fn l9_an_app_moves_when_it_has_no_container() {
    let mut state = two_networks();
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    let to = |n| Change::MoveApp { app: app(1), project: project(n) };
    refused(&mut state, T0, to(2), &format!("app {} has 1 containers: it must have none", app(1)));
    state.apply(T0, Change::Fail(container(1))).unwrap();
    state.apply(T0, to(2)).unwrap();
    let in_zone = |n| state.plan().networks[&network(n)].zone.types().any(|of_type| of_type.app == app(1));
    assert_eq!((in_zone(1), in_zone(2)), (false, true));
    state.apply(T0, Change::AddProject(Project::new(project(3), "p".parse().unwrap()))).unwrap();
    state.apply(T0, to(3)).unwrap();
    state.apply(T0, Change::SetHosting { app: app(1), hosting: Hosting::HealthData }).unwrap();
    let hds = format!("app {} has health-data hosting (HDS), which private networks are closed to", app(1));
    refused(&mut state, T0, to(1), &hds);
    refused(
        &mut state,
        T0,
        Change::SetHosting { app: app(2), hosting: Hosting::HealthData },
        &hds.replace(&app(1).to_string(), &app(2).to_string()),
    );
}

#[test]
fn types_are_declared_reserved_and_undeclared() {
    let mut state = two_networks();
    let scale = |formation: &str| Change::Scale { app: app(1), formation: formation.parse().unwrap() };
    let undeclare = |text: &str| Change::Undeclare { app: app(1), container_type: text.parse().unwrap() };
    let message =
        format!("app {} cannot have containers of type postdeploy, which the platform keeps for itself", app(1));
    refused(&mut state, T0, scale("postdeploy:1"), &message);
    state.apply(T0, scale("cron:1")).unwrap();
    state.apply(T0, start(1, slot(1, "CRON", 1), 1)).unwrap();
    assert_eq!(state.container(container(1)).unwrap().slot.to_string(), format!("1.cron.{}", app(1)), "as declared");
    refused(
        &mut state,
        T0,
        undeclare("cron"),
        &format!("app {} has 1 containers of type cron: it must have none", app(1)),
    );
    refused(
        &mut state,
        T0,
        undeclare("x"),
        &format!("app {} does not declare the container type x: scale it first", app(1)),
    );
    state.apply(T0, Change::Fail(container(1))).unwrap();
    state.apply(T0, undeclare("cron")).unwrap();
    let policy = Policy { types: crate::TypeProfile::Strict, ..Policy::default() };
    let mut strict = State::new(Region::with_policy(policy));
    strict.apply(T0, Change::AddProject(Project::new(project(1), "p".parse().unwrap()))).unwrap();
    for change in add_app(1, 1, "worker1:1") {
        strict.apply(T0, change).unwrap();
    }
    let message = format!(
        "app {} cannot have containers of type my-app-backend: this region takes 1 to 24 letters and digits",
        app(1)
    );
    refused(&mut strict, T0, scale("my-app-backend:1"), &message);
}

#[test]
fn names_and_environment_are_the_products() {
    let mut state = two_networks();
    for (n, container_type, index) in [(1, "web", 1), (2, "web", 2), (3, "worker", 3), (4, "worker", 1)] {
        state.apply(T0, start(n, slot(1, container_type, index), 1)).unwrap();
        state.apply(T0, Change::Ready(container(n))).unwrap();
    }
    let under = format!("{}.{}.private-network.internal", app(1), network(1));
    let names: Vec<_> = state.domain_names(app(1)).iter().map(Name::to_string).collect();
    let expected =
        ["", "web.", "1.web.", "2.web.", "worker.", "1.worker.", "3.worker."].map(|form| format!("{form}{under}"));
    assert_eq!(names, expected);
    assert_eq!(state.domain_names(app(2)), []);
    assert_eq!(state.domain_names(app(9)), []);
    let environment = state.environment(container(3)).unwrap();
    assert_eq!(
        environment.map(|(name, value)| format!("{name}={value}")),
        [
            format!("SCALINGO_PRIVATE_NETWORK_ID={}", network(1)),
            format!("SCALINGO_PRIVATE_HOSTNAME=3.worker.{under}."),
            format!("SCALINGO_APPLICATION_ID={}", app(1)),
        ]
    );
    assert_eq!(state.environment(container(9)), None);
}

#[test]
fn a_region_names_its_variables() {
    let policy = Policy { environment_prefix: "ACME".parse().unwrap(), ..Policy::default() };
    let mut state = two_networks_of(Region::with_policy(policy));
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    let names = state.environment(container(1)).unwrap().map(|(name, _)| name);
    assert_eq!(names, ["ACME_PRIVATE_NETWORK_ID", "ACME_PRIVATE_HOSTNAME", "ACME_APPLICATION_ID"]);
}

/// Who accepted which terms, and when, is told by the network and by its record.
#[test]
fn accepted_terms_are_recorded() {
    let mut state = State::new(Region::default());
    let given = Terms {
        accepted_by: "ada@example.com".parse().unwrap(),
        version: "beta-2".parse().unwrap(),
        accepted_at: Timestamp::from_millis(1_790_000_000_123),
    };
    state.apply(T0, Change::AddProject(Project::new(project(1), "p".parse().unwrap()))).unwrap();
    let request = NetworkRequest { terms: Some(given.clone()), ..enable(1) };
    state.apply(T0.after(Duration::from_secs(9)), Change::EnablePrivateNetwork(request)).unwrap();
    let loaded = State::load(Region::default(), state.generation(), state.records()).unwrap();
    for state in [&state, &loaded] {
        let recorded = state.network_of(project(1)).unwrap().terms.as_ref().unwrap();
        assert_eq!(recorded, &given);
        assert_eq!((recorded.accepted_by.as_str(), recorded.version.as_str()), ("ada@example.com", "beta-2"));
        assert_eq!(recorded.accepted_at.as_millis(), 1_790_000_000_123);
    }
}

#[test]
fn a_planner_that_missed_too_much_starts_again() {
    let mut state = two_networks();
    let mut planner = NodePlanner::new(&state, node(1));
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    for n in 0..5000 {
        let moved = Node { underlay_mtu: 1400 + n % 2, ..new_node(2) };
        state.apply(T0, Change::UpdateNode(moved)).unwrap();
    }
    assert_eq!(*planner.update(&state), state.node_plan(node(1)));
    assert_eq!(planner.plan().networks.len(), 1);
}

#[test]
fn d17_a_replacement_takes_the_name_over_at_once() {
    let mut state = two_networks();
    let name = |state: &State| {
        let names = state.node_plan(node(1)).networks[&network(1)].zone.names();
        let ours = Name::container(network(1), &slot(1, "web", 1));
        names.into_iter().find(|(name, _)| *name == ours).map(|(_, addresses)| addresses)
    };
    let address = |state: &State, n| state.container(container(n)).unwrap().address;
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    assert_eq!(name(&state), None, "starting has no name");
    state.apply(T0, Change::Ready(container(1))).unwrap();
    assert_eq!(name(&state), Some(vec![address(&state, 1)]));

    let replace = Change::Replace { container: container(2), replaces: container(1), node: node(1) };
    state.apply(T0, replace).unwrap();
    assert_ne!(address(&state, 2), address(&state, 1));
    assert_eq!(name(&state), Some(vec![address(&state, 1)]));
    let again = Change::Replace { container: container(3), replaces: container(1), node: node(1) };
    let message = format!("slot {} is filled by {}: stop it, or replace it", slot(1, "web", 1), container(2));
    refused(&mut state, T0, again, &message);

    state.apply(T0, Change::Ready(container(2))).unwrap();
    assert_eq!(name(&state), Some(vec![address(&state, 2)]));
    assert_eq!(state.container(container(1)).unwrap().phase, Phase::Draining { since: T0 });
    assert_eq!(state.node_plan(node(1)).networks[&network(1)].endpoints.len(), 2, "draining keeps its route");
    let message = format!("container {} is draining and cannot be ready again", container(1));
    refused(&mut state, T0, Change::Ready(container(1)), &message);
    let message = format!("container {} has to drain until 5.000 s", container(1));
    refused(&mut state, T0, Change::Remove(container(1)), &message);
    let message = format!("container {} is live: stop it first, or say that it failed", container(2));
    refused(&mut state, T0, Change::Remove(container(2)), &message);
    let later = T0.after(Duration::from_secs(5));
    assert_eq!(state.drained(network(1), later).collect::<Vec<_>>(), [container(1)]);
    state.apply(later, Change::Remove(container(1))).unwrap();
    state.apply(later, Change::Remove(container(1))).expect("L8: gone is gone");
    assert_eq!(name(&state), Some(vec![address(&state, 2)]));
}

/// Caches may know a name for as long as its TTL, whatever else a region says of draining.
#[test]
fn what_lost_its_name_drains_for_the_ttl_at_least() {
    for (drain, ttl, expected) in [(5, 5, 5), (5, 60, 60), (0, 3, 3), (30, 5, 30), (0, 0, 0)] {
        let [drain_for, ttl_for] = [drain, ttl].map(Duration::from_secs);
        let policy = Policy { drain: drain_for, ttl: ttl_for, ..Policy::default() };
        let mut state = two_networks_of(Region::with_policy(policy));
        state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
        state.apply(T0, Change::Ready(container(1))).unwrap();
        state.apply(T0, Change::Stop(container(1))).unwrap();
        let until = T0.after(Duration::from_secs(expected));
        if let Some(before) = until.as_millis().checked_sub(1).map(Timestamp::from_millis) {
            assert_eq!(state.drained(network(1), before).count(), 0, "{drain} {ttl}");
            let message = format!("container {} has to drain until {until}", container(1));
            refused(&mut state, before, Change::Remove(container(1)), &message);
        }
        assert_eq!(state.drained(network(1), until).collect::<Vec<_>>(), [container(1)], "{drain} {ttl}");
        state.apply(until, Change::Remove(container(1))).unwrap();
    }
}

#[test]
fn x4_meanwhile_no_name_comes_early_goes_late_or_is_ever_without_an_address() {
    let mut state = two_networks();
    for n in 1..=4 {
        state.apply(T0, start(n.into(), slot(1, "web", n), 1)).unwrap();
        state.apply(T0, Change::Ready(container(n.into()))).unwrap();
    }
    let published = state.node_plan(node(1)).zones();
    let addresses = [1, 2, 3, 4].map(|n| state.container(container(n)).unwrap().address);
    // 1 stays, 2 is replaced, 3 stops, 4 breaks and its slot is filled again, 5 is new.
    for change in [
        Change::Replace { container: container(12), replaces: container(2), node: node(1) },
        Change::Ready(container(12)),
        Change::Stop(container(3)),
        start(7, slot(1, "worker", 1), 1),
        Change::Fail(container(4)),
        start(14, slot(1, "web", 4), 2),
        Change::Ready(container(14)),
        start(5, slot(1, "web", 5), 2),
        Change::Ready(container(5)),
        start(6, slot(2, "web", 1), 1),
        Change::Ready(container(6)),
    ] {
        state.apply(T0, change).unwrap();
    }
    let plan = state.node_plan(node(1));
    let meanwhile = plan.zones_meanwhile(&published);
    assert_eq!(meanwhile.generation, plan.generation);
    assert_eq!(meanwhile.zones.keys().collect::<Vec<_>>(), [&network(1)], "the other network is yet to come");
    let web = meanwhile.zones[&network(1)].of_type(app(1), &ContainerType::web()).unwrap();
    // 4 got the address of its slot back, so it leads somewhere all the time.
    assert_eq!(*web.containers, [(1, addresses[0]), (2, addresses[1]), (4, addresses[3])]);
    assert_eq!(plan.zones_meanwhile(&plan.zones()).zones, plan.zones().zones, "nothing changes, nothing vanishes");
}

#[test]
fn x4_meanwhile_no_name_leads_to_the_container_that_got_its_address() {
    let mut state = State::new(Region::default());
    let six = NetworkRequest { subnet: Some("10.9.0.0/29".parse().unwrap()), ..enable(1) };
    let setup =
        [Change::AddProject(Project::new(project(1), "p1".parse().unwrap())), Change::EnablePrivateNetwork(six)];
    let nodes = [1, 2].map(|n| Change::AddNode(new_node(n)));
    for change in setup.into_iter().chain(add_app(1, 1, "web:10")).chain(nodes) {
        state.apply(T0, change).unwrap();
    }
    let start_ready = |state: &mut State, now, n: u32, node| {
        state.apply(now, start(n.into(), slot(1, "web", n), node)).unwrap();
        state.apply(now, Change::Ready(container(n.into()))).unwrap();
        state.container(container(n.into())).unwrap().address
    };
    let first = start_ready(&mut state, T0, 1, 1);
    // Node 2 learns this, and then nothing for two minutes, in which the address goes from slot 1 to slot 7.
    let other = start_ready(&mut state, T0, 2, 2);
    let published = state.node_plan(node(2)).zones();
    state.apply(T0, Change::Fail(container(1))).unwrap();
    let rested = T0.after(Duration::from_secs(60));
    (3..7).for_each(|n| assert_ne!(start_ready(&mut state, rested, n, 1), first));
    assert_eq!(start_ready(&mut state, rested, 7, 1), first);
    state.apply(rested, Change::Fail(container(3))).unwrap();
    let second = start_ready(&mut state, rested.after(Duration::from_secs(60)), 1, 1);
    assert_ne!(second, first);

    let plan = state.node_plan(node(2));
    let meanwhile = plan.zones_meanwhile(&published);
    let web = meanwhile.zones[&network(1)].of_type(app(1), &ContainerType::web()).unwrap();
    assert_eq!(*web.containers, [(2, other)], "slot 1's old address is slot 7's");
}

#[test]
fn scaling_in_withdraws_the_names_beyond() {
    let mut state = two_networks();
    for n in 1..=3 {
        state.apply(T0, start(n.into(), slot(1, "worker", n), 1)).unwrap();
        state.apply(T0, Change::Ready(container(n.into()))).unwrap();
    }
    state.apply(T0, Change::Scale { app: app(1), formation: "worker:1".parse().unwrap() }).unwrap();
    let phases = [1, 2, 3].map(|n| state.container(container(n)).unwrap().phase);
    assert_eq!(phases, [Phase::Ready, Phase::Draining { since: T0 }, Phase::Draining { since: T0 }]);
    state.apply(T0, Change::Scale { app: app(1), formation: "worker:2".parse().unwrap() }).unwrap();
    state.apply(T0, start(9, slot(1, "worker", 2), 1)).unwrap();
}

#[test]
fn m1_the_mtu_is_the_smallest_of_the_nodes() {
    let mut state = two_networks();
    let mtu = |state: &State| state.plan().networks[&network(1)].mtu;
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    assert_eq!(mtu(&state), 1390);
    state.apply(T0, Change::AddNode(Node { underlay_mtu: 1400, ..new_node(4) })).unwrap();
    assert_eq!(mtu(&state), 1390, "a node without its containers does not count");
    state.apply(T0, start(2, slot(1, "web", 2), 4)).unwrap();
    assert_eq!(mtu(&state), 1290);
    state.apply(T0, Change::UpdateNode(Node { underlay_mtu: 9000, ..new_node(4) })).unwrap();
    assert_eq!(mtu(&state), 1390);
}

#[test]
fn a_plan_shares_what_did_not_change() {
    let mut state = two_networks();
    state.apply(T0, start(1, slot(1, "web", 1), 1)).unwrap();
    state.apply(T0, start(2, slot(2, "web", 1), 1)).unwrap();
    let before = state.plan();
    state.apply(T0, start(3, slot(2, "web", 2), 1)).unwrap();
    let after = state.plan();
    let shared = |n| Arc::ptr_eq(&before.networks[&network(n)], &after.networks[&network(n)]);
    assert!(shared(1) && !shared(2));
}

#[test]
fn l3_a_plan_can_keep_networks_that_it_would_remove() {
    let mut state = two_networks();
    for (n, of, on) in [(1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 3)] {
        state.apply(T0, start(n, slot(of, "web", u32::try_from(n).unwrap()), on)).unwrap();
    }
    let old = state.node_plan(node(1));
    for gone in [1, 2] {
        state.apply(T0, Change::Fail(container(gone))).unwrap();
    }
    let mut moved = new_node(3);
    moved.underlay.set_port(51_821);
    state.apply(T0, Change::UpdateNode(moved.clone())).unwrap();
    let new = state.node_plan(node(1));
    assert_eq!((old.networks.len(), new.networks.len()), (2, 1));

    let kept = new.keeping(&old, |id| id == network(1));
    assert_eq!(kept.generation, new.generation);
    assert_eq!(kept.networks[&network(1)], old.networks[&network(1)]);
    assert_eq!(kept.networks[&network(2)], new.networks[&network(2)]);
    assert_eq!(kept.peers.keys().copied().collect::<Vec<_>>(), [node(2), node(3)]);
    assert_eq!(*kept.peers[&node(3)], moved, "a node that both know is as the newer plan says");
    assert_eq!(kept.check(&crate::Limits::default()), []);

    assert_eq!(new.keeping(&old, |_| false), new);
    assert_eq!(old.keeping(&new, |id| id == network(1)).networks.len(), 1, "one that the other lacks is left out");
    let nothing = crate::NodePlan::empty(node(1), state.generation().next());
    let all = nothing.keeping(&old, |_| true);
    assert_eq!((all.networks, all.host), (old.networks.clone(), old.host.clone()));
    assert_eq!(nothing.keeping(&nothing, |_| true), nothing);
    assert_eq!(nothing.keeping(&old, |_| false), nothing);
}
