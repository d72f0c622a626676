//! Plans, and what belongs to a container: its stack or its interface.

use core::net::Ipv4Addr;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use pn_core::backend::{Observed, ObservedPeer};
use pn_core::{
    BackendError, ContainerId, Encryption, Endpoint, ErrorKind, KeyScope, NetworkId, NetworkPlan, NodePlan, Report,
};
use pn_overlay::peer::OVERHEAD;
use pn_overlay::vtep::MAX_OVERHEAD;
use pn_overlay::{PeerConfig, Vtep, reconcile};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::crew::{self, Share};
use super::{ATTACHED, Attached, Driver, FIRST_TUN, REMOVED};
use crate::netstack::{Addresses, Netstack};
use crate::port::{DNS_PORT, Owner, Port, PortInner};
use crate::resolver;
use crate::tun::{Interface, Kind, Tun};
use crate::underlay;

impl Driver {
    pub(super) fn observe(&self) -> Observed {
        let plan = self.vtep.plan();
        let mut observed = Observed::from(plan);
        for (id, network) in &*plan.networks {
            let is_there = |endpoint: &&Endpoint| {
                endpoint.node != plan.node || self.has_port(*id, endpoint.container, endpoint.address)
            };
            let missing = network.endpoints.iter().filter(|endpoint| !is_there(endpoint));
            if let Some(observed) = observed.networks.get_mut(id) {
                for endpoint in missing {
                    observed.endpoints.remove(&endpoint.address);
                }
            }
        }
        let peer =
            |config: PeerConfig| ObservedPeer { underlay: config.underlay, tunnel_address: config.tunnel_address };
        let tunnel = crew::read(&self.tunnel);
        let peers = tunnel.peers().map(|status| (status.config.public_key, peer(status.config)));
        observed.peers = peers.collect();
        observed
    }

    fn has_port(&self, network: NetworkId, container: ContainerId, address: Ipv4Addr) -> bool {
        let stack = self.stacks.get(&Owner::Container(container)).map(|stack| (stack.network, stack.addresses.v4));
        let tun = self.tun_of(container).and_then(|attached| match attached.tun.interface().kind {
            Kind::Container { addresses, .. } => Some((attached.network, addresses.v4)),
            Kind::Network => None,
        });
        stack.or(tun) == Some((network, address)) || (stack.or(tun).is_none() && self.tap_of.contains_key(&network))
    }

    /// Makes the node what the plan says. It happens between two packets, so nobody sees half of it.
    pub(super) fn apply(&mut self, plan: &NodePlan) -> Report {
        let applied = self.vtep.plan().generation;
        let refusal = if plan.node != self.shared.node {
            let object = format!("a plan for {}: this is {}", plan.node, self.shared.node);
            Some(BackendError::new(ErrorKind::WrongNode, "apply", object))
        } else if plan.generation < applied {
            Some(BackendError::superseded(plan.generation, applied))
        } else {
            let ours = crew::read(&self.tunnel).public_key();
            plan.host.as_deref().filter(|host| host.public_key != ours).map(|host| {
                let object = format!("a plan with public key {} for this node: it has {ours}", host.public_key);
                BackendError::new(ErrorKind::WrongNode, "apply", object)
            })
        };
        if let Some(refusal) = refusal {
            return Report::refused(plan.generation, refusal);
        }
        let mut report = Report::new(plan.generation);
        let is_supported =
            |network: &NetworkPlan| (network.encryption, network.key_scope) == (Encryption::WireGuard, KeyScope::Node);
        for network in plan.networks.values().filter(|network| !is_supported(network)) {
            let NetworkPlan { id, encryption, key_scope, .. } = &**network;
            let object = format!("network {id} with encryption {encryption:?}, keys per {key_scope:?}");
            report.record(&object, Err(BackendError::new(ErrorKind::Unsupported, "create", &object)));
        }
        let plan = plan.only(is_supported);
        for difference in reconcile::differences(&self.observe(), &Observed::from(&plan)) {
            report.record(difference.object, Ok(difference.action));
        }
        self.set_peers(&plan);
        self.set_stacks(&plan);
        self.set_vtep(Vtep::new(plan));
        self.crew.share(core::iter::repeat_with(|| Share::Plan(self.vtep.clone())));
        report
    }

    fn set_peers(&mut self, plan: &NodePlan) {
        let now = self.now();
        let mut tunnel = crew::write(&self.tunnel);
        for node in plan.peers.values() {
            let is_new = tunnel.set_peer(PeerConfig {
                node: node.id,
                public_key: node.public_key,
                underlay: node.underlay,
                tunnel_address: node.tunnel_address,
            });
            if is_new {
                self.next_tick = now;
            }
        }
        let wanted: BTreeSet<_> = plan.peers.values().map(|node| node.public_key).collect();
        let gone: Vec<_> = tunnel.peers().map(|status| status.config.public_key).collect();
        for key in gone.iter().filter(|key| !wanted.contains(*key)) {
            tunnel.remove_peer(key);
        }
    }

    fn set_stacks(&mut self, plan: &NodePlan) {
        let now = self.now();
        let mut wanted = BTreeSet::new();
        for (id, network) in &*plan.networks {
            let local = network.endpoints.iter().filter(|endpoint| endpoint.node == plan.node);
            let owners =
                local.map(|endpoint| (Owner::Container(endpoint.container), addresses(network, endpoint.address)));
            let resolver = Addresses { v4: network.resolver, v6: None };
            for (owner, addresses) in owners.chain([(Owner::Resolver(*id), resolver)]) {
                wanted.insert(owner);
                if let Owner::Container(container) = owner {
                    let has_own = self.keep_interface(container, network, addresses);
                    if has_own || self.tap_of.contains_key(id) {
                        self.remove_stack(owner, ATTACHED);
                        continue;
                    }
                }
                if !self.shared.has_sockets {
                    continue;
                }
                let is_same = |existing: &PortInner| {
                    (existing.network, existing.addresses, existing.resolver) == (*id, addresses, network.resolver)
                };
                match self.stacks.get(&owner) {
                    Some(existing) if is_same(existing) => {
                        existing.lock().set_mtu(network.mtu, now);
                        continue;
                    }
                    // Sockets stay in the network and at the address they were made for, whatever becomes of the id.
                    Some(_) => self.remove_stack(owner, REMOVED),
                    None => {}
                }
                self.add_stack(owner, *id, addresses, network.resolver, network.mtu);
            }
        }
        let gone: Vec<Owner> = self.stacks.keys().filter(|owner| !wanted.contains(owner)).copied().collect();
        for owner in gone {
            self.remove_stack(owner, REMOVED);
        }
        let gone: Vec<_> = self.tun_of.keys().filter(|id| !wanted.contains(&Owner::Container(**id))).copied().collect();
        for container in gone {
            self.remove_interface(container);
        }
        let taps: Vec<_> = self.tap_of.keys().copied().collect();
        for id in taps {
            match plan.networks.get(&id) {
                Some(network) => {
                    let Interface { mtu, segments, .. } = interface(network, Kind::Network);
                    let attached = self.tap_of.get(&id).and_then(|place| self.tuns.get_mut(*place)?.as_mut());
                    if let Some(Err(error)) = attached.map(|attached| attached.tun.set_mtu(mtu, segments)) {
                        tracing::warn!(network = %id, %error, "the interface keeps its MTU");
                    }
                }
                None => drop(self.remove_network_interface(id)),
            }
        }
    }

    /// Returns what the interface of a container of this node is to be; `None` where there is no such container.
    pub(super) fn interface(&self, container: ContainerId) -> Option<Interface> {
        let plan = self.vtep.plan();
        let (network, endpoint) = plan.networks.values().find_map(|network| {
            let mut endpoints = network.endpoints.iter();
            let endpoint = endpoints.find(|endpoint| endpoint.container == container && endpoint.node == plan.node)?;
            Some((network, endpoint))
        })?;
        Some(interface(network, container_kind(network, addresses(network, endpoint.address))))
    }

    /// Gives a container an interface, made for what [`interface`](Self::interface) said, instead of its sockets in this
    /// process or of the interface it had.
    pub(super) fn attach(&mut self, container: ContainerId, tun: Tun) -> Result<(), BackendError> {
        let failed = |kind| BackendError::new(kind, "attach an interface to", container);
        if self.interface(container).as_ref() != Some(tun.interface()) {
            // A plan was applied in between.
            return Err(failed(ErrorKind::Conflict));
        }
        let Kind::Container { addresses, .. } = tun.interface().kind else {
            return Err(failed(ErrorKind::Conflict));
        };
        let is_here = |network: &&NetworkId| {
            let network = self.vtep.plan().networks.get(*network);
            network.and_then(|network| network.endpoint(addresses.v4)).is_some_and(|e| e.container == container)
        };
        let network = *self.vtep.plan().networks.keys().find(is_here).ok_or_else(|| failed(ErrorKind::NotFound))?;
        let place = self.place(&tun).map_err(|error| failed(ErrorKind::Io).with_source(error))?;
        self.remove_interface(container);
        self.remove_stack(Owner::Container(container), ATTACHED);
        self.tun_of.insert(container, place);
        self.put(place, Some(container), network, tun);
        Ok(())
    }

    /// Finds a place for an interface and has its events reported.
    fn place(&mut self, tun: &Tun) -> std::io::Result<usize> {
        let place = self.tuns.iter().position(Option::is_none).unwrap_or_else(|| {
            self.tuns.push(None);
            self.tuns.len() - 1
        });
        epoll::add(&self.epoll, tun, EventData::new_u64(place as u64 + FIRST_TUN), EventFlags::IN)?;
        Ok(place)
    }

    /// Puts an interface at its place, and gives the other threads their queues of it.
    fn put(&mut self, place: usize, container: Option<ContainerId>, network: NetworkId, mut tun: Tun) {
        let attached = |tun| Attached { container, network, tun };
        let queues = tun.take_queues();
        self.places.clear();
        self.tuns[place] = Some(attached(tun));
        self.crew.share(queues.map(|queue| Share::Interface(place, attached(queue))));
    }

    /// Takes what is at a place away, from every thread, and returns whether there was something.
    fn clear(&mut self, place: Option<usize>) -> bool {
        self.places.clear();
        let Some(place) = place else {
            return false;
        };
        self.crew.share(core::iter::repeat_with(|| Share::NoInterface(place)));
        self.tuns.get_mut(place).is_some_and(|attached| attached.take().is_some())
    }

    /// Returns what the interface of a network on this node is to be.
    pub(super) fn network_interface(&self, network: NetworkId) -> Option<Interface> {
        self.vtep.plan().networks.get(&network).map(|network| interface(network, Kind::Network))
    }

    /// Gives a network an interface that all its containers here share, but those that have one of their own.
    pub(super) fn attach_network(&mut self, network: NetworkId, tun: Tun) -> Result<(), BackendError> {
        let failed = |kind| BackendError::new(kind, "attach an interface to", network);
        if self.network_interface(network).as_ref() != Some(tun.interface()) {
            return Err(failed(ErrorKind::Conflict));
        }
        let place = self.place(&tun).map_err(|error| failed(ErrorKind::Io).with_source(error))?;
        self.remove_network_interface(network);
        self.tap_of.insert(network, place);
        self.put(place, None, network, tun);
        let plan = self.vtep.plan().clone();
        self.set_stacks(&plan);
        Ok(())
    }

    pub(super) fn detach_network(&mut self, network: NetworkId) -> bool {
        let was_there = self.remove_network_interface(network);
        let plan = self.vtep.plan().clone();
        self.set_stacks(&plan);
        was_there
    }

    fn remove_network_interface(&mut self, network: NetworkId) -> bool {
        let place = self.tap_of.remove(&network);
        self.clear(place)
    }

    /// Removes an interface, whosever it is.
    pub(super) fn remove_at(&mut self, place: usize) {
        match self.tuns.get(place).and_then(Option::as_ref).map(|attached| (attached.container, attached.network)) {
            Some((Some(container), _)) => drop(self.remove_interface(container)),
            Some((None, network)) => drop(self.remove_network_interface(network)),
            None => {}
        }
    }

    /// Takes a container's interface away and gives its sockets in this process back; returns whether there was one.
    pub(super) fn detach(&mut self, container: ContainerId) -> bool {
        if !self.remove_interface(container) {
            return false;
        }
        let plan = self.vtep.plan().clone();
        self.set_stacks(&plan);
        true
    }

    pub(super) fn tun_of(&self, container: ContainerId) -> Option<&Attached> {
        self.tuns.get(*self.tun_of.get(&container)?)?.as_ref()
    }

    /// Returns whether a container keeps the interface it has, which gets the network's MTU. One that was made for another
    /// address or network goes.
    fn keep_interface(&mut self, container: ContainerId, network: &NetworkPlan, addresses: Addresses) -> bool {
        let Some(attached) = self.tun_of.get(&container).and_then(|place| self.tuns.get_mut(*place)?.as_mut()) else {
            return false;
        };
        let wanted = interface(network, container_kind(network, addresses));
        let Interface { mtu, segments, .. } = wanted;
        let has = *attached.tun.interface();
        if attached.network != network.id || (Interface { mtu, segments, ..has }) != wanted {
            self.remove_interface(container);
            return false;
        }
        if let Err(error) = attached.tun.set_mtu(mtu, segments) {
            tracing::warn!(%container, %error, "the interface keeps its MTU");
        }
        true
    }

    /// Removes a container's interface.
    pub(super) fn remove_interface(&mut self, container: ContainerId) -> bool {
        let place = self.tun_of.remove(&container);
        self.clear(place)
    }

    fn add_stack(&mut self, owner: Owner, network: NetworkId, addresses: Addresses, resolver: Ipv4Addr, mtu: u16) {
        let stack = Netstack::new(addresses, mtu, self.shared.random(), self.now());
        let inner = Arc::new(PortInner::new(Arc::clone(&self.shared), owner, network, resolver, stack));
        self.stacks.insert(owner, Arc::clone(&inner));
        match owner {
            Owner::Container(container) => {
                let mut ports = self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner);
                ports.insert(container, inner);
            }
            Owner::Resolver(network) => {
                if let Some(answerer) = &self.answerer {
                    // It listens before any container can ask.
                    let port = Port(inner);
                    let listener = port.listen(DNS_PORT).expect("a new stack has every port free");
                    let socket = answerer.other_names.is_some().then(|| port.bind_udp(DNS_PORT));
                    let socket = socket.map(|socket| socket.expect("a new stack has every port free"));
                    let task = self.runtime.spawn(resolver::serve(listener, socket, network, answerer.clone()));
                    self.resolvers.insert(network, task.abort_handle());
                }
            }
        }
    }

    /// Ends the sockets of a stack; `reason` is what those who hold them are told.
    pub(super) fn remove_stack(&mut self, owner: Owner, reason: &'static str) {
        let Some(inner) = self.stacks.remove(&owner) else {
            return;
        };
        inner.lock().close(reason);
        self.set_deadline(owner, None);
        match owner {
            Owner::Container(container) => {
                self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&container);
            }
            Owner::Resolver(network) => {
                if let Some(task) = self.resolvers.remove(&network) {
                    task.abort();
                }
            }
        }
    }
}

/// Returns what an interface is to be.
fn interface(network: &NetworkPlan, kind: Kind) -> Interface {
    let segments = match kind {
        // What fits into one system call of the underlay with all that is put in front.
        Kind::Container { .. } => {
            let datagram = usize::from(network.mtu) + MAX_OVERHEAD + OVERHEAD;
            (underlay::MAX_OCTETS / datagram).clamp(1, 64) as u32
        }
        // Who sends behind a bridge knows nothing of that, and the kernel would cut what is too much into single packets. That
        // costs more than a second system call.
        Kind::Network => u16::MAX.into(),
    };
    Interface { kind, mtu: network.mtu, segments }
}

/// Returns what the container with an IPv4 address is reached at.
fn addresses(network: &NetworkPlan, v4: Ipv4Addr) -> Addresses {
    Addresses { v4, v6: network.ipv6.map(|prefix| prefix.address(v4)) }
}

const fn container_kind(network: &NetworkPlan, addresses: Addresses) -> Kind {
    Kind::Container { addresses, prefix_len: network.subnet.prefix_len(), resolver: network.resolver }
}
