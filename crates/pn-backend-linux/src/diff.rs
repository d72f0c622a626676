//! What has to be done to get from what is to what should be. Pure; both sides are walked, so what is left over goes, too.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use pn_core::{Action, ContainerId, MacAddr, NetworkId, PublicKey};

use crate::firewall::Element;
use crate::kernel::{Kernel, Link, LinkKind, LinkName, Namespace, Peer, Place};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) subject: Subject,
    pub(crate) action: Action,
    pub(crate) change: Change,
}

/// What a step is about, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Transport,
    Peer(PublicKey),
    Network(NetworkId),
    Endpoint(NetworkId, Ipv4Addr),
    Container(ContainerId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport => f.write_str("the tunnel's namespace"),
            Self::Peer(key) => write!(f, "peer {key}"),
            Self::Network(id) => write!(f, "network {id}"),
            Self::Endpoint(id, address) => write!(f, "endpoint {address} of network {id}"),
            Self::Container(id) => write!(f, "the interface of container {id}"),
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    CreateNamespace(Place),
    RemoveNamespace(Place),
    /// Puts the whole filter in place.
    ReplaceFirewall(Place, BTreeSet<Element>),
    UpdateFirewall {
        place: Place,
        remove: Vec<Element>,
        add: Vec<Element>,
    },
    RemoveLink(Place, LinkName),
    AddLink(Place, LinkName, Link),
    /// Creates a port and the container's end of it.
    AddPair {
        network: Place,
        port: LinkName,
        link: Link,
        container: Place,
        inner: Link,
    },
    SetLink(Place, LinkName, Link),
    /// One object of a namespace.
    Set(Place, Object),
    Remove(Place, Object),
    SetPeer(PublicKey, Peer),
    RemovePeer(PublicKey),
}

/// Something that a link has, which goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Address(LinkName, IpNet),
    Route(LinkName, IpNet),
    Neighbour(LinkName, IpAddr, MacAddr),
    BridgeFdb(LinkName, MacAddr),
    VxlanFdb(MacAddr, IpAddr),
}

impl Object {
    pub(crate) const fn link(&self) -> LinkName {
        match self {
            Self::Address(link, _) | Self::Route(link, _) | Self::Neighbour(link, ..) | Self::BridgeFdb(link, _) => {
                *link
            }
            Self::VxlanFdb(..) => LinkName::Vxlan,
        }
    }

    /// Returns what tells it from others: two that have it are the same object, of which one value holds.
    const fn key(&self) -> Key {
        match self {
            Self::Address(link, prefix) => Key::Address(*link, *prefix),
            Self::Route(link, prefix) => Key::Route(*link, *prefix),
            Self::Neighbour(link, address, _) => Key::Neighbour(*link, *address),
            Self::BridgeFdb(link, mac) => Key::BridgeFdb(*link, *mac),
            Self::VxlanFdb(mac, _) => Key::VxlanFdb(*mac),
        }
    }

    /// Returns the address that it is about, where it is about one.
    fn about(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Neighbour(_, _, mac) | Self::BridgeFdb(_, mac) | Self::VxlanFdb(mac, _) => {
                let [0x02, 0x00, a, b, c, d] = mac.octets() else {
                    return None;
                };
                Some(Ipv4Addr::new(a, b, c, d))
            }
            Self::Address(..) | Self::Route(..) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Address(LinkName, IpNet),
    Route(LinkName, IpNet),
    Neighbour(LinkName, IpAddr),
    BridgeFdb(LinkName, MacAddr),
    VxlanFdb(MacAddr),
}

/// Lists what has to be done, in an order in which packets are first allowed, then carried, and no longer carried before they
/// are forbidden: namespaces and filters, removals, then links, addresses, neighbours, forwarding, and peers last:
/// those that come before those that go.
pub(crate) fn steps(is: &Kernel, should: &Kernel) -> Vec<Step> {
    let mut steps = Steps(Vec::new());
    let is = &*without_orphans(is, &mut steps);
    for place in should.places.keys().filter(|place| !is.places.contains_key(place)) {
        steps.push(subject(*place), Action::Created, Change::CreateNamespace(*place));
    }
    for (place, namespace) in &should.places {
        steps.filter(*place, is.places.get(place), namespace);
    }
    let fresh = fresh_links(is, should);
    let has_tunnel = should.places.contains_key(&Place::Transport);
    if !has_tunnel {
        steps.remove_peers(is, should);
    }
    for (place, before) in &is.places {
        steps.removals(*place, before, should.places.get(place), &fresh);
    }
    for place in is.places.keys().filter(|place| !should.places.contains_key(place)) {
        // Whoever handed over the namespace of a container takes it back.
        if !matches!(place, Place::Container(_)) {
            steps.push(subject(*place), Action::Removed, Change::RemoveNamespace(*place));
        }
    }
    for (place, namespace) in &should.places {
        steps.additions(*place, is.places.get(place), namespace, &fresh, should);
    }
    let tunnel_is_fresh = fresh.contains(&(Place::Transport, LinkName::Tunnel));
    for (key, peer) in &should.peers {
        match is.peers.get(key) {
            Some(before) if before == peer && !tunnel_is_fresh => {}
            Some(before) if before != peer => {
                steps.push(Subject::Peer(*key), Action::Updated, Change::SetPeer(*key, peer.clone()));
            }
            _ => steps.push(Subject::Peer(*key), Action::Created, Change::SetPeer(*key, peer.clone())),
        }
    }
    // A key that was replaced goes after the other has taken over its addresses.
    if has_tunnel {
        steps.remove_peers(is, should);
    }
    steps.0
}

/// Takes VXLAN devices away whose sockets are in a namespace that is not ours any more: first of all, for later nobody could
/// tell them from others. TAP interfaces have none.
fn without_orphans<'a>(is: &'a Kernel, steps: &mut Steps) -> Cow<'a, Kernel> {
    let mut is = Cow::Borrowed(is);
    let is_device = |link: &Link| !matches!(link.kind, LinkKind::Tap(_));
    let has_orphans = !is.places.contains_key(&Place::Transport)
        && is.places.values().any(|namespace| namespace.links.get(&LinkName::Vxlan).is_some_and(is_device));
    if has_orphans {
        for (place, namespace) in &mut is.to_mut().places {
            if namespace.links.get(&LinkName::Vxlan).is_some_and(is_device) {
                namespace.links.remove(&LinkName::Vxlan);
                steps.push(subject(*place), Action::Updated, Change::RemoveLink(*place, LinkName::Vxlan));
            }
        }
    }
    is
}

const fn subject(place: Place) -> Subject {
    match place {
        Place::Transport => Subject::Transport,
        Place::Network(id) => Subject::Network(id),
        Place::Container(id) => Subject::Container(id),
    }
}

fn subject_of(place: Place, about: Option<Ipv4Addr>) -> Subject {
    match (place, about) {
        (Place::Network(id), Some(address)) => Subject::Endpoint(id, address),
        _ => subject(place),
    }
}

const fn about(link: LinkName) -> Option<Ipv4Addr> {
    match link {
        LinkName::Port(address) => Some(address),
        LinkName::Tunnel | LinkName::Bridge | LinkName::Vxlan | LinkName::Inner => None,
    }
}

/// Returns the links that are to be made anew: what they have now goes with them. Both ends of a container's link are one.
fn fresh_links(is: &Kernel, should: &Kernel) -> BTreeSet<(Place, LinkName)> {
    let is_kept = |place: &Place, name: &LinkName, link: &Link| {
        let before = is.places.get(place).and_then(|namespace| namespace.links.get(name));
        before.is_some_and(|before| (&before.kind, &before.alias, before.mac) == (&link.kind, &link.alias, link.mac))
    };
    let mut fresh = BTreeSet::new();
    for (place, namespace) in &should.places {
        fresh.extend(
            namespace.links.iter().filter(|(name, link)| !is_kept(place, name, link)).map(|(name, _)| (*place, *name)),
        );
    }
    for ((network, address), container) in &should.pairs {
        let outer = (Place::Network(*network), LinkName::Port(*address));
        let inner = (Place::Container(*container), LinkName::Inner);
        if fresh.contains(&outer) || fresh.contains(&inner) {
            fresh.extend([outer, inner]);
        }
    }
    fresh
}

/// Lists what the links of a namespace have.
fn objects(namespace: &Namespace) -> impl Iterator<Item = Object> + '_ {
    let addresses = namespace.addresses.iter().map(|(link, prefix)| Object::Address(*link, *prefix));
    let routes = namespace.routes.iter().map(|(link, prefix)| Object::Route(*link, *prefix));
    let neighbours = namespace.neighbours.iter().map(|((link, to), mac)| Object::Neighbour(*link, *to, *mac));
    let bridge = namespace.bridge_fdb.iter().map(|(link, mac)| Object::BridgeFdb(*link, *mac));
    let vxlan = namespace.vxlan_fdb.iter().map(|(mac, via)| Object::VxlanFdb(*mac, *via));
    addresses.chain(routes).chain(neighbours).chain(bridge).chain(vxlan)
}

struct Steps(Vec<Step>);

impl Steps {
    fn push(&mut self, subject: Subject, action: Action, change: Change) {
        self.0.push(Step { subject, action, change });
    }

    fn remove_peers(&mut self, is: &Kernel, should: &Kernel) {
        for key in is.peers.keys().filter(|key| !should.peers.contains_key(key)) {
            self.push(Subject::Peer(*key), Action::Removed, Change::RemovePeer(*key));
        }
    }

    fn filter(&mut self, place: Place, before: Option<&Namespace>, after: &Namespace) {
        let Some(wanted) = &after.firewall else {
            return;
        };
        let found = before.and_then(|before| before.firewall.as_ref()).filter(|found| found.is_intact);
        let action = if before.is_some() { Action::Updated } else { Action::Created };
        let Some(found) = found else {
            self.push(subject(place), action, Change::ReplaceFirewall(place, wanted.elements.clone()));
            return;
        };
        let remove: Vec<Element> = found.elements.difference(&wanted.elements).cloned().collect();
        let add: Vec<Element> = wanted.elements.difference(&found.elements).cloned().collect();
        if !remove.is_empty() || !add.is_empty() {
            self.push(subject(place), action, Change::UpdateFirewall { place, remove, add });
        }
    }

    fn removals(
        &mut self,
        place: Place,
        is: &Namespace,
        should: Option<&Namespace>,
        fresh: &BTreeSet<(Place, LinkName)>,
    ) {
        let wanted: BTreeSet<Key> = should.into_iter().flat_map(objects).map(|object| object.key()).collect();
        let goes = |name: &LinkName| {
            fresh.contains(&(place, *name)) || should.is_none_or(|should| !should.links.contains_key(name))
        };
        for object in objects(is).filter(|object| !goes(&object.link()) && !wanted.contains(&object.key())) {
            self.push(subject_of(place, object.about()), Action::Removed, Change::Remove(place, object));
        }
        for name in is.links.keys().filter(|name| goes(name)) {
            let action = if fresh.contains(&(place, *name)) { Action::Updated } else { Action::Removed };
            self.push(subject_of(place, about(*name)), action, Change::RemoveLink(place, *name));
        }
    }

    fn additions(
        &mut self,
        place: Place,
        is: Option<&Namespace>,
        should: &Namespace,
        fresh: &BTreeSet<(Place, LinkName)>,
        kernel: &Kernel,
    ) {
        let is_fresh = |name: &LinkName| fresh.contains(&(place, *name));
        let nothing = Namespace::default();
        let is = is.unwrap_or(&nothing);
        for (name, link) in &should.links {
            let before = is.links.get(name);
            let subject = subject_of(place, about(*name));
            let action = if before.is_some() { Action::Updated } else { Action::Created };
            if is_fresh(name) {
                // A container's end comes with its port.
                if let Some(change) = creation(place, *name, link, kernel) {
                    self.push(subject, action, change);
                }
            }
            // A bridge that comes anew has no ports.
            let has_left = link.port.is_some() && is_fresh(&LinkName::Bridge);
            if is_fresh(name) || has_left || before != Some(link) {
                self.push(subject, action, Change::SetLink(place, *name, link.clone()));
            }
        }
        let lost = |object: &Object| {
            let with_bridge = matches!(object, Object::BridgeFdb(..)) && is_fresh(&LinkName::Bridge);
            // With its last address a link loses every route.
            let mut gone = is.addresses.difference(&should.addresses);
            let with_address = matches!(object, Object::Route(..)) && gone.any(|(link, _)| *link == object.link());
            is_fresh(&object.link()) || with_bridge || with_address
        };
        let found: BTreeMap<Key, Object> =
            objects(is).filter(|object| !lost(object)).map(|object| (object.key(), object)).collect();
        for object in objects(should) {
            let action = match found.get(&object.key()) {
                Some(before) if *before == object => continue,
                Some(_) => Action::Updated,
                None => Action::Created,
            };
            self.push(subject_of(place, object.about()), action, Change::Set(place, object));
        }
    }
}

/// Returns how a link is created.
fn creation(place: Place, name: LinkName, link: &Link, kernel: &Kernel) -> Option<Change> {
    if link.kind != LinkKind::Veth {
        return Some(Change::AddLink(place, name, link.clone()));
    }
    let (Place::Network(network), LinkName::Port(address)) = (place, name) else {
        return None;
    };
    let container = Place::Container(*kernel.pairs.get(&(network, address))?);
    let inner = kernel.places.get(&container)?.links.get(&LinkName::Inner)?.clone();
    Some(Change::AddPair { network: place, port: name, link: link.clone(), container, inner })
}

#[cfg(test)]
mod tests;
