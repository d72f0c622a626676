//! The loop that carries packets: between the underlay socket, the tunnels, and the containers' stacks.

use core::net::{Ipv4Addr, SocketAddr};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use pn_core::backend::{Observed, ObservedPeer};
use pn_core::{
    BackendError, ContainerId, Encryption, Endpoint, ErrorKind, Generation, KeyScope, NetworkId, NetworkPlan, NodeId,
    NodePlan, Report, Resolver, Transport,
};
use pn_overlay::packet::{Ipv4Packet, UDP, UdpDatagram, udp_reply};
use pn_overlay::{DropCounters, DropReason, Egress, Outbox, PeerConfig, PeerStatus, Tunnel, Vtep, reconcile};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::netstack::Netstack;
use crate::port::{DNS_PORT, Owner, Port, PortInner};
use crate::resolver;
use crate::tap::{Direction, UnderlayTap};

/// Datagrams taken from the underlay before containers get their turn.
const BATCH: usize = 64;

/// Packets of a stack that are carried before others get their turn, and what an answer of the resolver counts for: one
/// may cost as much as many packets.
const BUDGET: usize = 128;
const ANSWER_COST: usize = 16;

/// How many whole turns stacks get before the underlay has one, where there are not more that wait.
const LOCAL_TURNS: usize = 8;

/// How often tunnels look at their clocks.
const TICK: Duration = Duration::from_millis(250);

/// What the driver shares with those who hold ports and the backend.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) drops: DropCounters,
    /// Stacks that wait to be polled; `None` once nobody polls any more.
    ready: Mutex<Option<Vec<Arc<PortInner>>>>,
    wake: Notify,
    ports: Mutex<BTreeMap<ContainerId, Arc<PortInner>>>,
    random: AtomicU64,
}

/// What the backend asks of its driver.
pub(crate) enum Command {
    Apply(NodePlan, oneshot::Sender<Report>),
    Observe(oneshot::Sender<Observed>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
}

pub(crate) struct Driver {
    pub(crate) socket: UdpSocket,
    pub(crate) tunnel: Tunnel,
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    pub(crate) tap: Option<Arc<dyn UnderlayTap>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    vtep: Vtep,
    stacks: BTreeMap<Owner, Arc<PortInner>>,
    /// The tasks that answer DNS over TCP, by network.
    resolvers: BTreeMap<NetworkId, tokio::task::AbortHandle>,
    /// Stacks that have something to do.
    due: VecDeque<Arc<PortInner>>,
    /// When each stack wants to be polled without anything happening, both ways.
    deadlines: BTreeSet<(Duration, Owner)>,
    deadline_of: BTreeMap<Owner, Duration>,
    outbox: Outbox,
    /// Where packets are wrapped.
    buffer: Vec<u8>,
    datagram: Box<[u8]>,
    epoch: Instant,
    next_tick: Duration,
}

impl std::fmt::Debug for PortInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortInner").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(node: NodeId, seed: u64) -> Self {
        Self {
            node,
            drops: DropCounters::default(),
            ready: Mutex::new(Some(Vec::new())),
            wake: Notify::new(),
            ports: Mutex::new(BTreeMap::new()),
            random: AtomicU64::new(seed),
        }
    }

    pub(crate) fn port(&self, container: ContainerId) -> Option<Port> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.get(&container).map(|inner| Port(Arc::clone(inner)))
    }

    pub(crate) fn enqueue(&self, port: Arc<PortInner>) {
        if let Some(ready) = &mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner) {
            ready.push(port);
            self.wake.notify_one();
        }
    }

    /// Moves the stacks that wait to be polled to `due`.
    fn take_ready(&self, due: &mut VecDeque<Arc<PortInner>>) {
        if let Some(ready) = &mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner) {
            due.extend(ready.drain(..));
        }
    }

    /// Returns a number that who does not see the traffic cannot guess well: a counter from a random start, mixed
    /// (the finalizer of SplitMix64).
    pub(crate) fn random(&self) -> u64 {
        let mut mixed = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn random_id(&self) -> u16 {
        self.random() as u16
    }
}

impl Driver {
    pub(crate) fn new(
        socket: UdpSocket,
        tunnel: Tunnel,
        resolver: Option<Arc<dyn Resolver>>,
        tap: Option<Arc<dyn UnderlayTap>>,
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let vtep = Vtep::new(NodePlan::empty(shared.node, Generation::ZERO));
        Self {
            socket,
            tunnel,
            resolver,
            tap,
            shared,
            commands,
            vtep,
            stacks: BTreeMap::new(),
            resolvers: BTreeMap::new(),
            due: VecDeque::new(),
            deadlines: BTreeSet::new(),
            deadline_of: BTreeMap::new(),
            outbox: Outbox::new(),
            buffer: Vec::new(),
            datagram: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
            epoch: Instant::now(),
            next_tick: TICK,
        }
    }

    /// Carries packets until the last handle of the backend is gone.
    pub(crate) async fn run(mut self) {
        let timer = tokio::time::sleep_until(self.epoch);
        tokio::pin!(timer);
        loop {
            let next = self.deadlines.first().map_or(self.next_tick, |(deadline, _)| self.next_tick.min(*deadline));
            let next = self.epoch + next;
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                readable = self.socket.readable() => {
                    if let Err(error) = readable {
                        tracing::error!(%error, "the underlay socket is broken");
                        break;
                    }
                    self.receive();
                }
                () = self.shared.wake.notified() => {}
                () = &mut timer => {}
            }
            self.collect_due();
            self.carry();
            self.send().await;
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn obey(&mut self, command: Command) {
        // Who asked may be gone by now; what was asked for is done all the same.
        match command {
            Command::Apply(plan, reply) => drop(reply.send(self.apply(&plan))),
            Command::Observe(reply) => drop(reply.send(self.observe())),
            Command::Peers(reply) => drop(reply.send(self.tunnel.peers().collect())),
        }
    }

    fn observe(&self) -> Observed {
        let plan = self.vtep.plan();
        let mut observed = Observed::from(plan);
        for (id, network) in &*plan.networks {
            let is_there = |endpoint: &&Endpoint| {
                endpoint.node != plan.node || self.has_stack(*id, endpoint.container, endpoint.address)
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
        let peers = self.tunnel.peers().map(|status| (status.config.public_key, peer(status.config)));
        observed.peers = peers.collect();
        observed
    }

    fn has_stack(&self, network: NetworkId, container: ContainerId, address: Ipv4Addr) -> bool {
        let stack = self.stacks.get(&Owner::Container(container));
        stack.is_some_and(|stack| (stack.network, stack.address) == (network, address))
    }

    /// Makes the node what the plan says. It happens between two packets, so nobody sees half of it.
    fn apply(&mut self, plan: &NodePlan) -> Report {
        let applied = self.vtep.plan().generation;
        let refusal = if plan.node != self.shared.node {
            let object = format!("a plan for {}: this is {}", plan.node, self.shared.node);
            Some(BackendError::new(ErrorKind::WrongNode, "apply", object))
        } else if plan.generation < applied {
            Some(BackendError::superseded(plan.generation, applied))
        } else {
            plan.host.as_deref().filter(|host| host.public_key != self.tunnel.public_key()).map(|host| {
                let ours = self.tunnel.public_key();
                let object = format!("a plan with public key {} for this node: it has {ours}", host.public_key);
                BackendError::new(ErrorKind::WrongNode, "apply", object)
            })
        };
        if let Some(refusal) = refusal {
            return Report::refused(plan.generation, refusal);
        }
        let mut report = Report::new(plan.generation);
        let is_supported = |network: &NetworkPlan| {
            (network.encryption, network.key_scope) == (Encryption::WireGuard, KeyScope::Node) && network.ipv6.is_none()
        };
        for network in plan.networks.values().filter(|network| !is_supported(network)) {
            let NetworkPlan { id, encryption, key_scope, ipv6, .. } = &**network;
            let object =
                format!("network {id} with encryption {encryption:?}, keys per {key_scope:?}, IPv6 prefix {ipv6:?}");
            report.record(&object, Err(BackendError::new(ErrorKind::Unsupported, "create", &object)));
        }
        let plan = plan.only(is_supported);
        for difference in reconcile::differences(&self.observe(), &Observed::from(&plan)) {
            report.record(difference.object, Ok(difference.action));
        }
        self.set_peers(&plan);
        self.set_stacks(&plan);
        self.vtep = Vtep::new(plan);
        report
    }

    fn set_peers(&mut self, plan: &NodePlan) {
        for node in plan.peers.values() {
            self.tunnel.set_peer(PeerConfig {
                node: node.id,
                public_key: node.public_key,
                underlay: node.underlay,
                tunnel_address: node.tunnel_address,
            });
        }
        let wanted: BTreeSet<_> = plan.peers.values().map(|node| node.public_key).collect();
        let gone: Vec<_> = self.tunnel.peers().map(|status| status.config.public_key).collect();
        for key in gone.iter().filter(|key| !wanted.contains(*key)) {
            self.tunnel.remove_peer(key);
        }
    }

    fn set_stacks(&mut self, plan: &NodePlan) {
        let now = self.now();
        let mut wanted = BTreeSet::new();
        for (id, network) in &*plan.networks {
            let local = network.endpoints.iter().filter(|endpoint| endpoint.node == plan.node);
            let owners = local.map(|endpoint| (Owner::Container(endpoint.container), endpoint.address));
            for (owner, address) in owners.chain([(Owner::Resolver(*id), network.resolver)]) {
                wanted.insert(owner);
                let is_same = |existing: &PortInner| {
                    (existing.network, existing.address, existing.resolver) == (*id, address, network.resolver)
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
                self.add_stack(owner, *id, address, network.resolver, network.mtu);
            }
        }
        let gone: Vec<Owner> = self.stacks.keys().filter(|owner| !wanted.contains(owner)).copied().collect();
        for owner in gone {
            self.remove_stack(owner, REMOVED);
        }
    }

    fn add_stack(&mut self, owner: Owner, network: NetworkId, address: Ipv4Addr, resolver: Ipv4Addr, mtu: u16) {
        let stack = Netstack::new(address, mtu, self.shared.random(), self.now());
        let inner = Arc::new(PortInner::new(Arc::clone(&self.shared), owner, network, resolver, stack));
        self.stacks.insert(owner, Arc::clone(&inner));
        match owner {
            Owner::Container(container) => {
                let mut ports = self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner);
                ports.insert(container, inner);
            }
            Owner::Resolver(network) => {
                if let Some(resolver) = &self.resolver {
                    // It listens before any container can ask.
                    let listener = Port(inner).listen(DNS_PORT).expect("a new stack has every port free");
                    let task = tokio::spawn(resolver::serve_tcp(listener, network, Arc::clone(resolver)));
                    self.resolvers.insert(network, task.abort_handle());
                }
            }
        }
    }

    /// Ends the sockets of a stack; `reason` is what those who hold them are told.
    fn remove_stack(&mut self, owner: Owner, reason: &'static str) {
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

    /// Takes a batch of datagrams from the underlay.
    fn receive(&mut self) {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut self.datagram) {
                Ok((len, from)) => {
                    if let Some(tap) = &self.tap {
                        tap.datagram(Direction::Received, from, &self.datagram[..len]);
                    }
                    if let Err(reason) = self.open(from, len) {
                        self.shared.drops.count(reason);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error that some earlier datagram caused; the next call takes the next datagram.
                Err(_) => {}
            }
        }
    }

    fn open(&mut self, from: SocketAddr, len: usize) -> Result<(), DropReason> {
        let opened = self.tunnel.open(from, &self.datagram[..len], &mut self.outbox)?;
        let Some((node, packet)) = opened else {
            return Ok(());
        };
        let ingress = self.vtep.ingress(node, &packet)?;
        let (container, packet) = (ingress.container, ingress.packet.octets().to_vec());
        self.deliver(Owner::Container(container), packet)
    }

    /// Gives a packet to a stack.
    fn deliver(&mut self, to: Owner, packet: Vec<u8>) -> Result<(), DropReason> {
        let stack = self.stacks.get(&to).ok_or(DropReason::UnknownDestination)?;
        let taken = stack.lock().ingress(packet, self.epoch.elapsed());
        if !stack.is_queued.swap(true, Ordering::AcqRel) {
            self.due.push_back(Arc::clone(stack));
        }
        if taken { Ok(()) } else { Err(DropReason::QueueFull) }
    }

    /// Collects the stacks that somebody woke or whose time has come.
    fn collect_due(&mut self) {
        self.shared.take_ready(&mut self.due);
        let now = self.now();
        while let Some((deadline, owner)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.set_deadline(owner, None);
            if let Some(stack) = self.stacks.get(&owner)
                && !stack.is_queued.swap(true, Ordering::AcqRel)
            {
                self.due.push_back(Arc::clone(stack));
            }
        }
        if now >= self.next_tick {
            self.tunnel.tick(&mut self.outbox);
            self.next_tick = now + TICK;
        }
    }

    /// Polls stacks and forwards what they send, until a turn of all that are due is over.
    fn carry(&mut self) {
        let mut packets = VecDeque::new();
        // Local traffic makes stacks due again. A few turns of those that are alone spare them the way around the loop;
        // otherwise they get their next turn after the underlay had one.
        let mut budget = LOCAL_TURNS * BUDGET;
        let mut turns = self.due.len();
        while turns > 0 || budget > 0 {
            let Some(stack) = self.due.pop_front() else {
                return;
            };
            turns = turns.saturating_sub(1);
            budget = budget.saturating_sub(self.turn(&stack, &mut packets).max(1));
        }
        if !self.due.is_empty() {
            self.shared.wake.notify_one();
        }
    }

    /// Polls a stack and forwards what it sends, as far as its budget goes, and returns what that came to.
    fn turn(&mut self, stack: &Arc<PortInner>, packets: &mut VecDeque<Vec<u8>>) -> usize {
        stack.is_queued.store(false, Ordering::Release);
        let next = stack.lock().poll(self.epoch.elapsed(), BUDGET, packets);
        let is_current = self.stacks.get(&stack.owner).is_some_and(|current| Arc::ptr_eq(current, stack));
        if !is_current {
            packets.clear();
            return 0;
        }
        self.set_deadline(stack.owner, next);
        let mut cost = 0;
        while cost < BUDGET
            && let Some(packet) = packets.pop_front()
        {
            match self.forward(stack, packet) {
                Ok(more) => cost += more,
                Err(reason) => {
                    cost += 1;
                    self.shared.drops.count(reason);
                }
            }
        }
        // What is left waits behind the others.
        if stack.lock().put_back(packets) && !stack.is_queued.swap(true, Ordering::AcqRel) {
            self.due.push_back(Arc::clone(stack));
        }
        cost
    }

    /// Sends a packet of a stack on its way, and returns how many it counts for.
    fn forward(&mut self, from: &PortInner, packet: Vec<u8>) -> Result<usize, DropReason> {
        let container = match from.owner {
            Owner::Container(container) => container,
            Owner::Resolver(network) => {
                let destination = Ipv4Packet::parse(&packet).ok_or(DropReason::NotIp)?.destination();
                let network = self.vtep.plan().networks.get(&network).ok_or(DropReason::UnknownVni)?;
                let to = network.endpoint(destination).ok_or(DropReason::UnknownDestination)?.container;
                return self.deliver(Owner::Container(to), packet).map(|()| 1);
            }
        };
        let mut cost = 1;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = match self.vtep.egress(from.network, container, &packet, &mut buffer) {
            Ok(Egress::Tunnel(via, wrapped)) => self.tunnel.seal(via, wrapped, &mut self.outbox),
            Ok(Egress::Local(to)) => self.deliver(Owner::Container(to), packet),
            Ok(Egress::Resolver(query)) => match self.answer(from.network, &query) {
                Some(reply) => {
                    cost = ANSWER_COST;
                    reply.map_or(Ok(()), |reply| self.deliver(from.owner, reply))
                }
                None => self.deliver(Owner::Resolver(from.network), packet),
            },
            Err(reason) => {
                if reason == DropReason::UnknownDestination
                    && let Some(packet) = Ipv4Packet::parse(&packet)
                {
                    from.lock().unreachable(packet.destination());
                }
                Err(reason)
            }
        };
        self.buffer = buffer;
        result.map(|()| cost)
    }

    /// Answers a DNS query over UDP in place. `None` where the packet is none.
    fn answer(&self, network: NetworkId, packet: &Ipv4Packet<'_>) -> Option<Option<Vec<u8>>> {
        let resolver = self.resolver.as_ref()?;
        let udp =
            (packet.protocol() == UDP && !packet.is_fragment()).then(|| UdpDatagram::parse(packet.payload()))??;
        if udp.destination != DNS_PORT {
            return None;
        }
        let reply = resolver.resolve(network, Transport::Udp, udp.payload);
        Some(reply.and_then(|reply| udp_reply(packet, &udp, &reply)))
    }

    /// Sends what waits for the underlay.
    async fn send(&mut self) {
        for (to, datagram) in self.outbox.iter() {
            if let Some(tap) = &self.tap {
                tap.datagram(Direction::Sent, to, datagram);
            }
            let sent = match self.socket.try_send_to(datagram, to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.send_to(datagram, to).await,
                result => result,
            };
            if let Err(error) = sent {
                tracing::debug!(%to, %error, "a datagram was not sent");
                self.shared.drops.count(DropReason::SendFailed);
            }
        }
        self.outbox.clear();
    }

    fn set_deadline(&mut self, owner: Owner, deadline: Option<Duration>) {
        let before = match deadline {
            Some(deadline) => self.deadline_of.insert(owner, deadline),
            None => self.deadline_of.remove(&owner),
        };
        if let Some(before) = before {
            self.deadlines.remove(&(before, owner));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, owner));
        }
    }
}

/// However the driver ends, be it that an embedder's code panicked in it, nobody waits for it.
impl Drop for Driver {
    fn drop(&mut self) {
        let owners: Vec<Owner> = self.stacks.keys().copied().collect();
        owners.into_iter().for_each(|owner| self.remove_stack(owner, ENDED));
        // Who still holds a port must not keep itself alive by waking it.
        *self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Why sockets end.
const REMOVED: &str = "the container was removed from its network";
const ENDED: &str = "the node's data plane has ended";
