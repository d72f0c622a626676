//! The whole model as one value, changed by [`State::apply`] only.

mod error;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

pub use self::error::ApplyError;
use crate::alloc::{Exhausted, Pool};
use crate::app::{App, Formation, Hosting};
use crate::container::{Container, Phase, Slot};
use crate::id::{AppId, ContainerId, NetworkId, NodeId, ProjectId};
use crate::mtu;
use crate::net::Vni;
use crate::network::{Encryption, Network};
use crate::node::Node;
use crate::plan::{Generation, NetworkPlan, NodePlan, Plan};
use crate::policy::{Policy, Region, Requirement};
use crate::project::{NetworkRequest, Project};
use crate::time::Timestamp;

/// Something that is to be different from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Adds a project, without a private network.
    AddProject(Project),
    /// Removes a project that has neither apps nor a private network.
    RemoveProject(ProjectId),
    /// Gives a project its private network, with a VNI of its own.
    EnablePrivateNetwork(NetworkRequest),
    /// Takes the private network from a project that has no app left; its VNI goes to rest.
    DisablePrivateNetwork(ProjectId),
    /// Adds an app to a project.
    AddApp(App),
    /// Removes an app that has no container left.
    RemoveApp(AppId),
    /// Puts new counts over an app's formation. Containers beyond a smaller count lose their names and drain.
    Scale {
        /// The app.
        app: AppId,
        /// The counts; types it does not name keep theirs.
        formation: Formation,
    },
    /// Adds a node.
    AddNode(Node),
    /// Replaces what is known of a node.
    UpdateNode(Node),
    /// Removes a node that runs no container.
    RemoveNode(NodeId),
    /// Starts a container in a slot that no live container fills, and gives it an address. It has no name until it is ready.
    Start {
        /// The new container.
        container: ContainerId,
        /// The slot it fills.
        slot: Slot,
        /// The node it runs on.
        node: NodeId,
    },
    /// Starts the next incarnation of a live container's slot beside it; when it is ready, it takes over the name.
    Replace {
        /// The new container.
        container: ContainerId,
        /// The live container it replaces.
        replaces: ContainerId,
        /// The node the new one runs on.
        node: NodeId,
    },
    /// A starting container is ready: it gets the name of its slot, and whoever had it drains.
    Ready(ContainerId),
    /// A live container loses its name and drains. Draining already is success.
    Stop(ContainerId),
    /// A container is gone: its address goes to rest. An unknown container is success, as a repeated removal is.
    Remove(ContainerId),
}

/// Projects, apps, networks, containers and nodes of a region, and every address and VNI that was given out.
///
/// `apply` either makes a change and returns the new generation, or refuses it with the reason and leaves everything as it
/// was. Whatever it accepts can be realised: [`plan`](Self::plan) cannot fail.
///
/// ```
/// use pn_core::*;
///
/// let mut state = State::new(Region::default());
/// let now = Timestamp::from_millis(1_790_000_000_000);
/// let (project, network, api, node) =
///     (ProjectId::from_u128(1), NetworkId::from_u128(2), AppId::from_u128(3), NodeId::from_u128(4));
/// let terms = Terms { accepted_by: "ada".parse()?, version: "beta-1".parse()?, accepted_at: now };
///
/// state.apply(now, Change::AddProject(Project::new(project, "shop".parse()?)))?;
/// state.apply(now, Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)))?;
/// state.apply(now, Change::AddApp(App::new(api, project, "api".parse()?)))?;
/// state.apply(now, Change::Scale { app: api, formation: "web:0 my-app-backend:2".parse()? })?;
/// state.apply(now, Change::AddNode(Node {
///     id: node,
///     label: "node-1".parse()?,
///     underlay: "192.0.2.10:51820".parse()?,
///     tunnel_address: "100.64.0.1".parse()?,
///     public_key: PublicKey::new([1; 32]),
///     underlay_mtu: 1500,
/// }))?;
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
    projects: BTreeMap<ProjectId, ProjectState>,
    apps: BTreeMap<AppId, App>,
    networks: BTreeMap<NetworkId, NetworkState>,
    /// The network of every container.
    containers: BTreeMap<ContainerId, NetworkId>,
    nodes: BTreeMap<NodeId, NodeState>,
    vnis: Pool<NetworkId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ProjectState {
    project: Project,
    network: Option<NetworkId>,
    apps: BTreeSet<AppId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NetworkState {
    network: Network,
    addresses: Pool<Slot>,
    containers: BTreeMap<ContainerId, Container>,
    live: BTreeMap<Slot, Live>,
    plan: Cached<NetworkPlan>,
}

/// The live containers of a slot: at least one, and two while one replaces the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Live {
    starting: Option<ContainerId>,
    ready: Option<ContainerId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NodeState {
    node: Arc<Node>,
    /// How many containers it runs in each network.
    networks: BTreeMap<NetworkId, u32>,
}

/// A value derived from what stands beside it, so equal whenever that is.
#[derive(Debug, Clone)]
struct Cached<T>(OnceLock<Arc<T>>);

impl<T> PartialEq for Cached<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Cached<T> {}

impl State {
    /// Makes the empty state of a region.
    #[must_use]
    pub fn new(region: Region) -> Self {
        let vnis = Pool::new(Vni::MAX, region.policy.vni_rest);
        Self {
            policy: region.policy,
            generation: Generation::ZERO,
            projects: BTreeMap::new(),
            apps: BTreeMap::new(),
            networks: BTreeMap::new(),
            containers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            vnis,
        }
    }

    /// Makes a change and returns the generation it led to.
    ///
    /// # Errors
    /// An [`ApplyError`] that names what stands in the way; the state is then as it was.
    pub fn apply(&mut self, now: Timestamp, change: Change) -> Result<Generation, ApplyError> {
        match change {
            Change::AddProject(project) => self.add_project(project)?,
            Change::RemoveProject(project) => self.remove_project(project)?,
            Change::EnablePrivateNetwork(request) => self.enable_private_network(now, request)?,
            Change::DisablePrivateNetwork(project) => self.disable_private_network(now, project)?,
            Change::AddApp(app) => self.add_app(app)?,
            Change::RemoveApp(app) => self.remove_app(app)?,
            Change::Scale { app, formation } => self.scale(now, app, &formation)?,
            Change::AddNode(node) => self.add_node(node)?,
            Change::UpdateNode(node) => self.update_node(node)?,
            Change::RemoveNode(node) => self.remove_node(node)?,
            Change::Start { container, slot, node } => self.start(now, container, slot, node)?,
            Change::Replace { container, replaces, node } => self.replace(now, container, replaces, node)?,
            Change::Ready(container) => self.ready(now, container)?,
            Change::Stop(container) => self.stop(now, container)?,
            Change::Remove(container) => self.remove(now, container),
        }
        self.generation = self.generation.next();
        Ok(self.generation)
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

    /// Returns a private network.
    #[must_use]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(&id).map(|state| &state.network)
    }

    /// Returns how many addresses of a network its containers hold.
    #[must_use]
    pub fn used_addresses(&self, id: NetworkId) -> Option<u32> {
        self.networks.get(&id).map(|state| state.addresses.used())
    }

    /// Returns a container.
    #[must_use]
    pub fn container(&self, id: ContainerId) -> Option<&Container> {
        let network = self.containers.get(&id)?;
        self.networks.get(network)?.containers.get(&id)
    }

    /// Returns the network of a container.
    #[must_use]
    pub fn network_of_container(&self, id: ContainerId) -> Option<NetworkId> {
        self.containers.get(&id).copied()
    }

    /// Returns the containers of a network, in the order of their ids.
    pub fn containers(&self, network: NetworkId) -> impl Iterator<Item = &Container> {
        self.networks.get(&network).into_iter().flat_map(|state| state.containers.values())
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|state| &*state.node)
    }

    /// Plans the whole region. Networks that did not change since the last plan are shared with it.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan {
            generation: self.generation,
            nodes: self.nodes.iter().map(|(id, state)| (*id, Arc::clone(&state.node))).collect(),
            networks: self.networks.iter().map(|(id, state)| (*id, self.network_plan(state))).collect(),
        }
    }

    /// Plans one node: the slice of [`plan`](Self::plan) that concerns it, at a cost that grows with its share only.
    #[must_use]
    pub fn node_plan(&self, id: NodeId) -> NodePlan {
        let Some(state) = self.nodes.get(&id) else {
            return NodePlan::empty(id, self.generation);
        };
        let networks = state.networks.keys().map(|id| (*id, self.network_plan(&self.networks[id])));
        NodePlan::new(Arc::clone(&state.node), self.generation, networks.collect(), |id| {
            self.nodes.get(&id).map(|state| Arc::clone(&state.node))
        })
    }

    fn network_plan(&self, state: &NetworkState) -> Arc<NetworkPlan> {
        let plan = || Arc::new(NetworkPlan::new(state, self));
        Arc::clone(state.plan.0.get_or_init(plan))
    }

    fn add_project(&mut self, project: Project) -> Result<(), ApplyError> {
        if self.projects.contains_key(&project.id) {
            return Err(ApplyError::ProjectExists { project: project.id });
        }
        let state = ProjectState { network: None, apps: BTreeSet::new(), project };
        self.projects.insert(state.project.id, state);
        Ok(())
    }

    fn remove_project(&mut self, id: ProjectId) -> Result<(), ApplyError> {
        let state = self.projects.get(&id).ok_or(ApplyError::UnknownProject { project: id })?;
        refuse_apps(state)?;
        if let Some(network) = state.network {
            return Err(ApplyError::PrivateNetworkEnabled { project: id, network });
        }
        self.projects.remove(&id);
        Ok(())
    }

    fn enable_private_network(&mut self, now: Timestamp, request: NetworkRequest) -> Result<(), ApplyError> {
        let NetworkRequest { project, network, terms, subnet, encryption, key_scope } = request;
        let state = self.projects.get_mut(&project).ok_or(ApplyError::UnknownProject { project })?;
        if let Some(network) = state.network {
            return Err(ApplyError::PrivateNetworkEnabled { project, network });
        }
        if self.networks.contains_key(&network) {
            return Err(ApplyError::NetworkExists { network });
        }
        if self.policy.terms == Requirement::Required && terms.is_none() {
            return Err(ApplyError::TermsNotAccepted { project });
        }
        if self.policy.empty_project == Requirement::Required {
            refuse_apps(state)?;
        }
        if self.policy.ordinary_hosting == Requirement::Required {
            state.apps.iter().try_for_each(|app| refuse_health_data(&self.apps[app]))?;
        }
        let vni = self.vnis.take(&network, now).map_err(|exhausted| match exhausted {
            Exhausted::InUse => ApplyError::VnisInUse { network },
            Exhausted::Resting { until } => ApplyError::VnisResting { network, until },
        })?;
        let vni = Vni::new(vni).expect("the pool's numbers are VNIs");
        let subnet = subnet.unwrap_or(self.policy.subnet);
        state.network = Some(network);
        let record = Network { id: network, project, vni, subnet, encryption, key_scope, terms };
        let state = NetworkState {
            network: record,
            addresses: Pool::new(subnet.capacity(), self.policy.address_rest),
            containers: BTreeMap::new(),
            live: BTreeMap::new(),
            plan: Cached(OnceLock::new()),
        };
        self.networks.insert(network, state);
        Ok(())
    }

    fn disable_private_network(&mut self, now: Timestamp, project: ProjectId) -> Result<(), ApplyError> {
        let state = self.projects.get_mut(&project).ok_or(ApplyError::UnknownProject { project })?;
        refuse_apps(state)?;
        let network = state.network.take().ok_or(ApplyError::NoPrivateNetwork { project })?;
        if let Some(removed) = self.networks.remove(&network) {
            self.vnis.release(removed.network.vni.get(), network, now);
        }
        Ok(())
    }

    fn add_app(&mut self, app: App) -> Result<(), ApplyError> {
        let (id, project) = (app.id, app.project);
        if self.apps.contains_key(&id) {
            return Err(ApplyError::AppExists { app: id });
        }
        let state = self.projects.get_mut(&project).ok_or(ApplyError::UnknownProject { project })?;
        if state.network.is_some() && self.policy.ordinary_hosting == Requirement::Required {
            refuse_health_data(&app)?;
        }
        state.apps.insert(id);
        let network = state.network;
        self.apps.insert(id, app);
        self.touch(network);
        Ok(())
    }

    fn remove_app(&mut self, id: AppId) -> Result<(), ApplyError> {
        let app = self.apps.get(&id).ok_or(ApplyError::UnknownApp { app: id })?;
        let state = self.projects.get_mut(&app.project).expect("an app's project exists");
        let network = state.network;
        if let Some(network) = network {
            let containers = self.networks[&network].containers.values();
            let count = containers.filter(|container| container.slot.app() == id).count();
            if count > 0 {
                return Err(ApplyError::AppHasContainers { app: id, count });
            }
        }
        state.apps.remove(&id);
        self.apps.remove(&id);
        self.touch(network);
        Ok(())
    }

    fn scale(&mut self, now: Timestamp, id: AppId, formation: &Formation) -> Result<(), ApplyError> {
        let app = self.apps.get_mut(&id).ok_or(ApplyError::UnknownApp { app: id })?;
        let scaled = app.formation.scaled(formation);
        app.formation = scaled.map_err(|source| ApplyError::Formation { app: id, source })?;
        let project = app.project;
        let Some(network) = self.projects[&project].network else {
            return Ok(());
        };
        let state = self.networks.get_mut(&network).expect("a project's network exists");
        let beyond = |slot: &Slot| {
            slot.app() == id && formation.count(&slot.container_type()).is_some_and(|count| slot.index() > count)
        };
        let gone: Vec<Slot> = state.live.keys().filter(|slot| beyond(slot)).copied().collect();
        for slot in gone {
            let live = state.live.remove(&slot).expect("listed just now");
            for container in [live.starting, live.ready].into_iter().flatten() {
                state.drain(container, now);
            }
        }
        self.touch(Some(network));
        Ok(())
    }

    fn add_node(&mut self, node: Node) -> Result<(), ApplyError> {
        if self.nodes.contains_key(&node.id) {
            return Err(ApplyError::NodeExists { node: node.id });
        }
        self.check_node(&node)?;
        let state = NodeState { networks: BTreeMap::new(), node: Arc::new(node) };
        self.nodes.insert(state.node.id, state);
        Ok(())
    }

    fn update_node(&mut self, node: Node) -> Result<(), ApplyError> {
        if !self.nodes.contains_key(&node.id) {
            return Err(ApplyError::UnknownNode { node: node.id });
        }
        self.check_node(&node)?;
        let state = self.nodes.get_mut(&node.id).expect("checked above");
        state.node = Arc::new(node);
        // The MTU of its networks may have changed with it.
        for network in state.networks.keys() {
            self.networks.get_mut(network).expect("a node's networks exist").plan = Cached(OnceLock::new());
        }
        Ok(())
    }

    fn check_node(&self, node: &Node) -> Result<(), ApplyError> {
        let id = node.id;
        if node.underlay.port() == 0 || node.underlay.ip().is_unspecified() {
            return Err(ApplyError::NodeUnderlay { node: id, underlay: node.underlay });
        }
        if node.tunnel_address.is_unspecified() || node.tunnel_address.is_multicast() {
            return Err(ApplyError::NodeTunnelAddress { node: id, address: node.tunnel_address });
        }
        let mtu = node.network_mtu(Encryption::WireGuard).unwrap_or(0);
        if mtu < mtu::IPV4_MINIMUM {
            return Err(ApplyError::NodeMtu { node: id, underlay_mtu: node.underlay_mtu, left: mtu });
        }
        for other in self.nodes.values().map(|state| &state.node).filter(|other| other.id != id) {
            let shared = if other.underlay == node.underlay {
                other.underlay.to_string()
            } else if other.tunnel_address == node.tunnel_address {
                other.tunnel_address.to_string()
            } else if other.public_key == node.public_key {
                other.public_key.to_string()
            } else {
                continue;
            };
            return Err(ApplyError::NodesShare { node: id, other: other.id, shared });
        }
        Ok(())
    }

    fn remove_node(&mut self, id: NodeId) -> Result<(), ApplyError> {
        let state = self.nodes.get(&id).ok_or(ApplyError::UnknownNode { node: id })?;
        let count: u32 = state.networks.values().sum();
        if count > 0 {
            return Err(ApplyError::NodeHasContainers { node: id, count });
        }
        self.nodes.remove(&id);
        Ok(())
    }

    fn start(&mut self, now: Timestamp, container: ContainerId, slot: Slot, node: NodeId) -> Result<(), ApplyError> {
        let app = self.apps.get(&slot.app()).ok_or(ApplyError::UnknownApp { app: slot.app() })?;
        let project = app.project;
        let network = self.projects[&project].network.ok_or(ApplyError::NoPrivateNetwork { project })?;
        // The spelling of the formation is the one that names show.
        let count = app.formation.types().find(|(declared, _)| **declared == slot.container_type());
        let (declared, count) = count.ok_or(ApplyError::UndeclaredType { slot })?;
        if slot.index() > count {
            return Err(ApplyError::BeyondFormation { slot, count });
        }
        let slot = Slot::new(slot.app(), *declared, slot.index()).expect("the index is the slot's own");
        if let Some(live) = self.networks[&network].live.get(&slot) {
            let by = live.ready.or(live.starting).expect("a live entry has a container");
            return Err(ApplyError::SlotTaken { slot, by });
        }
        self.place(now, network, container, slot, node)
    }

    fn replace(
        &mut self,
        now: Timestamp,
        container: ContainerId,
        replaces: ContainerId,
        node: NodeId,
    ) -> Result<(), ApplyError> {
        let network = self.network_id_of(replaces)?;
        let state = &self.networks[&network];
        let old = &state.containers[&replaces];
        match state.live.get(&old.slot) {
            Some(Live { starting: None, ready: Some(ready) }) if *ready == replaces => {}
            Some(Live { starting: Some(by), .. }) if *by != replaces => {
                return Err(ApplyError::SlotTaken { slot: old.slot, by: *by });
            }
            _ => return Err(ApplyError::NotReady { container: replaces }),
        }
        let slot = old.slot;
        self.place(now, network, container, slot, node)
    }

    /// Gives a starting container its address; the slot was checked.
    fn place(
        &mut self,
        now: Timestamp,
        network: NetworkId,
        container: ContainerId,
        slot: Slot,
        node: NodeId,
    ) -> Result<(), ApplyError> {
        if self.containers.contains_key(&container) {
            return Err(ApplyError::ContainerExists { container });
        }
        let node_state = self.nodes.get_mut(&node).ok_or(ApplyError::UnknownNode { node })?;
        let state = self.networks.get_mut(&network).expect("the caller found the network");
        let subnet = state.network.subnet;
        let ordinal = state.addresses.take(&slot, now).map_err(|exhausted| match exhausted {
            Exhausted::InUse => ApplyError::AddressesInUse { network, subnet },
            Exhausted::Resting { until } => ApplyError::AddressesResting { network, subnet, until },
        })?;
        let address = subnet.address(ordinal).expect("the pool's numbers are the subnet's ordinals");
        state.containers.insert(container, Container { id: container, slot, node, address, phase: Phase::Starting });
        state.live.entry(slot).or_default().starting = Some(container);
        self.containers.insert(container, network);
        *node_state.networks.entry(network).or_default() += 1;
        self.touch(Some(network));
        Ok(())
    }

    fn ready(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let network = self.network_id_of(id)?;
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        let container = state.containers.get_mut(&id).expect("indexed containers exist");
        match container.phase {
            Phase::Ready => return Ok(()),
            Phase::Draining { .. } => return Err(ApplyError::Draining { container: id }),
            Phase::Starting => container.phase = Phase::Ready,
        }
        let live = state.live.get_mut(&container.slot).expect("a starting container is live");
        let before = live.ready.replace(id);
        live.starting = None;
        if let Some(before) = before {
            state.drain(before, now);
        }
        self.touch(Some(network));
        Ok(())
    }

    fn stop(&mut self, now: Timestamp, id: ContainerId) -> Result<(), ApplyError> {
        let network = self.network_id_of(id)?;
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        state.forget_live(id);
        state.drain(id, now);
        self.touch(Some(network));
        Ok(())
    }

    fn remove(&mut self, now: Timestamp, id: ContainerId) {
        let Some(network) = self.containers.remove(&id) else {
            return;
        };
        let state = self.networks.get_mut(&network).expect("a container's network exists");
        state.forget_live(id);
        let container = state.containers.remove(&id).expect("indexed containers exist");
        let ordinal = state.network.subnet.ordinal(container.address).expect("addresses come from the subnet");
        state.addresses.release(ordinal, container.slot, now);
        let node = self.nodes.get_mut(&container.node).expect("a container's node exists");
        let count = node.networks.get_mut(&network).expect("its containers are counted");
        *count -= 1;
        if *count == 0 {
            node.networks.remove(&network);
        }
        self.touch(Some(network));
    }

    fn network_id_of(&self, container: ContainerId) -> Result<NetworkId, ApplyError> {
        self.containers.get(&container).copied().ok_or(ApplyError::UnknownContainer { container })
    }

    /// Drops what was planned for a network.
    fn touch(&mut self, network: Option<NetworkId>) {
        if let Some(state) = network.and_then(|network| self.networks.get_mut(&network)) {
            state.plan = Cached(OnceLock::new());
        }
    }
}

impl NetworkState {
    fn drain(&mut self, id: ContainerId, now: Timestamp) {
        let container = self.containers.get_mut(&id).expect("only known containers drain");
        if container.is_live() {
            container.phase = Phase::Draining { since: now };
        }
    }

    fn forget_live(&mut self, id: ContainerId) {
        let slot = self.containers[&id].slot;
        let Some(live) = self.live.get_mut(&slot) else {
            return;
        };
        live.starting = live.starting.filter(|starting| *starting != id);
        live.ready = live.ready.filter(|ready| *ready != id);
        if *live == Live::default() {
            self.live.remove(&slot);
        }
    }
}

/// What planning reads of the model.
impl NetworkPlan {
    fn new(state: &NetworkState, model: &State) -> Self {
        let network = &state.network;
        let apps = &model.projects[&network.project].apps;
        let apps = apps.iter().map(|app| (*app, &model.apps[app].formation));
        let node = |id: NodeId| &*model.nodes[&id].node;
        Self::build(network, &model.policy, apps, state.containers.values(), node)
    }
}

fn refuse_apps(state: &ProjectState) -> Result<(), ApplyError> {
    match state.apps.len() {
        0 => Ok(()),
        count => Err(ApplyError::ProjectHasApps { project: state.project.id, count }),
    }
}

fn refuse_health_data(app: &App) -> Result<(), ApplyError> {
    match app.hosting {
        Hosting::Ordinary => Ok(()),
        Hosting::HealthData => Err(ApplyError::HealthData { app: app.id }),
    }
}

#[cfg(test)]
mod tests;
