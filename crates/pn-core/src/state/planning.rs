//! From the state to plans. What did not change is shared with the plans before.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use super::State;
use super::network::NetworkState;
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
pub(super) enum Touched {
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
    pub(super) fn since(&self, generation: Generation) -> Option<impl Iterator<Item = Touched>> {
        // Most ask for the last few.
        let start = self.touched.iter().rposition(|(noted, _)| *noted <= generation).map_or(0, |before| before + 1);
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
        let networks =
            state.shares.iter().map(|share| (share.network, self.network_plan(&self.networks[&share.network])));
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

    pub(super) fn network_plan(&self, state: &NetworkState) -> Arc<NetworkPlan> {
        Arc::clone(state.plan.0.get_or_init(|| Arc::new(self.plan_network(state))))
    }

    fn plan_network(&self, state: &NetworkState) -> NetworkPlan {
        let network = &state.network;
        let endpoints = state.members().iter().map(|member| {
            let address = network.subnet.address(member.ordinal).expect("members have ordinals of the subnet");
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
            let live = state.live_of(&(app, *container_type)).iter();
            let subnet = state.network.subnet;
            let named = live.filter_map(|live| Some((live.index, subnet.address(live.ready?.get())?)));
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

/// A value derived from what stands beside it, so equal whenever that is.
#[derive(Debug, Clone)]
pub(super) struct Cached<T>(OnceLock<Arc<T>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T> PartialEq for Cached<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Cached<T> {}
