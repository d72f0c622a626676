//! From the state to plans. What did not change is shared with the plans before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use super::{Cached, NetworkState, State};
use crate::id::{AppId, NetworkId, NodeId};
use crate::mtu;
use crate::plan::{AppNames, Endpoint, Generation, NetworkPlan, NodePlan, Plan, Stage, TypeNames, ZonePlan, ZoneSet};

/// How many changes are remembered for planners to catch up on.
const LOG: usize = 4096;

/// What the last changes touched. It only saves work, so it does not count when states are compared.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    touched: VecDeque<(Generation, Touched)>,
    /// The youngest generation whose changes may have been forgotten.
    forgotten: Generation,
}

#[derive(Debug, Clone, Copy)]
enum Touched {
    Network(NetworkId),
    Node(NodeId),
}

impl PartialEq for Log {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Log {}

impl Log {
    fn note(&mut self, generation: Generation, touched: Touched) {
        if self.touched.len() == LOG
            && let Some((oldest, _)) = self.touched.pop_front()
        {
            self.forgotten = oldest;
        }
        self.touched.push_back((generation, touched));
    }

    /// Returns what was touched after a generation; `None` where not all of it is known any more.
    fn since(&self, generation: Generation) -> Option<impl Iterator<Item = Touched>> {
        let start = self.touched.partition_point(|(noted, _)| *noted <= generation);
        (generation >= self.forgotten).then(|| self.touched.range(start..).map(|(_, touched)| *touched))
    }
}

impl State {
    /// Plans the whole region. Networks that did not change since the last plan are shared with it.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan {
            generation: self.generation,
            nodes: self.nodes.iter().map(|(id, state)| (*id, Arc::clone(&state.node))).collect(),
            networks: self.networks.iter().map(|(id, state)| (*id, self.network_plan(state))).collect(),
        }
    }

    /// Plans the zones of every network, for name servers that need no ways: what [`plan`](Self::plan) has, at a cost that
    /// grows with the networks and the apps whose names changed.
    #[must_use]
    pub fn zones(&self) -> ZoneSet {
        let zones = self.networks.iter().map(|(id, state)| (*id, self.zone_plan(state)));
        ZoneSet { generation: self.generation, stage: Stage::Settled, zones: zones.collect() }
    }

    /// Plans one node: the slice of [`plan`](Self::plan) that concerns it, at a cost that grows with its share only.
    #[must_use]
    pub fn node_plan(&self, id: NodeId) -> NodePlan {
        let Some(state) = self.nodes.get(&id) else {
            return NodePlan::empty(id, self.generation);
        };
        let networks = state.networks.iter().map(|id| (*id, self.network_plan(&self.networks[id])));
        NodePlan::new(Arc::clone(&state.node), self.generation, networks.collect(), |id| {
            self.nodes.get(&id).map(|state| Arc::clone(&state.node))
        })
    }

    /// Notes that the ways of a network changed.
    pub(super) fn touch(&mut self, network: NetworkId) {
        if let Some(state) = self.networks.get_mut(&network) {
            state.plan = Cached::default();
        }
        self.log.note(self.generation.next(), Touched::Network(network));
    }

    /// Notes that the names of an app changed, and maybe ways of its network.
    pub(super) fn touch_names(&mut self, network: NetworkId, app: AppId) {
        if let Some(state) = self.networks.get_mut(&network) {
            state.zone.touch(app);
        }
        self.touch(network);
    }

    /// Notes that a node changed, came or went.
    pub(super) fn log_node(&mut self, node: NodeId) {
        self.log.note(self.generation.next(), Touched::Node(node));
    }

    fn network_plan(&self, state: &NetworkState) -> Arc<NetworkPlan> {
        Arc::clone(state.plan.0.get_or_init(|| Arc::new(self.plan_network(state))))
    }

    fn plan_network(&self, state: &NetworkState) -> NetworkPlan {
        let network = &state.network;
        let endpoints = state.members.iter().map(|(ordinal, member)| {
            let address = network.subnet.address(*ordinal).expect("members have ordinals of the subnet");
            let (container, node, of, index) = (member.id, member.node, Arc::clone(&member.of), member.index);
            Endpoint { container, node, address, of, index }
        });
        NetworkPlan {
            id: network.id,
            project: network.project,
            vni: network.vni,
            subnet: network.subnet,
            ipv6: network.ipv6,
            // A network on no node has packets nowhere; the number only has to be one that makes sense.
            mtu: state.parts.iter().map(|part| part.mtu).min().unwrap_or(mtu::IPV6_MINIMUM),
            resolver: self.policy.resolver,
            encryption: network.encryption,
            key_scope: network.key_scope,
            endpoints: endpoints.collect(),
            nodes: state.parts.iter().map(|part| part.node).collect(),
            zone: self.zone_plan(state),
        }
    }

    pub(super) fn zone_plan(&self, state: &NetworkState) -> Arc<ZonePlan> {
        Arc::clone(state.zone.current.get_or_init(|| Arc::new(self.plan_zone(state))))
    }

    fn plan_zone(&self, state: &NetworkState) -> ZonePlan {
        let network = &state.network;
        let mut before = state.zone.before.iter().flat_map(|zone| &zone.apps).peekable();
        let apps = self.projects[&network.project].apps.iter().filter_map(|app| {
            while before.next_if(|names| names.app < *app).is_some() {}
            let before = before.next_if(|names| names.app == *app).filter(|_| !state.zone.touched.contains(app));
            before.cloned().or_else(|| self.plan_app(state, *app).map(Arc::new))
        });
        let (network, subnet, ipv6, ttl) = (network.id, network.subnet, network.ipv6, self.policy.ttl);
        ZonePlan { network, subnet, ipv6, ttl, apps: apps.collect() }
    }

    /// Plans the names of an app that declares a type.
    fn plan_app(&self, state: &NetworkState, app: AppId) -> Option<AppNames> {
        let declared = &self.apps[&app];
        let types = declared.formation.types().map(|(container_type, _)| {
            let live = state.of_type(&(app, *container_type)).into_iter().flat_map(|at| &state.types[at].live);
            let subnet = state.network.subnet;
            let named = live.filter_map(|(index, live)| Some((*index, subnet.address(live.ready?.get())?)));
            let ports = declared.ports.get(container_type).cloned().unwrap_or_default();
            TypeNames { app, container_type: *container_type, ports, containers: named.collect() }
        });
        let types: Box<[TypeNames]> = types.collect();
        (!types.is_empty()).then_some(AppNames { app, types })
    }
}

/// The zone of a network, and what it can be made from when names changed. It only saves work, as [`Cached`].
#[derive(Debug, Clone, Default)]
pub(super) struct ZoneCache {
    current: OnceLock<Arc<ZonePlan>>,
    /// The last zone that was planned before names changed.
    before: Option<Arc<ZonePlan>>,
    /// The apps whose names changed since.
    touched: BTreeSet<AppId>,
}

impl ZoneCache {
    fn touch(&mut self, app: AppId) {
        if let Some(current) = self.current.take() {
            self.before = Some(current);
            self.touched.clear();
        }
        self.touched.insert(app);
    }
}

impl PartialEq for ZoneCache {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ZoneCache {}

/// Keeps the plan of one node up to date, at a cost that grows with what changed.
///
/// ```
/// use pn_core::{NodeId, NodePlanner, Region, State};
///
/// let mut state = State::new(Region::default());
/// let mut planner = NodePlanner::new(&state, NodeId::from_u128(1));
/// // state.apply(…)?, and then:
/// assert_eq!(*planner.update(&state), state.node_plan(NodeId::from_u128(1)));
/// ```
#[derive(Debug, Clone)]
pub struct NodePlanner {
    plan: NodePlan,
    /// How many of the node's networks each other node has a part in.
    shared: BTreeMap<NodeId, u32>,
}

impl NodePlanner {
    /// Plans a node.
    #[must_use]
    pub fn new(state: &State, node: NodeId) -> Self {
        let plan = state.node_plan(node);
        let mut shared = BTreeMap::new();
        for other in plan.networks.values().flat_map(|network| &network.nodes).filter(|other| **other != node) {
            *shared.entry(*other).or_default() += 1;
        }
        Self { plan, shared }
    }

    /// Returns the plan as of the last update.
    #[must_use]
    pub const fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Catches up with a state: the one it was made from, some changes later.
    pub fn update(&mut self, state: &State) -> &NodePlan {
        let touched = state.log.since(self.plan.generation);
        let host = state.nodes.get(&self.plan.node);
        let (Some(touched), Some(host), Some(_)) = (touched, host, &self.plan.host) else {
            *self = Self::new(state, self.plan.node);
            return &self.plan;
        };
        for touched in touched {
            match touched {
                Touched::Network(network) => {
                    self.update_network(state, network, host.networks.binary_search(&network).is_ok())
                }
                Touched::Node(node) => self.update_node(state, node),
            }
        }
        self.plan.generation = state.generation;
        &self.plan
    }

    fn update_network(&mut self, state: &State, network: NetworkId, is_member: bool) {
        let now = is_member.then(|| state.network_plan(&state.networks[&network]));
        let before = self.plan.networks.get(&network).cloned();
        if now.as_ref().map(Arc::as_ptr) == before.as_ref().map(Arc::as_ptr) {
            return;
        }
        let nodes = |plan: &Option<Arc<NetworkPlan>>| plan.as_ref().map(|plan| plan.nodes.clone()).unwrap_or_default();
        let (left, joined) = (nodes(&before), nodes(&now));
        for node in joined.iter().filter(|node| left.binary_search(node).is_err()) {
            self.join(state, *node);
        }
        for node in left.iter().filter(|node| joined.binary_search(node).is_err()) {
            self.leave(*node);
        }
        let networks = Arc::make_mut(&mut self.plan.networks);
        match now {
            Some(now) => networks.insert(network, now),
            None => networks.remove(&network),
        };
    }

    fn join(&mut self, state: &State, node: NodeId) {
        if node == self.plan.node {
            return;
        }
        let count = self.shared.entry(node).or_default();
        *count += 1;
        if *count == 1
            && let Some(known) = state.nodes.get(&node)
        {
            Arc::make_mut(&mut self.plan.peers).insert(node, Arc::clone(&known.node));
        }
    }

    fn leave(&mut self, node: NodeId) {
        if let Some(count) = self.shared.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                self.shared.remove(&node);
                Arc::make_mut(&mut self.plan.peers).remove(&node);
            }
        }
    }

    fn update_node(&mut self, state: &State, node: NodeId) {
        let Some(known) = state.nodes.get(&node) else {
            return;
        };
        if node == self.plan.node {
            self.plan.host = Some(Arc::clone(&known.node));
        } else if self.plan.peers.contains_key(&node) {
            Arc::make_mut(&mut self.plan.peers).insert(node, Arc::clone(&known.node));
        }
    }
}
