//! What differs between what is and what should be, in both directions.

use core::fmt;
use core::net::Ipv4Addr;
use std::collections::BTreeMap;

use pn_core::backend::Observed;
use pn_core::{Action, NetworkId, PublicKey};

/// Something a node consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Object {
    /// The tunnel to the node with this key.
    Peer(PublicKey),
    /// A network: its VNI, subnet and MTU.
    Network(NetworkId),
    /// The way to a container of a network.
    Endpoint(NetworkId, Ipv4Addr),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(key) => write!(f, "peer {key}"),
            Self::Network(network) => write!(f, "network {network}"),
            Self::Endpoint(network, address) => write!(f, "endpoint {address} of network {network}"),
        }
    }
}

/// What has to be done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// The object.
    pub object: Object,
    /// What has to be done.
    pub action: Action,
}

/// Lists what has to be done to get from `is` to `should`: peers, then each network and its endpoints. A network that goes
/// takes its endpoints with it, and one that comes brings them, without a line for each.
#[must_use]
pub fn differences(is: &Observed, should: &Observed) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut note = |object, action| found.push(Difference { object, action });
    compare(&is.peers, &should.peers, |key, action| note(Object::Peer(*key), action));
    let header = |network: &pn_core::backend::ObservedNetwork| (network.vni, network.subnet, network.mtu);
    let headers = |observed: &Observed| -> BTreeMap<_, _> {
        observed.networks.iter().map(|(id, network)| (*id, header(network))).collect()
    };
    compare(&headers(is), &headers(should), |id, action| note(Object::Network(*id), action));
    for (id, network) in &should.networks {
        if let Some(before) = is.networks.get(id) {
            compare(&before.endpoints, &network.endpoints, |at, action| note(Object::Endpoint(*id, *at), action));
        }
    }
    found
}

fn compare<K: Ord, V: PartialEq>(is: &BTreeMap<K, V>, should: &BTreeMap<K, V>, mut note: impl FnMut(&K, Action)) {
    for (key, value) in should {
        match is.get(key) {
            None => note(key, Action::Created),
            Some(before) if before != value => note(key, Action::Updated),
            Some(_) => {}
        }
    }
    is.keys().filter(|key| !should.contains_key(key)).for_each(|key| note(key, Action::Removed));
}
