//! Random changes, legal or not, against a naive model: lists that are searched from end to end, and every rule written down a
//! second time.

use core::fmt::Debug;
use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::select;

use super::{app, container, network, node, project, terms};
use crate::app::{App, Formation, Hosting};
use crate::container::{Phase, Slot};
use crate::name::Name;
use crate::net::PublicKey;
use crate::network::{Families, Ipv6Prefix, NetworkRequest};
use crate::node::{Availability, Node};
use crate::plan::Stage;
use crate::policy::Region;
use crate::ports::Ports;
use crate::project::Project;
use crate::state::planning::{Cached, ZoneCache};
use crate::state::{ApplyError, Change, NodePlanner, State};
use crate::subnet::Subnet;
use crate::time::Timestamp;

const ADDRESS_REST: Duration = Duration::from_secs(60);
const VNI_REST: Duration = Duration::from_secs(3600);
const DRAIN: Duration = Duration::from_secs(5);

/// The model. Ids are the numbers they are made of.
#[derive(Debug, Clone, Default)]
struct Model {
    clock: Timestamp,
    /// Project → its network.
    projects: BTreeMap<u128, Option<u128>>,
    networks: BTreeMap<u128, ModelNetwork>,
    apps: BTreeMap<u128, ModelApp>,
    nodes: BTreeMap<u128, Node>,
    containers: Vec<ModelContainer>,
    /// What was given back, and when: networks with their VNIs, and addresses with their network and slot.
    vnis: Vec<(u128, u32, Timestamp)>,
    addresses: Vec<(u128, Ipv4Addr, Slot, Timestamp)>,
}

#[derive(Debug, Clone)]
struct ModelNetwork {
    vni: u32,
    subnet: Subnet,
    dual_stack: bool,
}

#[derive(Debug, Clone)]
struct ModelApp {
    project: u128,
    hds: bool,
    /// Types as they are spelled, and counts.
    formation: Vec<(String, u32)>,
    /// Types in lower case, and the numbers of their TCP ports.
    ports: BTreeMap<String, u16>,
}

#[derive(Debug, Clone, PartialEq)]
struct ModelContainer {
    id: u128,
    network: u128,
    slot: Slot,
    node: u128,
    address: Ipv4Addr,
    phase: Phase,
}

impl ModelContainer {
    fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Draining { .. })
    }

    fn drain(&mut self, now: Timestamp) {
        if self.is_live() {
            self.phase = Phase::Draining { since: now };
        }
    }
}

impl Model {
    /// Whether the rules allow a change, room for VNIs and addresses aside.
    fn allows(&self, now: Timestamp, change: &Change) -> bool {
        let count = |of: &dyn Fn(&ModelContainer) -> bool| self.containers.iter().filter(|c| of(c)).count();
        let apps_in = |project: u128| self.apps.values().filter(|app| app.project == project).count();
        match change {
            Change::AddProject(new) => !self.projects.contains_key(&new.id.as_u128()),
            Change::RemoveProject(id) => self.projects.get(&id.as_u128()) == Some(&None) && apps_in(id.as_u128()) == 0,
            Change::EnablePrivateNetwork(request) => {
                let (project, network) = (request.project.as_u128(), request.network.as_u128());
                let rests = self.vnis.iter().any(|(of, _, since)| *of == network && now < since.after(VNI_REST));
                self.projects.get(&project) == Some(&None)
                    && !self.networks.contains_key(&network)
                    && !rests
                    && request.terms.is_some()
                    && apps_in(project) == 0
            }
            Change::DisablePrivateNetwork(id) => {
                self.projects.get(&id.as_u128()).is_some_and(Option::is_some) && apps_in(id.as_u128()) == 0
            }
            Change::AddApp(new) => {
                let known = self.projects.get(&new.project.as_u128());
                let hds = new.hosting == Hosting::HealthData;
                !self.apps.contains_key(&new.id.as_u128())
                    && known.is_some_and(|network| network.is_none() || !hds)
                    && new.ports.keys().all(|of_type| of_type.as_str().eq_ignore_ascii_case("web"))
            }
            Change::RemoveApp(id) => self.apps.contains_key(&id.as_u128()) && count(&|c| c.slot.app() == *id) == 0,
            Change::MoveApp { app, project } => {
                let to = self.projects.get(&project.as_u128());
                let moved = self.apps.get(&app.as_u128());
                let fits = |moved: &ModelApp| to.is_some_and(|network| network.is_none() || !moved.hds);
                moved.is_some_and(fits) && count(&|c| c.slot.app() == *app) == 0
            }
            Change::SetHosting { app, hosting } => self
                .apps
                .get(&app.as_u128())
                .is_some_and(|app| self.projects[&app.project].is_none() || *hosting == Hosting::Ordinary),
            Change::Scale { app, formation } => self.apps.get(&app.as_u128()).is_some_and(|app| {
                formation.types().all(|(given, _)| {
                    let known = app.formation.iter().find(|(known, _)| known.eq_ignore_ascii_case(given.as_str()));
                    known.is_none_or(|(known, _)| known == given.as_str()) && given.as_str() != "postdeploy"
                })
            }),
            Change::Undeclare { app, container_type } => {
                self.count_of(app.as_u128(), container_type.as_str()).is_some()
                    && count(&|c| c.slot.app() == *app && c.slot.container_type() == *container_type) == 0
            }
            Change::DeclarePorts { app, container_type, .. } => {
                self.count_of(app.as_u128(), container_type.as_str()).is_some()
            }
            Change::AddNode(new) => !self.nodes.contains_key(&new.id.as_u128()) && self.node_fits(new),
            Change::UpdateNode(new) => {
                let id = new.id.as_u128();
                let small = self
                    .containers
                    .iter()
                    .any(|c| c.node == id && self.networks[&c.network].dual_stack && new.underlay_mtu - 110 < 1280);
                let known = self.nodes.get(&id).is_some_and(|known| known.registration <= new.registration);
                known && self.node_fits(new) && !small
            }
            Change::RemoveNode(id) => self.nodes.contains_key(&id.as_u128()) && count(&|c| c.node == id.as_u128()) == 0,
            Change::SetAvailability { node, .. } => self.nodes.contains_key(&node.as_u128()),
            Change::OfferKey { node, public_key } => {
                self.nodes.contains_key(&node.as_u128()) && !self.keys().any(|(_, key)| key == *public_key)
            }
            Change::PromoteKey(id) => self.nodes.get(&id.as_u128()).is_some_and(|node| node.next_public_key.is_some()),
            Change::Start { container, slot, node } => {
                let app = self.apps.get(&slot.app().as_u128());
                let network = app.and_then(|app| self.projects[&app.project]);
                let declared = self.count_of(slot.app().as_u128(), slot.container_type().as_str());
                network.is_some_and(|network| self.has_place(network, node.as_u128(), container.as_u128()))
                    && declared.is_some_and(|count| slot.index() <= count)
                    && count(&|c| c.slot == *slot && c.is_live()) == 0
            }
            Change::Replace { container, replaces, node } => self.find(replaces.as_u128()).is_some_and(|old| {
                old.phase == Phase::Ready
                    && count(&|c| c.slot == old.slot && c.phase == Phase::Starting) == 0
                    && self.has_place(old.network, node.as_u128(), container.as_u128())
            }),
            Change::Ready(id) => self.find(id.as_u128()).is_some_and(ModelContainer::is_live),
            Change::Stop(id) => self.find(id.as_u128()).is_some(),
            Change::Remove(id) => self
                .find(id.as_u128())
                .is_none_or(|found| matches!(found.phase, Phase::Draining { since } if since.after(DRAIN) <= now)),
            Change::Fail(_) => true,
        }
    }

    fn find(&self, id: u128) -> Option<&ModelContainer> {
        self.containers.iter().find(|c| c.id == id)
    }

    fn count_of(&self, app: u128, container_type: &str) -> Option<u32> {
        let formation = &self.apps.get(&app)?.formation;
        formation.iter().find(|(known, _)| known.eq_ignore_ascii_case(container_type)).map(|(_, count)| *count)
    }

    fn keys(&self) -> impl Iterator<Item = (u128, PublicKey)> + '_ {
        self.nodes.iter().flat_map(|(id, node)| {
            [Some(node.public_key), node.next_public_key].into_iter().flatten().map(|key| (*id, key))
        })
    }

    /// Whether a node's addresses and keys are nobody else's; the MTUs that are tried all suffice for IPv4.
    fn node_fits(&self, new: &Node) -> bool {
        let id = new.id.as_u128();
        let others = || self.nodes.values().filter(|other| other.id != new.id);
        let new_keys = [Some(new.public_key), new.next_public_key];
        new.next_public_key != Some(new.public_key)
            && others().all(|other| other.underlay != new.underlay && other.tunnel_address != new.tunnel_address)
            && self.keys().all(|(of, key)| of == id || !new_keys.contains(&Some(key)))
    }

    fn has_place(&self, network: u128, node: u128, container: u128) -> bool {
        let mtu = if self.networks[&network].dual_stack { 1280 } else { 576 };
        let fits = |node: &Node| node.availability == Availability::Open && node.underlay_mtu - 110 >= mtu;
        self.nodes.get(&node).is_some_and(fits) && self.find(container).is_none()
    }

    /// Makes a change that the rules allow; what `State` chose is taken from it.
    fn apply(&mut self, now: Timestamp, change: &Change, state: &State) {
        self.clock = now;
        match change {
            Change::AddProject(new) => drop(self.projects.insert(new.id.as_u128(), None)),
            Change::RemoveProject(id) => drop(self.projects.remove(&id.as_u128())),
            Change::EnablePrivateNetwork(request) => {
                let id = request.network.as_u128();
                let vni = state.network(request.network).unwrap().vni.get();
                let subnet = request.subnet.unwrap_or(Subnet::DEFAULT);
                let dual_stack = request.families == Families::DualStack;
                self.networks.insert(id, ModelNetwork { vni, subnet, dual_stack });
                self.projects.insert(request.project.as_u128(), Some(id));
            }
            Change::DisablePrivateNetwork(id) => {
                let id = self.projects.insert(id.as_u128(), None).flatten().unwrap();
                let gone = self.networks.remove(&id).unwrap();
                self.vnis.push((id, gone.vni, now));
                // Its addresses are another network's affair from now on.
                self.addresses.retain(|(network, ..)| *network != id);
            }
            Change::AddApp(new) => {
                let formation = new.formation.types().map(|(of_type, count)| (of_type.to_string(), count)).collect();
                let hds = new.hosting == Hosting::HealthData;
                let ports = new.ports.iter().filter_map(|(of_type, ports)| {
                    Some((of_type.as_str().to_lowercase(), ports.iter().next()?.number.get()))
                });
                let ports = ports.collect();
                self.apps.insert(new.id.as_u128(), ModelApp { project: new.project.as_u128(), hds, formation, ports });
            }
            Change::RemoveApp(id) => drop(self.apps.remove(&id.as_u128())),
            Change::MoveApp { app, project } => self.apps.get_mut(&app.as_u128()).unwrap().project = project.as_u128(),
            Change::SetHosting { app, hosting } => {
                self.apps.get_mut(&app.as_u128()).unwrap().hds = *hosting == Hosting::HealthData;
            }
            Change::Scale { app, formation } => {
                let scaled = &mut self.apps.get_mut(&app.as_u128()).unwrap().formation;
                for (of_type, count) in formation.types() {
                    scaled.retain(|(known, _)| known != of_type.as_str());
                    scaled.push((of_type.to_string(), count));
                    let beyond =
                        |slot: Slot| slot.app() == *app && slot.container_type() == *of_type && slot.index() > count;
                    self.containers.iter_mut().filter(|c| beyond(c.slot)).for_each(|c| c.drain(now));
                }
            }
            Change::Undeclare { app, container_type } => {
                let app = self.apps.get_mut(&app.as_u128()).unwrap();
                app.formation.retain(|(known, _)| !known.eq_ignore_ascii_case(container_type.as_str()));
                app.ports.remove(&container_type.as_str().to_lowercase());
            }
            Change::DeclarePorts { app, container_type, ports } => {
                let declared = &mut self.apps.get_mut(&app.as_u128()).unwrap().ports;
                let of_type = container_type.as_str().to_lowercase();
                match ports.iter().next() {
                    Some(port) => drop(declared.insert(of_type, port.number.get())),
                    None => drop(declared.remove(&of_type)),
                }
            }
            Change::AddNode(new) | Change::UpdateNode(new) => drop(self.nodes.insert(new.id.as_u128(), new.clone())),
            Change::RemoveNode(id) => drop(self.nodes.remove(&id.as_u128())),
            Change::SetAvailability { node, availability } => {
                self.nodes.get_mut(&node.as_u128()).unwrap().availability = *availability;
            }
            Change::OfferKey { node, public_key } => {
                self.nodes.get_mut(&node.as_u128()).unwrap().next_public_key = Some(*public_key);
            }
            Change::PromoteKey(id) => {
                let node = self.nodes.get_mut(&id.as_u128()).unwrap();
                node.public_key = node.next_public_key.take().unwrap();
            }
            Change::Start { container, node, .. } | Change::Replace { container, node, .. } => {
                let placed = state.container(*container).unwrap();
                let network = state.network_of_container(*container).unwrap().as_u128();
                let (id, node, phase) = (container.as_u128(), node.as_u128(), Phase::Starting);
                let (slot, address) = (placed.slot, placed.address);
                self.containers.push(ModelContainer { id, network, slot, node, address, phase });
            }
            Change::Ready(id) => {
                let slot = self.find(id.as_u128()).unwrap().slot;
                for c in self.containers.iter_mut().filter(|c| c.slot == slot) {
                    if c.id == id.as_u128() {
                        c.phase = Phase::Ready;
                    } else if c.phase == Phase::Ready {
                        c.drain(now);
                    }
                }
            }
            Change::Stop(id) => self.containers.iter_mut().filter(|c| c.id == id.as_u128()).for_each(|c| c.drain(now)),
            Change::Remove(id) | Change::Fail(id) => {
                for gone in self.containers.iter().filter(|c| c.id == id.as_u128()) {
                    self.addresses.push((gone.network, gone.address, gone.slot, now));
                }
                self.containers.retain(|c| c.id != id.as_u128());
            }
        }
    }

    /// What was just given out is in range, nobody else's, and rested.
    fn check_given(&self, now: Timestamp, change: &Change) -> Result<(), TestCaseError> {
        if let Change::EnablePrivateNetwork(request) = change {
            let vni = self.networks[&request.network.as_u128()].vni;
            prop_assert_eq!(self.networks.values().filter(|other| other.vni == vni).count(), 1, "a VNI twice");
            let rests = self.vnis.iter().any(|(_, of, since)| *of == vni && now < since.after(VNI_REST));
            prop_assert!((1..=0xff_ffff).contains(&vni) && !rests, "N8");
        }
        if let Change::Start { .. } | Change::Replace { .. } = change {
            let new = self.containers.last().unwrap();
            prop_assert!(self.networks[&new.network].subnet.ordinal(new.address).is_some(), "out of range");
            let same = self.containers.iter().filter(|c| (c.network, c.address) == (new.network, new.address));
            prop_assert_eq!(same.count(), 1, "an address twice");
            let last =
                self.addresses.iter().rev().find(|(of, address, ..)| (*of, *address) == (new.network, new.address));
            let early = last.is_some_and(|(.., slot, since)| *slot != new.slot && now < since.after(ADDRESS_REST));
            prop_assert!(!early, "N4: reused early");
        }
        Ok(())
    }

    /// Nothing is refused for want of an address while there is one that could be given.
    fn check_exhausted(&self, now: Timestamp, error: &ApplyError) -> Result<(), TestCaseError> {
        let (ApplyError::AddressesInUse { network, subnet } | ApplyError::AddressesResting { network, subnet, .. }) =
            error
        else {
            return Err(TestCaseError::fail(format!("the rules allow it, and it was refused: {error}")));
        };
        for address in (1..=subnet.capacity()).filter_map(|ordinal| subnet.address(ordinal)) {
            let of = |other: u128, at: Ipv4Addr| (other, at) == (network.as_u128(), address);
            let held = self.containers.iter().any(|c| of(c.network, c.address));
            let last = self.addresses.iter().rev().find(|(network, at, ..)| of(*network, *at));
            let rests = last.is_some_and(|(.., since)| now < since.after(ADDRESS_REST));
            prop_assert!(held || rests, "{} could have been given", address);
        }
        Ok(())
    }

    /// The plan says what the model says.
    fn check_plan(&self, state: &State) -> Result<(), TestCaseError> {
        let plan = state.plan();
        prop_assert_eq!(
            plan.networks.keys().map(|id| id.as_u128()).collect::<Vec<_>>(),
            self.networks.keys().copied().collect::<Vec<_>>()
        );
        for (id, model) in &self.networks {
            let planned = &plan.networks[&network(*id)];
            let members = || self.containers.iter().filter(|c| c.network == *id);
            let endpoints: BTreeSet<_> =
                members().map(|c| (c.address, container(c.id), node(c.node), c.slot)).collect();
            let found: Vec<_> = planned.endpoints.iter().map(|e| (e.address, e.container, e.node, e.slot())).collect();
            prop_assert_eq!(endpoints.into_iter().collect::<Vec<_>>(), found);
            let nodes: BTreeSet<_> = members().map(|c| node(c.node)).collect();
            prop_assert_eq!(nodes.into_iter().collect::<Vec<_>>(), planned.nodes.to_vec());
            let mtu = members().map(|c| self.nodes[&c.node].underlay_mtu - 110).min();
            prop_assert!(mtu.is_none_or(|mtu| mtu == planned.mtu), "M1");
            prop_assert_eq!(planned.vni.get(), model.vni);
            prop_assert_eq!(planned.ipv6, model.dual_stack.then(|| Ipv6Prefix::of_network(network(*id))));

            let mut names: BTreeMap<Name, BTreeSet<Ipv4Addr>> = BTreeMap::new();
            for c in members().filter(|c| c.phase == Phase::Ready) {
                let (app, of_type) = (c.slot.app(), c.slot.container_type());
                let one = names.entry(Name::container(network(*id), &c.slot)).or_default();
                prop_assert!(one.insert(c.address) && one.len() == 1, "D17: two containers have one name");
                names.entry(Name::of_type(network(*id), app, of_type)).or_default().insert(c.address);
                if of_type == crate::ContainerType::web() {
                    names.entry(Name::app(network(*id), app)).or_default().insert(c.address);
                }
            }
            for of_type in planned.zone.types() {
                let (app, label) = (of_type.app.as_u128(), of_type.container_type.as_str().to_lowercase());
                let ports: Vec<u16> = of_type.ports.iter().map(|port| port.number.get()).collect();
                let expected: Vec<u16> = self.apps[&app].ports.get(&label).copied().into_iter().collect();
                prop_assert_eq!(ports, expected);
            }
            let planned = planned.zone.names().into_iter().map(|(name, at)| (name, at.into_iter().collect()));
            prop_assert_eq!(names, planned.collect::<BTreeMap<_, _>>());
        }
        Ok(())
    }
}

fn new_node(n: u8, key: u8, mtu: u16, registration: u64, next: Option<u8>) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Node {
        underlay_mtu: mtu,
        registration,
        next_public_key: next.map(|key| PublicKey::new([key; 32])),
        ..Node::new(node(n.into()), "node".parse().unwrap(), underlay, tunnel, PublicKey::new([key; 32]))
    }
}

/// A TCP port, or none for 0.
fn one_port(number: u16) -> Ports {
    if number == 0 { Ports::default() } else { format!("{number}/tcp").parse().unwrap() }
}

/// Changes with few ids, so that most meet something.
fn changes() -> impl Strategy<Value = Change> {
    let projects = || (1u128..=3).prop_map(project);
    let apps = || (1u128..=3).prop_map(app);
    let nodes = || 1u8..=3;
    let node_ids = || (1u128..=4).prop_map(node);
    let containers = || (1u128..=14).prop_map(container);
    let types = || select(vec!["web", "WEB", "worker", "Worker", "postdeploy", "7"]);
    let formation =
        (types(), 0u32..=4).prop_map(|(of_type, count)| format!("{of_type}:{count}").parse::<Formation>().unwrap());
    let slots = (1u128..=3, select(vec!["web", "worker", "7"]), 1u32..=4)
        .prop_map(|(of, of_type, index)| Slot::new(app(of), of_type.parse().unwrap(), index).unwrap());
    let a_node = || {
        (nodes(), 1u8..=6, select(vec![1389, 1390, 1500]), 0u64..3, prop::option::of(1u8..=6))
            .prop_map(|(n, key, mtu, registration, next)| new_node(n, key, mtu, registration, next))
    };
    let request =
        (projects(), 1u128..=4, any::<bool>(), 0..20, 0..4).prop_map(|(project, id, dual, terms_given, subnet)| {
            let mut request = NetworkRequest::new(project, network(id), terms());
            request.families = if dual { Families::DualStack } else { Families::Ipv4 };
            request.subnet = (subnet > 0).then(|| "10.240.0.0/29".parse().unwrap());
            if terms_given == 0 {
                request.terms = None;
            }
            request
        });
    let hosting = || select(vec![Hosting::Ordinary, Hosting::Ordinary, Hosting::HealthData]);
    prop_oneof![
        2 => projects().prop_map(|id| Change::AddProject(Project::new(id, "p".parse().unwrap()))),
        1 => projects().prop_map(Change::RemoveProject),
        4 => request.prop_map(Change::EnablePrivateNetwork),
        1 => projects().prop_map(Change::DisablePrivateNetwork),
        4 => (apps(), projects(), hosting(), prop::option::weighted(0.3, (types(), 0u16..3))).prop_map(
            |(id, project, hosting, ports)| {
                let ports = ports.map(|(of_type, port)| (of_type.parse().unwrap(), one_port(port)));
                let ports = ports.into_iter().collect();
                Change::AddApp(App { hosting, ports, ..App::new(id, project, "a".parse().unwrap()) })
            }
        ),
        1 => apps().prop_map(Change::RemoveApp),
        1 => (apps(), projects()).prop_map(|(app, project)| Change::MoveApp { app, project }),
        1 => (apps(), hosting()).prop_map(|(app, hosting)| Change::SetHosting { app, hosting }),
        6 => (apps(), formation).prop_map(|(app, formation)| Change::Scale { app, formation }),
        1 => (apps(), types()).prop_map(|(app, of_type)| Change::Undeclare { app, container_type: of_type.parse().unwrap() }),
        2 => (apps(), types(), 0u16..3).prop_map(|(app, of_type, port)| Change::DeclarePorts {
            app,
            container_type: of_type.parse().unwrap(),
            ports: one_port(port),
        }),
        4 => a_node().prop_map(Change::AddNode),
        2 => a_node().prop_map(Change::UpdateNode),
        1 => node_ids().prop_map(Change::RemoveNode),
        1 => (node_ids(), select(vec![Availability::Open, Availability::Open, Availability::Draining]))
            .prop_map(|(node, availability)| Change::SetAvailability { node, availability }),
        1 => (node_ids(), 1u8..=6).prop_map(|(node, key)| Change::OfferKey { node, public_key: PublicKey::new([key; 32]) }),
        1 => node_ids().prop_map(Change::PromoteKey),
        16 => (containers(), slots, node_ids()).prop_map(|(container, slot, node)| Change::Start { container, slot, node }),
        4 => (containers(), containers(), node_ids())
            .prop_map(|(container, replaces, node)| Change::Replace { container, replaces, node }),
        10 => containers().prop_map(Change::Ready),
        3 => containers().prop_map(Change::Stop),
        3 => containers().prop_map(Change::Remove),
        4 => containers().prop_map(Change::Fail),
    ]
}

/// Steps of time that cross every rest, and some that go back.
fn seconds() -> impl Strategy<Value = i64> {
    prop_oneof![12 => Just(0), 3 => 1i64..10, 2 => 30i64..90, 1 => 1000i64..4000, 1 => -100i64..0]
}

/// A region to begin with, so that containers come soon.
fn begin() -> Vec<Change> {
    let mut changes =
        vec![Change::AddNode(new_node(1, 1, 1500, 0, None)), Change::AddNode(new_node(2, 2, 1500, 0, None))];
    for n in [1, 2] {
        let request = NetworkRequest {
            subnet: Some("10.240.0.0/29".parse().unwrap()),
            ..NetworkRequest::new(project(n), network(n), terms())
        };
        changes.push(Change::AddProject(Project::new(project(n), "p".parse().unwrap())));
        changes.push(Change::EnablePrivateNetwork(request));
        changes.push(Change::AddApp(App::new(app(n), project(n), "a".parse().unwrap())));
        changes.push(Change::Scale { app: app(n), formation: "web:4 worker:4".parse().unwrap() });
    }
    changes
}

/// Number of cases: `PN_MACHINE_CASES`, or enough to notice a defect while one works.
fn cases() -> u32 {
    std::env::var("PN_MACHINE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn state_equals_the_naive_model(steps in prop::collection::vec((seconds(), changes()), 0..120)) {
        let (mut state, mut model, mut clock) = (State::new(Region::default()), Model::default(), 0i64);
        let mut planners: Vec<_> = (1..=4).map(|n| NodePlanner::new(&state, node(n))).collect();
        let begin = begin().into_iter().map(|change| (0, change));
        for (n, (seconds, change)) in begin.chain(steps).enumerate() {
            clock = (clock + seconds).max(0);
            let told = Timestamp::from_millis(clock as u64 * 1000);
            // Time does not go back for the state.
            let now = told.max(model.clock);
            let allowed = model.allows(now, &change);
            let before = state.clone();
            let published = state.plan().zones();
            match state.apply(told, change.clone()) {
                Ok(generation) => {
                    prop_assert!(allowed, "{:?} was accepted", change);
                    prop_assert_eq!(generation, before.generation().next());
                    model.apply(now, &change, &state);
                    model.check_given(now, &change)?;
                }
                Err(error) => {
                    prop_assert_eq!(&state, &before, "a refused change changed the state");
                    if allowed {
                        model.check_exhausted(now, &error)?;
                    }
                }
            }
            model.check_plan(&state)?;
            check_slices(&state, &mut planners, n)?;
            check_meanwhile(&state, &published)?;
        }
    }
}

/// A node's plan is the same from its share, from the whole, kept up to date, and planned from nothing.
fn check_slices(state: &State, planners: &mut [NodePlanner], n: usize) -> Result<(), TestCaseError> {
    let (plan, planners_count) = (state.plan(), planners.len());
    for (index, planner) in planners.iter_mut().enumerate() {
        let id = node(index as u128 + 1);
        prop_assert_eq!(&plan.node(id), &state.node_plan(id), "a slice differs from the share");
        let from_share = State::load(Region::default(), state.generation(), state.share(id)).unwrap();
        prop_assert_eq!(&from_share.node_plan(id), &plan.node(id), "what a node knows is not enough, or too much");
        if n % planners_count == index {
            same_text(&from_share.node_plan(id), &plan.node(id))?;
        }
        // One planner catches up at once, the others ever more rarely.
        if n.is_multiple_of(index * index + 1) {
            prop_assert_eq!(planner.update(state), &plan.node(id), "a planner differs from a new plan");
        }
    }
    let loaded = State::load(Region::default(), state.generation(), state.records()).unwrap();
    prop_assert_eq!(&loaded, state, "a state is not the sum of its records");
    prop_assert_eq!(&loaded.plan(), &plan, "nor is its plan");
    same_text(&loaded.plan(), &plan)?;
    let mut forgetful = state.clone();
    for id in plan.networks.keys() {
        let state = forgetful.networks.get_mut(id).unwrap();
        (state.plan, state.zone) = (Cached::default(), ZoneCache::default());
    }
    prop_assert_eq!(state.zones(), plan.zones(), "zones by themselves differ");
    same_text(&forgetful.plan(), &plan)?;
    prop_assert_eq!(forgetful.plan(), plan, "a cached plan is stale");
    Ok(())
}

/// Plans are the same to the last octet: types that differ by case are equal, and their texts are not.
fn same_text(one: &impl Debug, other: &impl Debug) -> Result<(), TestCaseError> {
    prop_assert_eq!(format!("{:?}", one), format!("{:?}", other), "a plan is spelled otherwise");
    Ok(())
}

/// X4: meanwhile only names that were there before and stay, each with an address that its own slot still holds.
fn check_meanwhile(state: &State, published: &crate::ZoneSet) -> Result<(), TestCaseError> {
    for n in 1..=4 {
        let plan = state.node_plan(node(n));
        let meanwhile = plan.zones_meanwhile(published);
        prop_assert_eq!((meanwhile.generation, meanwhile.stage), (plan.generation, Stage::Meanwhile));
        for (id, zone) in &meanwhile.zones {
            let (before, after) = (&published.zones[id], &plan.networks[id]);
            for of_type in zone.types() {
                let was = before.of_type(of_type.app, &of_type.container_type).unwrap();
                let is = after.zone.of_type(of_type.app, &of_type.container_type).unwrap();
                for (index, address) in &of_type.containers {
                    prop_assert!(was.containers.contains(&(*index, *address)), "a name came early");
                    prop_assert!(is.containers.iter().any(|(named, _)| named == index), "a name stayed late");
                    let slot = Slot::new(of_type.app, of_type.container_type, *index).unwrap();
                    let holder = after.endpoint(*address).map(crate::Endpoint::slot);
                    prop_assert_eq!(holder, Some(slot), "a name leads to another slot");
                }
            }
        }
    }
    Ok(())
}
