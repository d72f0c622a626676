//! `State` against a naive reference model, and the rules that a table tells better.

#![expect(clippy::wildcard_enum_match_arm, reason = "the model looks at few of the changes and errors")]

use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::container_type::ContainerType;
use crate::name::Name;
use crate::net::PublicKey;
use crate::project::Terms;
use crate::subnet::Subnet;

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
    Node {
        id: node(n.into()),
        label: format!("node-{n}").parse().unwrap(),
        underlay: format!("192.0.2.{n}:51820").parse().unwrap(),
        tunnel_address: format!("100.64.0.{n}").parse().unwrap(),
        public_key: PublicKey::new([n; 32]),
        underlay_mtu: 1500,
    }
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
    let mut state = State::new(Region::default());
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
    let addresses: BTreeSet<Ipv4Addr> = state.containers(network(1)).map(|container| container.address).collect();
    assert_eq!(addresses.len(), 1022);
    assert_eq!(addresses.first(), Some(&Ipv4Addr::new(10, 240, 0, 1)));
    assert_eq!(addresses.last(), Some(&Ipv4Addr::new(10, 240, 3, 254)));
    let full = format!("private network {} is full: all 1022 addresses of 10.240.0.0/22 are in use", network(1));
    refused(&mut state, T0, start(1023, slot(1, "web", 1023), 1), &full);

    let later = T0.after(Duration::from_secs(100));
    state.apply(later, Change::Remove(container(5))).unwrap();
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
    let mut bad_node = new_node(4);
    bad_node.underlay_mtu = 685;
    let mut twin = new_node(4);
    twin.tunnel_address = new_node(2).tunnel_address;
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
        (
            start(2, slot(1, "cron", 1), 1),
            format!("slot {} has a type that its app does not declare: scale it first", slot(1, "cron", 1)),
        ),
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
    state.apply(T0, Change::Remove(container(1))).unwrap();
    assert_eq!(name(&state), Some(vec![address(&state, 2)]));
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
        Change::Remove(container(4)),
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
    assert_eq!(plan.zones_meanwhile(&plan.zones()), plan.zones(), "nothing changes, nothing vanishes");
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

/// The naive model: lists, searched from end to end.
#[derive(Debug, Clone, Default)]
struct Model {
    containers: Vec<ModelContainer>,
    /// Every address that was given back: network, address, slot and when, in that order.
    given_back: Vec<(u128, Ipv4Addr, Slot, Timestamp)>,
    workers: BTreeMap<u128, u32>,
}

#[derive(Debug, Clone)]
struct ModelContainer {
    id: ContainerId,
    network: u128,
    slot: Slot,
    node: u128,
    address: Ipv4Addr,
    named: bool,
    live: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Start { network: u128, worker: u32, node: u128 },
    Replace { pick: prop::sample::Index, node: u128 },
    Ready(prop::sample::Index),
    Stop(prop::sample::Index),
    Remove(prop::sample::Index),
    Scale { network: u128, workers: u32 },
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_index = any::<prop::sample::Index>;
    let step = prop_oneof![
        6 => (1u128..=2, 1u32..=9, 1u128..=3).prop_map(|(network, worker, node)| Step::Start { network, worker, node }),
        2 => (any_index(), 1u128..=3).prop_map(|(pick, node)| Step::Replace { pick, node }),
        5 => any_index().prop_map(Step::Ready),
        2 => any_index().prop_map(Step::Stop),
        3 => any_index().prop_map(Step::Remove),
        1 => (1u128..=2, 0u32..=9).prop_map(|(network, workers)| Step::Scale { network, workers }),
        2 => (0u64..90).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

impl Model {
    /// Makes the change where the rules allow it, with the address that `State` chose, and says whether they do.
    fn apply(&mut self, change: &Change, address: Option<Ipv4Addr>) -> bool {
        let known = |containers: &[ModelContainer], id| containers.iter().position(|c| c.id == id);
        match change {
            Change::Start { container, slot, node } => {
                let network = slot.app().as_u128();
                let taken = self.containers.iter().any(|c| c.slot == *slot && c.live);
                let allowed = !taken && slot.index() <= self.workers[&network];
                self.place(allowed, network, *container, *slot, node.as_u128(), address)
            }
            Change::Replace { container, replaces, node } => {
                let Some(old) = known(&self.containers, *replaces).map(|at| self.containers[at].clone()) else {
                    return false;
                };
                let starting = self.containers.iter().any(|c| c.slot == old.slot && c.live && !c.named);
                self.place(old.named && !starting, old.network, *container, old.slot, node.as_u128(), address)
            }
            Change::Ready(id) => {
                let Some(at) = known(&self.containers, *id).filter(|at| self.containers[*at].live) else {
                    return false;
                };
                let slot = self.containers[at].slot;
                for other in self.containers.iter_mut().filter(|c| c.slot == slot && c.named && c.id != *id) {
                    (other.named, other.live) = (false, false);
                }
                self.containers[at].named = true;
                true
            }
            Change::Stop(id) => {
                let Some(at) = known(&self.containers, *id) else {
                    return false;
                };
                (self.containers[at].named, self.containers[at].live) = (false, false);
                true
            }
            Change::Remove(id) => {
                self.containers.retain(|c| c.id != *id);
                true
            }
            Change::Scale { app, formation } => {
                let (network, workers) = (app.as_u128(), formation.count(&"worker".parse().unwrap()).unwrap());
                self.workers.insert(network, workers);
                for c in self.containers.iter_mut().filter(|c| c.network == network && c.slot.index() > workers) {
                    (c.named, c.live) = (false, false);
                }
                true
            }
            _ => unreachable!("the steps make no other change"),
        }
    }

    fn place(
        &mut self,
        allowed: bool,
        network: u128,
        id: ContainerId,
        slot: Slot,
        node: u128,
        address: Option<Ipv4Addr>,
    ) -> bool {
        if let Some(address) = address.filter(|_| allowed) {
            self.containers.push(ModelContainer { id, network, slot, node, address, named: false, live: true });
        }
        allowed
    }
}

/// The addresses of the small subnet that the proptest fills.
fn small_subnet() -> Subnet {
    "10.240.0.0/28".parse().unwrap()
}

fn small_networks() -> State {
    let mut state = State::new(Region::default());
    for n in [1, 2] {
        let request = NetworkRequest { subnet: Some(small_subnet()), ..enable(n) };
        let changes =
            [Change::AddProject(Project::new(project(n), "p".parse().unwrap())), Change::EnablePrivateNetwork(request)];
        for change in changes.into_iter().chain(add_app(n, n, "web:0 worker:9")) {
            state.apply(T0, change).unwrap();
        }
    }
    for n in [1, 2, 3] {
        state.apply(T0, Change::AddNode(new_node(n))).unwrap();
    }
    state
}

fn change_of(step: &Step, model: &Model, next: &mut u128) -> Option<Change> {
    let pick = |at: &prop::sample::Index| {
        (!model.containers.is_empty()).then(|| model.containers[at.index(model.containers.len())].id)
    };
    let mut fresh = || {
        *next += 1;
        container(*next)
    };
    Some(match step {
        Step::Start { network, worker, node: at } => {
            Change::Start { container: fresh(), slot: slot(*network, "worker", *worker), node: node(*at) }
        }
        Step::Replace { pick: at, node: on } => {
            Change::Replace { container: fresh(), replaces: pick(at)?, node: node(*on) }
        }
        Step::Ready(at) => Change::Ready(pick(at)?),
        Step::Stop(at) => Change::Stop(pick(at)?),
        Step::Remove(at) => Change::Remove(pick(at)?),
        Step::Scale { network, workers } => {
            Change::Scale { app: app(*network), formation: format!("worker:{workers}").parse().unwrap() }
        }
        Step::Wait(_) => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn state_equals_the_naive_model(steps in steps()) {
        let mut state = small_networks();
        let mut model = Model { workers: BTreeMap::from([(1, 9), (2, 9)]), ..Model::default() };
        let (mut now, mut next) = (T0, 0);
        for step in steps {
            if let Step::Wait(seconds) = step {
                now = now.after(Duration::from_secs(seconds));
            }
            let Some(change) = change_of(&step, &model, &mut next) else { continue };
            let before = state.clone();
            let result = state.apply(now, change.clone());
            let (new, gone) = match &change {
                Change::Start { container, .. } | Change::Replace { container, .. } => (Some(*container), None),
                Change::Remove(container) => (None, Some(*container)),
                _ => (None, None),
            };
            let address = new.and_then(|id| state.container(id)).map(|container| container.address);
            let removed = gone.and_then(|id| model.containers.iter().find(|c| c.id == id).cloned());
            let allowed = model.apply(&change, address);

            match result {
                Ok(_) => prop_assert!(allowed, "{change:?} was accepted"),
                Err(error) => {
                    prop_assert_eq!(&state, &before, "a refused change changed the state");
                    let exhausted = matches!(error, ApplyError::AddressesInUse { .. } | ApplyError::AddressesResting { .. });
                    prop_assert!(!allowed || exhausted, "{change:?} was refused: {error}");
                    if exhausted && allowed {
                        check_exhaustion(&error, &model, &change, now)?;
                    }
                }
            }
            if let Some(new) = address {
                check_address(&model, new, now)?;
            }
            if let Some(c) = removed {
                model.given_back.push((c.network, c.address, c.slot, now));
            }
            check_plan(&state, &model)?;
        }
    }
}

/// What was just given is in range, held by nobody else, and rested if another slot had it before.
fn check_address(model: &Model, address: Ipv4Addr, now: Timestamp) -> Result<(), TestCaseError> {
    let new = model.containers.last().expect("it was just added");
    prop_assert!(small_subnet().ordinal(address).is_some());
    let holders = model.containers.iter().filter(|c| c.network == new.network && c.address == address).count();
    prop_assert_eq!(holders, 1);
    let last = model.given_back.iter().rev().find(|(network, given, ..)| *network == new.network && *given == address);
    if let Some((_, _, slot, since)) = last {
        prop_assert!(*slot == new.slot || now >= since.after(Duration::from_secs(60)), "N4: reused too early");
    }
    Ok(())
}

/// Nothing is refused for want of addresses while the model sees one that could be given.
fn check_exhaustion(error: &ApplyError, model: &Model, change: &Change, now: Timestamp) -> Result<(), TestCaseError> {
    let (ApplyError::AddressesInUse { network, .. } | ApplyError::AddressesResting { network, .. }) = error else {
        unreachable!("the caller checked");
    };
    let network = network.as_u128();
    let places = matches!(change, Change::Start { .. } | Change::Replace { .. });
    prop_assert!(places);
    for ordinal in 1..=small_subnet().capacity() {
        let address = small_subnet().address(ordinal).unwrap();
        let held = model.containers.iter().any(|c| c.network == network && c.address == address);
        let last = model.given_back.iter().rev().find(|(of, given, ..)| *of == network && *given == address);
        let resting = last.is_some_and(|(.., since)| now < since.after(Duration::from_secs(60)));
        prop_assert!(held || resting, "{address} could have been given");
    }
    Ok(())
}

/// The plan says what the model says: endpoints, names, members, and the same slices either way.
fn check_plan(state: &State, model: &Model) -> Result<(), TestCaseError> {
    let plan = state.plan();
    for n in [1, 2] {
        let of_network = || model.containers.iter().filter(move |c| c.network == n);
        let planned = &plan.networks[&network(n)];
        let expected: BTreeSet<_> = of_network().map(|c| (c.address, c.id, node(c.node))).collect();
        let found: Vec<_> = planned.endpoints.iter().map(|e| (e.address, e.container, e.node)).collect();
        prop_assert_eq!(expected.into_iter().collect::<Vec<_>>(), found);
        let members: BTreeSet<_> = of_network().map(|c| node(c.node)).collect();
        prop_assert_eq!(members.into_iter().collect::<Vec<_>>(), planned.nodes.to_vec());
        let mut names: BTreeMap<Name, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for c in of_network().filter(|c| c.named) {
            names.entry(Name::container(network(n), &c.slot)).or_default().insert(c.address);
            names.entry(Name::of_type(network(n), app(n), "worker".parse().unwrap())).or_default().insert(c.address);
        }
        let planned: BTreeMap<_, BTreeSet<_>> =
            planned.zone.names().into_iter().map(|(name, addresses)| (name, addresses.into_iter().collect())).collect();
        prop_assert_eq!(names, planned);
    }
    for n in 1..=4 {
        prop_assert_eq!(plan.node(node(n)), state.node_plan(node(n)), "a slice differs from the share");
    }
    let mut forgetful = state.clone();
    for state in forgetful.networks.values_mut() {
        state.plan = Cached(OnceLock::new());
    }
    prop_assert_eq!(forgetful.plan(), plan, "a cached plan is stale");
    Ok(())
}
