//! Doing what has to be done, step by step, going on after what fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use pn_core::{NodeId, PublicKey};

use crate::diff::{Change, Object, Step};
use crate::encryptor::Encryptor;
use crate::firewall::{Nft, Running};
use crate::kernel::{Link, LinkKind, LinkName, Place};
use crate::message::{self, Request};
use crate::netlink::Netlink;
use crate::netns::Namespaces;
use crate::observe::{self, Indexes};

/// What carries out steps. Netlink requests to one namespace are collected and sent together.
pub(crate) struct Executor<'a> {
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) encryptor: &'a mut Encryptor,
    nft: &'a Nft,
    /// Which node has a key.
    pub(crate) nodes: &'a BTreeMap<PublicKey, NodeId>,
    sockets: BTreeMap<Place, Netlink>,
    /// The kernel's numbers of links, as far as they are known.
    indexes: BTreeMap<Place, Indexes>,
    /// Places that may not carry packets, because they have no filter or something is in the way.
    closed: BTreeSet<Place>,
    /// Transactions of filters that are under way.
    filters: VecDeque<Transaction>,
    /// What waits to be sent, with the step it belongs to.
    waiting: Vec<(usize, Request)>,
    place: Option<Place>,
}

/// A change of a filter that was begun.
struct Transaction {
    /// Its step.
    number: usize,
    place: Place,
    scope: Scope,
    running: Running,
}

/// What a change of a filter is about: without the whole, a place has none; without a change, it has the one before.
#[derive(Clone, Copy)]
enum Scope {
    Whole,
    Elements,
}

impl<'a> Executor<'a> {
    pub(crate) const fn new(
        namespaces: &'a Namespaces,
        encryptor: &'a mut Encryptor,
        nft: &'a Nft,
        nodes: &'a BTreeMap<PublicKey, NodeId>,
        indexes: BTreeMap<Place, Indexes>,
    ) -> Self {
        Self {
            namespaces,
            encryptor,
            nft,
            nodes,
            sockets: BTreeMap::new(),
            indexes,
            closed: BTreeSet::new(),
            filters: VecDeque::new(),
            waiting: Vec::new(),
            place: None,
        }
    }

    /// Carries out steps and returns what became of each.
    pub(crate) fn run(mut self, steps: &[Step]) -> Vec<io::Result<()>> {
        let mut results: Vec<io::Result<()>> = steps.iter().map(|_| Ok(())).collect();
        for (number, step) in steps.iter().enumerate() {
            let result = self.step(number, &step.change, &mut results);
            let result = if is_removal(&step.change) { forgive(result) } else { result };
            if let Err(error) = result {
                note(&mut results, number, error);
            }
        }
        self.finish_filters(0, &mut results);
        self.send(&mut results);
        for (step, result) in steps.iter().zip(&mut results) {
            if is_removal(&step.change) {
                *result = forgive(std::mem::replace(result, Ok(())));
            }
        }
        results
    }

    fn step(&mut self, number: usize, change: &Change, results: &mut [io::Result<()>]) -> io::Result<()> {
        if let Change::ReplaceFirewall(place, elements) = change {
            return self.begin_filter((number, *place, Scope::Whole), |nft| nft.replace(*place, elements), results);
        }
        if let Change::UpdateFirewall { place, remove, add } = change {
            return self.begin_filter((number, *place, Scope::Elements), |nft| nft.change(remove, add), results);
        }
        // Nothing else happens before every filter is in place.
        self.finish_filters(0, results);
        let (place, requests) = match change {
            Change::Set(place, _) | Change::SetLink(place, ..) | Change::AddLink(place, ..)
                if self.closed.contains(place) =>
            {
                return Ok(());
            }
            Change::AddPair { network, .. } if self.closed.contains(network) => return Ok(()),
            // It came with the plan.
            Change::Set(_, Object::VxlanFdb(..)) | Change::Remove(_, Object::VxlanFdb(..))
                if self.encryptor.takes_plans() =>
            {
                return Ok(());
            }
            Change::Set(place, object) => (*place, vec![self.set(*place, *object, results)?]),
            Change::Remove(place, object) => (*place, vec![self.remove(*place, *object, results)?]),
            Change::SetLink(place, name, link) => {
                let bridge = match link.port {
                    Some(_) => Some(self.index(*place, LinkName::Bridge, results)?),
                    None => None,
                };
                (*place, message::set_link(*name, link, bridge))
            }
            Change::RemoveLink(place, name) => {
                self.indexes.entry(*place).or_default().remove(name);
                if *name == LinkName::Tunnel {
                    self.encryptor.removed();
                }
                (*place, vec![message::remove_link(*name)])
            }
            Change::CreateNamespace(_)
            | Change::RemoveNamespace(_)
            | Change::ReplaceFirewall(..)
            | Change::UpdateFirewall { .. }
            | Change::AddLink(..)
            | Change::AddPair { .. }
            | Change::SetPeer(..)
            | Change::RemovePeer(_) => {
                self.send(results);
                return self.at_once(change);
            }
        };
        if self.place != Some(place) {
            self.send(results);
            self.place = Some(place);
        }
        self.waiting.extend(requests.into_iter().map(|request| (number, request)));
        Ok(())
    }

    /// Does what is not a request to one namespace.
    fn at_once(&mut self, change: &Change) -> io::Result<()> {
        match change {
            Change::CreateNamespace(place) => {
                let created = self.namespaces.create(*place, prepare);
                self.closing(*place, created)
            }
            Change::RemoveNamespace(place) => {
                self.sockets.remove(place);
                self.namespaces.remove(*place)
            }
            Change::AddLink(place, name, link) => {
                self.indexes.entry(*place).or_default().remove(name);
                self.add_link(*place, link)
            }
            Change::AddPair { network, port, link, container, inner } => {
                self.indexes.entry(*network).or_default().remove(port);
                self.indexes.remove(container);
                let added = self.add_pair(*network, message::Pair { port: *port, link, inner }, *container);
                // An interface in the container that has the name, but is not ours, is left alone.
                self.closing(*container, added)
            }
            Change::SetPeer(key, peer) => {
                let node = self.nodes.get(key).copied().unwrap_or(NodeId::from_u128(0));
                self.encryptor.set_peer(self.namespaces, node, *key, peer)
            }
            Change::RemovePeer(key) => self.encryptor.remove_peer(self.namespaces, *key),
            Change::Set(..)
            | Change::Remove(..)
            | Change::SetLink(..)
            | Change::RemoveLink(..)
            | Change::ReplaceFirewall(..)
            | Change::UpdateFirewall { .. } => Ok(()),
        }
    }

    /// Keeps a place from being changed further where it has no filter, or something of somebody else's is in the way.
    fn closing<T>(&mut self, place: Place, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.closed.insert(place);
        }
        result
    }

    /// Begins the transaction of a filter, while others are under way.
    fn begin_filter(
        &mut self,
        (number, place, scope): (usize, Place, Scope),
        begin: impl FnOnce(&Nft) -> io::Result<Running>,
        results: &mut [io::Result<()>],
    ) -> io::Result<()> {
        self.send(results);
        self.finish_filters(FILTERS_AT_ONCE - 1, results);
        let begun = self.namespaces.within(place, || begin(self.nft));
        let running = begun.map_err(|error| self.without_filter(place, scope, error))?;
        self.filters.push_back(Transaction { number, place, scope, running });
        Ok(())
    }

    /// Waits for the transactions that were begun first, until so many are left.
    fn finish_filters(&mut self, left: usize, results: &mut [io::Result<()>]) {
        while self.filters.len() > left
            && let Some(Transaction { number, place, scope, running }) = self.filters.pop_front()
        {
            if let Err(error) = running.finish() {
                note(results, number, self.without_filter(place, scope, error));
            }
        }
    }

    /// Keeps a place from being changed further whose filter is not what it should be, and from carrying packets where it has
    /// none: its links go down, until an apply that finds them so has put the filter in place.
    fn without_filter(&mut self, place: Place, scope: Scope, error: io::Error) -> io::Error {
        self.closed.insert(place);
        let links: &[LinkName] = match (scope, place) {
            (Scope::Elements, _) | (_, Place::Container(_)) => return error,
            (Scope::Whole, Place::Transport) => &[LinkName::Tunnel],
            (Scope::Whole, Place::Network(_)) => &[LinkName::Vxlan, LinkName::Bridge],
        };
        let requests = links.iter().map(|name| message::take_down(*name)).collect();
        let down = self.socket(place).and_then(|socket| socket.change(requests).into_iter().try_for_each(forgive));
        let outcome = match down {
            Ok(()) => "nothing is carried there until it is in place".to_owned(),
            Err(error) => format!("packets may pass unfiltered, for its links cannot be taken down: {error}"),
        };
        io::Error::new(error.kind(), format!("{error}; {outcome}"))
    }

    fn add_link(&mut self, place: Place, link: &Link) -> io::Result<()> {
        match link.kind {
            LinkKind::Bridge => self.request(place, vec![message::create_bridge(link)]),
            LinkKind::Vxlan { .. } => {
                // Created there and moved here: its socket stays where the tunnel is.
                let into = self.namespaces.open(place)?.ok_or(io::ErrorKind::NotFound)?;
                let request = message::create_vxlan(link, into.as_raw_fd()).ok_or(io::ErrorKind::InvalidInput)?;
                let mut created = self.request(Place::Transport, vec![request.clone()]);
                // The kernel takes a namespace that nobody keeps any more down in its own time, and what was in it.
                for _ in 0..VANISHING {
                    if !created.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                    created = self.request(Place::Transport, vec![request.clone()]);
                }
                created.map_err(|error| explain_taken(error, VNI_TAKEN.to_owned()))
            }
            LinkKind::Tun | LinkKind::Tap(_) | LinkKind::WireGuard(_) => {
                self.encryptor.create(self.namespaces, place, link)
            }
            LinkKind::Veth | LinkKind::Other => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn add_pair(&mut self, network: Place, pair: message::Pair<'_>, container: Place) -> io::Result<()> {
        let into = self.namespaces.open(container)?.ok_or(io::ErrorKind::NotFound)?;
        let created = self.request(network, vec![message::create_veth(pair, into.as_raw_fd())]);
        created.map_err(|error| explain_taken(error, format!("{container} {NAME_TAKEN}")))
    }

    fn request(&mut self, place: Place, requests: Vec<Request>) -> io::Result<()> {
        self.socket(place)?.change(requests).into_iter().collect()
    }

    fn set(&mut self, place: Place, object: Object, results: &mut [io::Result<()>]) -> io::Result<Request> {
        let index = self.index(place, object.link(), results)?;
        Ok(match object {
            Object::Address(_, prefix) => message::set_address(index, prefix),
            Object::Route(_, prefix) => message::set_route(index, prefix),
            Object::Neighbour(_, address, mac) => message::set_neighbour(index, address, mac),
            Object::BridgeFdb(_, mac) => message::set_bridge_fdb(index, mac),
            Object::VxlanFdb(mac, via) => message::set_vxlan_fdb(index, mac, via),
        })
    }

    fn remove(&mut self, place: Place, object: Object, results: &mut [io::Result<()>]) -> io::Result<Request> {
        let index = self.index(place, object.link(), results)?;
        Ok(match object {
            Object::Address(_, prefix) => message::remove_address(index, prefix),
            Object::Route(_, prefix) => message::remove_route(index, prefix),
            Object::Neighbour(_, address, _) => message::remove_neighbour(index, address),
            Object::BridgeFdb(_, mac) => message::remove_bridge_fdb(index, mac),
            Object::VxlanFdb(mac, _) => message::remove_vxlan_fdb(index, mac),
        })
    }

    fn index(&mut self, place: Place, name: LinkName, results: &mut [io::Result<()>]) -> io::Result<u32> {
        if let Some(index) = self.indexes.get(&place).and_then(|indexes| indexes.get(&name)) {
            return Ok(*index);
        }
        // What waits may be what makes the link one of ours.
        self.send(results);
        let (_, indexes) = observe::links(place, self.socket(place)?)?;
        let index = indexes.get(&name).copied();
        self.indexes.insert(place, indexes);
        index.ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENODEV))
    }

    fn socket(&mut self, place: Place) -> io::Result<&mut Netlink> {
        if !self.sockets.contains_key(&place) {
            let socket = self.namespaces.netlink(place)?;
            self.sockets.insert(place, socket);
        }
        self.sockets.get_mut(&place).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Sends what waits.
    fn send(&mut self, results: &mut [io::Result<()>]) {
        let (Some(place), false) = (self.place, self.waiting.is_empty()) else {
            return;
        };
        let (numbers, requests): (Vec<usize>, Vec<Request>) = std::mem::take(&mut self.waiting).into_iter().unzip();
        match self.socket(place) {
            Ok(socket) => {
                for (number, result) in numbers.into_iter().zip(socket.change(requests)) {
                    if let Err(error) = result {
                        note(results, number, error);
                    }
                }
            }
            Err(error) => {
                for number in numbers {
                    note(results, number, io::Error::new(error.kind(), error.to_string()));
                }
            }
        }
    }
}

/// How many namespaces get their filters at a time.
const FILTERS_AT_ONCE: usize = 4;

/// How often a VXLAN device is tried to be made whose predecessor has not ended yet: for a second.
const VANISHING: u32 = 100;

/// Why a VXLAN device cannot be made for good.
const VNI_TAKEN: &str = "another device has its VNI: end what was started in the network's earlier namespace or has a copy of its mount, which keeps it alive";

/// What to do where an interface of somebody else has the name of ours.
const NAME_TAKEN: &str = "has an interface pn0 already, which somebody else made: rename it or take it away";

/// Says of what is there already whose it is, and what to do.
fn explain_taken(error: io::Error, explained: String) -> io::Error {
    if error.kind() == io::ErrorKind::AlreadyExists { io::Error::new(error.kind(), explained) } else { error }
}

/// Keeps the first failure of a step.
fn note(results: &mut [io::Result<()>], number: usize, error: io::Error) {
    if let Some(result @ Ok(())) = results.get_mut(number) {
        *result = Err(error);
    }
}

const fn is_removal(change: &Change) -> bool {
    matches!(change, Change::Remove(..) | Change::RemoveLink(..) | Change::RemovePeer(_) | Change::RemoveNamespace(_))
}

/// What is gone already needs no removal.
fn forgive(result: io::Result<()>) -> io::Result<()> {
    use nix::libc::{EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH};
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(ENODEV | ENOENT | ESRCH | EADDRNOTAVAIL)) => Ok(()),
        result => result,
    }
}

/// Makes a new namespace one that forwards nothing and hands no frame of a bridge to the filters of IP.
fn prepare() -> io::Result<()> {
    for (name, value) in [
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv6/conf/all/forwarding", "0"),
        // No address makes itself, whenever a link gets IPv6.
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
        ("bridge/bridge-nf-call-iptables", "0"),
        ("bridge/bridge-nf-call-ip6tables", "0"),
        ("bridge/bridge-nf-call-arptables", "0"),
    ] {
        match fs::write(format!("/proc/sys/net/{name}"), value) {
            // A kernel without IPv6, or without filters for bridges: nothing to switch off.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("cannot set net.{}: {error}", name.replace('/', ".")),
                ));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
