//! Nodes, and changes of them.

use std::sync::Arc;

use super::{ApplyError, State};
use crate::id::{NetworkId, NodeId};
use crate::mtu;
use crate::net::PublicKey;
use crate::network::Encryption;
use crate::node::{Availability, Node};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeState {
    pub(super) node: Arc<Node>,
    /// The networks it runs containers of, in order.
    pub(super) shares: Vec<Share>,
}

/// How many containers of a network a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) network: NetworkId,
    pub(super) containers: u32,
}

impl NodeState {
    pub(super) fn new(node: Node) -> Self {
        Self { node: Arc::new(node), shares: Vec::new() }
    }

    /// Finds what it runs of a network, or where that would stand.
    pub(super) fn share(&self, network: NetworkId) -> Result<usize, usize> {
        self.shares.binary_search_by_key(&network, |share| share.network)
    }

    /// Counts one more container of a network.
    pub(super) fn add(&mut self, network: NetworkId) {
        match self.share(network) {
            Ok(at) => self.shares[at].containers += 1,
            Err(at) => self.shares.insert(at, Share { network, containers: 1 }),
        }
    }

    /// Counts one container of a network less, and returns whether it was the last.
    pub(super) fn remove(&mut self, network: NetworkId) -> bool {
        let at = self.share(network).expect("its containers are counted");
        self.shares[at].containers -= 1;
        let is_last = self.shares[at].containers == 0;
        if is_last {
            self.shares.remove(at);
        }
        is_last
    }
}

impl State {
    pub(super) fn add_node(&mut self, node: Node) -> Result<(), ApplyError> {
        if self.nodes.contains_key(&node.id) {
            return Err(ApplyError::NodeExists { node: node.id });
        }
        self.check_node(&node)?;
        self.index_node(&node);
        let state = NodeState::new(node);
        self.log_node(state.node.id);
        self.nodes.insert(state.node.id, state);
        Ok(())
    }

    pub(super) fn update_node(&mut self, node: Node) -> Result<(), ApplyError> {
        let id = node.id;
        let state = self.nodes.get(&id).ok_or(ApplyError::UnknownNode { node: id })?;
        let before = Arc::clone(&state.node);
        if node.registration < before.registration {
            let (given, known) = (node.registration, before.registration);
            return Err(ApplyError::Fenced { node: id, given, known });
        }
        self.check_node(&node)?;
        let networks: Vec<_> = state.shares.iter().map(|share| share.network).collect();
        let mtus: Result<Vec<_>, _> = networks.iter().map(|network| self.check_host(*network, &node)).collect();
        let mtus = mtus?;
        self.unindex_node(&before);
        self.index_node(&node);
        self.nodes.get_mut(&id).expect("looked up above").node = Arc::new(node);
        for (network, mtu) in networks.into_iter().zip(mtus) {
            let state = self.networks.get_mut(&network).expect("a node's networks exist");
            let part = state.part(id).expect("a node is a part of its networks");
            if state.parts[part].mtu != mtu {
                state.parts[part].mtu = mtu;
                self.touch(network);
            }
        }
        self.log_node(id);
        Ok(())
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Result<(), ApplyError> {
        let state = self.nodes.get(&id).ok_or(ApplyError::UnknownNode { node: id })?;
        if !state.shares.is_empty() {
            let count = state.shares.iter().map(|share| share.containers).sum();
            return Err(ApplyError::NodeHasContainers { node: id, count });
        }
        let node = Arc::clone(&state.node);
        self.unindex_node(&node);
        self.nodes.remove(&id);
        self.log_node(id);
        Ok(())
    }

    pub(super) fn set_availability(&mut self, id: NodeId, availability: Availability) -> Result<(), ApplyError> {
        let node = self.node_mut(id)?;
        node.availability = availability;
        self.log_node(id);
        Ok(())
    }

    pub(super) fn offer_key(&mut self, id: NodeId, public_key: PublicKey) -> Result<(), ApplyError> {
        if let Some(other) = self.public_keys.get(&public_key) {
            return Err(ApplyError::NodesShare { node: id, other: *other, shared: public_key.to_string() });
        }
        let withdrawn = self.node_mut(id)?.next_public_key.replace(public_key);
        if let Some(withdrawn) = withdrawn {
            self.public_keys.remove(&withdrawn);
        }
        self.public_keys.insert(public_key, id);
        self.log_node(id);
        Ok(())
    }

    pub(super) fn promote_key(&mut self, id: NodeId) -> Result<(), ApplyError> {
        let next = self.nodes.get(&id).ok_or(ApplyError::UnknownNode { node: id })?.node.next_public_key;
        let next = next.ok_or(ApplyError::NoKeyOffered { node: id })?;
        let node = self.node_mut(id)?;
        node.next_public_key = None;
        let retired = core::mem::replace(&mut node.public_key, next);
        self.public_keys.remove(&retired);
        self.log_node(id);
        Ok(())
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, ApplyError> {
        let state = self.nodes.get_mut(&id).ok_or(ApplyError::UnknownNode { node: id })?;
        Ok(Arc::make_mut(&mut state.node))
    }

    fn check_node(&self, node: &Node) -> Result<(), ApplyError> {
        let id = node.id;
        let underlay = node.underlay;
        if underlay.port() == 0 || underlay.ip().is_unspecified() || underlay.ip().is_multicast() {
            return Err(ApplyError::NodeUnderlay { node: id, underlay });
        }
        if node.tunnel_address.is_unspecified() || node.tunnel_address.is_multicast() {
            return Err(ApplyError::NodeTunnelAddress { node: id, address: node.tunnel_address });
        }
        let (left, least) = (node.network_mtu(Encryption::WireGuard).unwrap_or(0), mtu::IPV4_MINIMUM);
        if left < least {
            return Err(ApplyError::NodeMtu { node: id, underlay_mtu: node.underlay_mtu, left, least });
        }
        if node.next_public_key == Some(node.public_key) {
            return Err(ApplyError::NodesShare { node: id, other: id, shared: node.public_key.to_string() });
        }
        let mut owners = [
            (self.underlays.get(&underlay), underlay.to_string()),
            (self.tunnel_addresses.get(&node.tunnel_address), node.tunnel_address.to_string()),
            (self.public_keys.get(&node.public_key), node.public_key.to_string()),
            (node.next_public_key.and_then(|key| self.public_keys.get(&key)), "its next public key".to_owned()),
        ]
        .into_iter();
        match owners.find_map(|(owner, shared)| owner.filter(|owner| **owner != id).map(|owner| (*owner, shared))) {
            Some((other, shared)) => Err(ApplyError::NodesShare { node: id, other, shared }),
            None => Ok(()),
        }
    }

    pub(super) fn index_node(&mut self, node: &Node) {
        self.underlays.insert(node.underlay, node.id);
        self.tunnel_addresses.insert(node.tunnel_address, node.id);
        for key in [Some(node.public_key), node.next_public_key].into_iter().flatten() {
            self.public_keys.insert(key, node.id);
        }
    }

    pub(super) fn unindex_node(&mut self, node: &Node) {
        self.underlays.remove(&node.underlay);
        self.tunnel_addresses.remove(&node.tunnel_address);
        for key in [Some(node.public_key), node.next_public_key].into_iter().flatten() {
            self.public_keys.remove(&key);
        }
    }
}
