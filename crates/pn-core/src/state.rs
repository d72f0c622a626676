//! The whole model as one value, changed by [`State::apply`] only.

mod change;
mod containers;
mod error;
mod index;
mod loading;
mod network;
mod nodes;
mod planner;
mod planning;
mod projects;
mod table;

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};

pub use self::change::Change;
pub use self::error::ApplyError;
use self::index::{Index, Place};
use self::network::{Member, NetworkState};
use self::nodes::NodeState;
pub use self::planner::NodePlanner;
use self::table::{Table, Unordered};
use crate::alloc::{Pool, Reuse};
use crate::app::App;
use crate::container::{Container, Phase};
use crate::id::{AppId, ContainerId, NetworkId, NodeId, ProjectId};
use crate::name::Name;
use crate::net::{PublicKey, Vni};
use crate::network::Network;
use crate::node::Node;
use crate::plan::Generation;
use crate::policy::{Policy, Region};
use crate::project::Project;
use crate::time::Timestamp;

/// Projects, apps, networks, containers and nodes of a region, and every address and VNI that was given out.
///
/// `apply` either makes a change and returns the new generation, or refuses it with the reason and leaves everything as it
/// was. Whatever it accepts can be realised: planning cannot fail.
///
/// ```
/// use pn_core::*;
///
/// let mut state = State::new(Region::default());
/// let now = Timestamp::from_millis(1_790_000_000_000);
/// let (project, network, api, node) =
///     (ProjectId::from_u128(1), NetworkId::from_u128(2), AppId::from_u128(3), NodeId::from_u128(4));
/// let terms = Terms { accepted_by: "ada@example.com".parse()?, version: "beta-1".parse()?, accepted_at: now };
///
/// state.apply(now, Change::AddProject(Project::new(project, "shop".parse()?)))?;
/// state.apply(now, Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)))?;
/// state.apply(now, Change::AddApp(App::new(api, project, "api".parse()?)))?;
/// state.apply(now, Change::Scale { app: api, formation: "web:0 my-app-backend:2".parse()? })?;
/// let (underlay, tunnel) = ("192.0.2.10:51820".parse()?, "100.64.0.1".parse()?);
/// let key = PublicKey::new([1; 32]);
/// state.apply(now, Change::AddNode(Node::new(node, "node-1".parse()?, underlay, tunnel, key)))?;
/// let slot = Slot::new(api, "my-app-backend".parse()?, 1)?;
/// let container = ContainerId::from_u128(5);
/// state.apply(now, Change::Start { container, slot, node })?;
/// state.apply(now, Change::Ready(container))?;
///
/// let plan = state.node_plan(node);
/// assert_eq!(plan.networks[&network].mtu, 1390);
/// assert_eq!(state.container(container).unwrap().address.to_string(), "10.240.0.1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    policy: Policy,
    generation: Generation,
    /// When the last change was accepted.
    clock: Clock,
    projects: Table<ProjectId, ProjectState>,
    apps: Table<AppId, App>,
    networks: Table<NetworkId, Box<NetworkState>>,
    networks_by_vni: Unordered<Vni, NetworkId>,
    containers: Index,
    nodes: Table<NodeId, NodeState>,
    underlays: BTreeMap<SocketAddr, NodeId>,
    tunnel_addresses: BTreeMap<IpAddr, NodeId>,
    /// Keys that nodes have or offer.
    public_keys: BTreeMap<PublicKey, NodeId>,
    vnis: Pool<NetworkId>,
    log: planning::Log,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ProjectState {
    project: Project,
    network: Option<NetworkId>,
    apps: BTreeSet<AppId>,
}

/// A moment that is not recorded by itself, so it does not count when states are compared: what it is there for, that recorded
/// moments do not go back, follows from them.
#[derive(Debug, Clone, Copy)]
struct Clock(Timestamp);

impl PartialEq for Clock {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Clock {}

impl State {
    /// Makes the empty state of a region.
    #[must_use]
    pub fn new(region: Region) -> Self {
        let vnis = Pool::new(region.policy.last_vni.get(), region.policy.vni_rest, Reuse::InTurn);
        Self {
            policy: region.policy,
            generation: Generation::ZERO,
            clock: Clock(Timestamp::ZERO),
            projects: Table::default(),
            apps: Table::default(),
            networks: Table::default(),
            networks_by_vni: Unordered::default(),
            containers: Index::default(),
            nodes: Table::default(),
            underlays: BTreeMap::new(),
            tunnel_addresses: BTreeMap::new(),
            public_keys: BTreeMap::new(),
            vnis,
            log: planning::Log::default(),
        }
    }

    /// Makes a change and returns the generation it led to.
    ///
    /// # Errors
    /// An [`ApplyError`] that names what stands in the way; the state is then as it was.
    pub fn apply(&mut self, now: Timestamp, change: Change) -> Result<Generation, ApplyError> {
        let now = now.max(self.clock.0);
        // What is touched is noted with the generation that the change leads to.
        let next = self.generation.next();
        if let Change::Start { container, .. } | Change::Replace { container, .. } = &change {
            self.containers.prefetch(*container);
        }
        match change {
            Change::AddProject(project) => self.add_project(project)?,
            Change::RemoveProject(project) => self.remove_project(project)?,
            Change::EnablePrivateNetwork(request) => self.enable_private_network(now, request)?,
            Change::DisablePrivateNetwork(project) => self.disable_private_network(now, project)?,
            Change::AddApp(app) => self.add_app(app)?,
            Change::RemoveApp(app) => self.remove_app(app)?,
            Change::MoveApp { app, project } => self.move_app(app, project)?,
            Change::SetHosting { app, hosting } => self.set_hosting(app, hosting)?,
            Change::Scale { app, formation } => self.scale(now, app, &formation)?,
            Change::Undeclare { app, container_type } => self.undeclare(app, &container_type)?,
            Change::DeclarePorts { app, container_type, ports } => self.declare_ports(app, &container_type, ports)?,
            Change::AddNode(node) => self.add_node(node)?,
            Change::UpdateNode(node) => self.update_node(node)?,
            Change::RemoveNode(node) => self.remove_node(node)?,
            Change::SetAvailability { node, availability } => self.set_availability(node, availability)?,
            Change::OfferKey { node, public_key } => self.offer_key(node, public_key)?,
            Change::PromoteKey(node) => self.promote_key(node)?,
            Change::Start { container, slot, node } => self.start(now, container, slot, node)?,
            Change::Replace { container, replaces, node } => self.replace(now, container, replaces, node)?,
            Change::Ready(container) => self.ready(now, container)?,
            Change::Stop(container) => self.stop(now, container)?,
            Change::Remove(container) => self.remove(now, container)?,
            Change::Fail(container) => self.fail(now, container),
        }
        (self.generation, self.clock) = (next, Clock(now));
        Ok(next)
    }

    /// Returns the number of changes that led here.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the rules of the region.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns a project.
    #[must_use]
    pub fn project(&self, id: ProjectId) -> Option<&Project> {
        self.projects.get(&id).map(|state| &state.project)
    }

    /// Returns the projects, in the order of their ids.
    pub fn projects(&self) -> impl ExactSizeIterator<Item = &Project> {
        self.projects.values().map(|state| &state.project)
    }

    /// Returns the private network of a project, if it has one.
    #[must_use]
    pub fn network_of(&self, project: ProjectId) -> Option<&Network> {
        self.network(self.projects.get(&project)?.network?)
    }

    /// Returns an app.
    #[must_use]
    pub fn app(&self, id: AppId) -> Option<&App> {
        self.apps.get(&id)
    }

    /// Returns the apps, in the order of their ids.
    pub fn apps(&self) -> impl ExactSizeIterator<Item = &App> {
        self.apps.values()
    }

    /// Returns a private network.
    #[must_use]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(&id).map(|state| &state.network)
    }

    /// Returns the private networks, in the order of their ids.
    pub fn networks(&self) -> impl ExactSizeIterator<Item = &Network> {
        self.networks.values().map(|state| &state.network)
    }

    /// Returns how many addresses of a network its containers hold.
    #[must_use]
    pub fn used_addresses(&self, id: NetworkId) -> Option<u32> {
        self.networks.get(&id).map(|state| state.addresses.used())
    }

    /// Returns a container.
    #[must_use]
    pub fn container(&self, id: ContainerId) -> Option<Container> {
        let (state, member) = self.find(id)?;
        Some(state.container(member))
    }

    /// Returns the network of a container.
    #[must_use]
    pub fn network_of_container(&self, id: ContainerId) -> Option<NetworkId> {
        self.find(id).map(|(state, _)| state.network.id)
    }

    /// Finds a container and its network.
    fn find(&self, id: ContainerId) -> Option<(&NetworkState, &Member)> {
        let at = |place: Place| {
            let state = &self.networks[&self.networks_by_vni[&place.vni]];
            (&**state, state.member(place.ordinal))
        };
        self.containers.find(id, |place| at(place).1.id == id).map(at)
    }

    /// Returns the containers of a network, in the order of their addresses.
    pub fn containers(&self, network: NetworkId) -> impl Iterator<Item = Container> {
        let states = self.networks.get(&network).into_iter();
        states.flat_map(|state| state.members().iter().map(|member| state.container(member)))
    }

    /// Returns the containers of a network that have drained long enough to be removed.
    pub fn drained(&self, network: NetworkId, now: Timestamp) -> impl Iterator<Item = ContainerId> {
        let drained = move |container: &Container| matches!(container.phase, Phase::Draining { since } if self.policy.drained_at(since) <= now);
        self.containers(network).filter(drained).map(|container| container.id)
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|state| &*state.node)
    }

    /// Returns the nodes, in the order of their ids.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values().map(|state| &*state.node)
    }

    /// Returns every name of an app that has addresses, in the product's order: the app, then each of its types, then the
    /// containers of the type. None outside a private network.
    #[must_use]
    pub fn domain_names(&self, app: AppId) -> Vec<Name> {
        let network = self.apps.get(&app).and_then(|app| self.projects[&app.project].network);
        let names = network.map(|network| self.zone_plan(&self.networks[&network]).names_of(app));
        names.unwrap_or_default().into_iter().map(|(name, _)| name).collect()
    }

    /// Returns the environment variables that tell a container about its network; `None` for an unknown container.
    ///
    /// `…_PRIVATE_NETWORK_ID`, `…_PRIVATE_HOSTNAME` with the final dot, and `…_APPLICATION_ID`, after the policy's prefix.
    #[must_use]
    pub fn environment(&self, container: ContainerId) -> Option<[(String, String); 3]> {
        let (network, slot) = (self.network_of_container(container)?, self.container(container)?.slot);
        let variable = |name: &str, value: String| (format!("{}_{name}", self.policy.environment_prefix), value);
        Some([
            variable("PRIVATE_NETWORK_ID", network.to_string()),
            variable("PRIVATE_HOSTNAME", format!("{:#}", Name::container(network, &slot))),
            variable("APPLICATION_ID", slot.app().to_string()),
        ])
    }
}

#[cfg(test)]
mod tests;
