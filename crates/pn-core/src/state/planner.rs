//! The plan of one node, kept up to date.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::State;
use super::planning::Touched;
use crate::id::{NetworkId, NodeId};
use crate::plan::{NetworkPlan, NodePlan};

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
                Touched::Network(network) => self.update_network(state, network, host.share(network).is_ok()),
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
        let (left, joined) = (nodes(before.as_deref()), nodes(now.as_deref()));
        if left != joined {
            for node in joined.iter().filter(|node| left.binary_search(node).is_err()) {
                self.join(state, *node);
            }
            for node in left.iter().filter(|node| joined.binary_search(node).is_err()) {
                self.leave(*node);
            }
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

fn nodes(plan: Option<&NetworkPlan>) -> &[NodeId] {
    plan.map_or(&[], |plan| &plan.nodes)
}
