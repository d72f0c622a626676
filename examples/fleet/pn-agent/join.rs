//! The node's place in the region.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use pn_core::{ApplyError, Label, Node, NodeId, PublicKey, State};
use pn_store::{Clock as _, Registry, RegistryError, Session, SystemClock};
use uuid::Uuid;

use crate::Error;

/// What the node is to be.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) label: Label,
    pub(crate) underlay: SocketAddr,
    pub(crate) underlay_mtu: u16,
    pub(crate) public_key: PublicKey,
}

/// Returns the node as it is recorded under its name, brought up to date, or a new one. It writes nothing.
pub(crate) async fn find_or_plan(registry: &Registry, wanted: &Wanted) -> Result<Node, Error> {
    let state = registry.state().await?;
    let mut named = state.nodes().filter(|node| node.label == wanted.label);
    let mut node = match (named.next(), named.next()) {
        (Some(known), None) => known.clone(),
        (None, _) => {
            let id = NodeId::from_u128(Uuid::new_v4().as_u128());
            let (label, tunnel_address) = (wanted.label.clone(), free_tunnel_address(&state));
            Node::new(id, label, wanted.underlay, tunnel_address, wanted.public_key)
        }
        (Some(_), Some(_)) => return Err(format!("more than one node is called {}", wanted.label).into()),
    };
    let is_ours = [Some(node.public_key), node.next_public_key].contains(&Some(wanted.public_key));
    if !is_ours && registry.statuses().await?.get(&node.id).is_some_and(|reported| reported.is_alive) {
        return Err(taken(wanted));
    }
    node.underlay = wanted.underlay;
    node.underlay_mtu = wanted.underlay_mtu;
    if node.next_public_key == Some(wanted.public_key) {
        node.next_public_key = None;
    }
    node.public_key = wanted.public_key;
    Ok(node)
}

/// Takes the node's place.
pub(crate) async fn join(
    registry: &Registry,
    mut node: Node,
    wanted: &Wanted,
    lease: Duration,
) -> Result<Session, Error> {
    loop {
        match registry.join(node.clone(), lease).await {
            // Another new node was faster with the tunnel address.
            Err(RegistryError::Refused(ApplyError::NodesShare { other, shared, .. }))
                if other != node.id && shared == node.tunnel_address.to_string() =>
            {
                node.tunnel_address = find_or_plan(registry, wanted).await?.tunnel_address;
            }
            Err(RegistryError::NodeTaken { .. }) => return Err(taken(wanted)),
            session => return Ok(session?),
        }
    }
}

fn taken(wanted: &Wanted) -> Error {
    format!("another agent with another key is node {}, and alive: stop it, or choose another --node", wanted.label)
        .into()
}

/// Finds an address that no node has, in the space that carriers share (RFC 6598) and so no underlay of a platform.
fn free_tunnel_address(state: &State) -> IpAddr {
    loop {
        // Not the first and not the last of 100.64.0.0/10.
        let offset = SystemClock.random() % ((1 << 22) - 2) + 1;
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x6440_0000 + offset as u32));
        if state.nodes().all(|node| node.tunnel_address != address) {
            return address;
        }
    }
}
