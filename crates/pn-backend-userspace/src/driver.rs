//! The loop that carries packets: between the underlay socket, the tunnels, and the containers' stacks and interfaces.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use pn_core::backend::Observed;
use pn_core::{BackendError, ContainerId, Generation, NetworkId, NodeId, NodePlan, Report};
use pn_overlay::{Admitted, DropCounters, DropReason, FairQueue, Outbox, PeerStatus, Recent, Routed, Tunnel, Vtep};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::offload::Coalescer;
use crate::port::{Owner, Port, PortInner};
use crate::resolver::Answerer;
use crate::spares::Spares;
use crate::tap::UnderlayTap;
use crate::tun::{Interface, Tun};
use crate::underlay::Underlay;

mod carry;
mod crew;
mod plan;
mod turn;

pub(crate) use crew::Crew;
use crew::Share;

/// How often tunnels look at their clocks.
const TICK: Duration = Duration::from_millis(250);

/// How long the driver looks for more before it sleeps, where something came within that time before. To be woken takes an idle
/// processor longer than most of what there is to do for a packet.
const LINGER: Duration = Duration::from_micros(100);

/// Interfaces that are read before the underlay is looked at again, whose buffer would overflow behind many of them.
const READS_BETWEEN: usize = 4;

/// What events are for: the underlay, a wake-up, and from here on interfaces by their place.
const UNDERLAY: u64 = 0;
const WAKE: u64 = 1;
const FIRST_TUN: u64 = 2;

/// Events taken at a time.
const EVENTS: usize = 64;

/// Packets that wait for a stack because another thread than its own received them.
const MAX_HANDED_OVER: usize = 1024;

/// What a thread that carries packets shares with others: with those who hold ports and the backend, where it is the first.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) drops: Arc<DropCounters>,
    /// Whether containers without an interface have sockets in this process.
    has_sockets: bool,
    /// Stacks that wait to be polled; `None` once nobody polls any more.
    ready: Mutex<Option<Vec<Arc<PortInner>>>>,
    /// What the other threads received for stacks.
    handed_over: Mutex<HandedOver>,
    /// Wakes the driver.
    wake: OwnedFd,
    /// Whether the driver sleeps, or is about to.
    is_asleep: AtomicBool,
    ports: Mutex<BTreeMap<ContainerId, Arc<PortInner>>>,
    random: AtomicU64,
}

/// A packet for a stack of a network.
type ForStack = (NetworkId, Owner, Vec<u8>);

/// Packets that wait for the thread that has the stacks, and buffers that it gave back.
#[derive(Debug)]
struct HandedOver {
    packets: FairQueue<ForStack>,
    spares: Spares,
}

/// What the backend asks of its driver.
pub(crate) enum Command {
    Apply(NodePlan, oneshot::Sender<Report>),
    Observe(oneshot::Sender<Observed>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Interface(ContainerId, oneshot::Sender<Option<Interface>>),
    Attach(ContainerId, Box<Tun>, oneshot::Sender<Result<(), BackendError>>),
    Detach(ContainerId, oneshot::Sender<bool>),
    Attached(oneshot::Sender<BTreeSet<ContainerId>>),
    NetworkInterface(NetworkId, oneshot::Sender<Option<Interface>>),
    AttachNetwork(NetworkId, Box<Tun>, oneshot::Sender<Result<(), BackendError>>),
    DetachNetwork(NetworkId, oneshot::Sender<bool>),
    /// From the first thread to another.
    Share(Box<Share>, std::sync::mpsc::Sender<()>),
}

/// The way to ask the driver, which ends with the last of them.
#[derive(Debug)]
pub(crate) struct Commands {
    sender: Option<mpsc::UnboundedSender<Command>>,
    shared: Arc<Shared>,
}

impl Commands {
    pub(crate) fn new(shared: Arc<Shared>) -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender: Some(sender), shared }, receiver)
    }

    /// Returns whether the driver is there to obey.
    pub(crate) fn send(&self, command: Command) -> bool {
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send(command).is_ok());
        self.shared.wake();
        sent
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.sender = None;
        self.shared.wake();
    }
}

pub(crate) struct Driver {
    underlay: Underlay,
    tunnel: Arc<RwLock<Tunnel>>,
    answerer: Option<Answerer>,
    tap: Option<Arc<dyn UnderlayTap>>,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    crew: Crew,
    /// Where tasks of the embedder's runtime are started.
    runtime: Handle,
    epoll: OwnedFd,
    vtep: Vtep,
    stacks: BTreeMap<Owner, Arc<PortInner>>,
    /// Interfaces by their place, which their events name.
    tuns: Vec<Option<Attached>>,
    tun_of: HashMap<ContainerId, usize>,
    tap_of: HashMap<NetworkId, usize>,
    /// The tasks that answer DNS where it takes a while, by network.
    resolvers: BTreeMap<NetworkId, tokio::task::AbortHandle>,
    /// Stacks that have something to do.
    due: VecDeque<Arc<PortInner>>,
    /// What the other threads handed over last.
    handed_over: Vec<ForStack>,
    /// When each stack wants to be polled without anything happening, both ways.
    deadlines: BTreeSet<(Duration, Owner)>,
    deadline_of: BTreeMap<Owner, Duration>,
    outbox: Outbox,
    /// Where packets of interfaces are read to, with room in front.
    packet: Box<[u8]>,
    /// Where packets of the tunnel are opened, how much of it is in use, and how those in it are put together.
    opened: Box<[u8]>,
    opened_to: usize,
    coalescer: Coalescer<usize>,
    /// Those of them that are for stacks.
    arrived: Vec<((NetworkId, ContainerId), Range<usize>)>,
    /// Where the last packets went.
    routed: Routed,
    /// What the last packets of the tunnel were found to be, and the interfaces they were for, if any.
    admitted: Admitted,
    places: Recent<(NetworkId, ContainerId), Option<usize>>,
    /// Whether the last events came within [`LINGER`].
    is_lively: bool,
    epoch: Instant,
    next_tick: Duration,
}

/// An interface: a container's, or the one that all containers of a network share.
#[derive(Debug)]
pub(crate) struct Attached {
    container: Option<ContainerId>,
    network: NetworkId,
    tun: Tun,
}

impl std::fmt::Debug for PortInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortInner").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(node: NodeId, seed: u64, drops: Arc<DropCounters>, has_sockets: bool) -> io::Result<Self> {
        Ok(Self {
            node,
            drops,
            has_sockets,
            ready: Mutex::new(Some(Vec::new())),
            handed_over: Mutex::new(HandedOver { packets: FairQueue::new(MAX_HANDED_OVER), spares: Spares::default() }),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_asleep: AtomicBool::new(false),
            ports: Mutex::new(BTreeMap::new()),
            random: AtomicU64::new(seed),
        })
    }

    pub(crate) fn port(&self, container: ContainerId) -> Option<Port> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.get(&container).map(|inner| Port(Arc::clone(inner)))
    }

    pub(crate) fn enqueue(&self, port: Arc<PortInner>) {
        if let Some(ready) = &mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner) {
            ready.push(port);
        } else {
            return;
        }
        self.wake();
    }

    /// Has the driver look around, where it sleeps. What it is to see must be there before.
    pub(crate) fn wake(&self) {
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            // It fails where it was called 2^64 times.
            let _: rustix::io::Result<usize> = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Returns whether stacks wait to be polled.
    fn has_ready(&self) -> bool {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.as_ref().is_some_and(|ready| !ready.is_empty())
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
        underlay: Underlay,
        tunnel: Arc<RwLock<Tunnel>>,
        answerer: Option<Answerer>,
        tap: Option<Arc<dyn UnderlayTap>>,
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        crew: Crew,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &underlay, EventData::new_u64(UNDERLAY), EventFlags::IN)?;
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let vtep = Vtep::new(NodePlan::empty(shared.node, Generation::ZERO));
        Ok(Self {
            underlay,
            tunnel,
            answerer,
            tap,
            shared,
            commands,
            crew,
            runtime: Handle::current(),
            epoll,
            vtep,
            stacks: BTreeMap::new(),
            tuns: Vec::new(),
            tun_of: HashMap::new(),
            tap_of: HashMap::new(),
            resolvers: BTreeMap::new(),
            due: VecDeque::new(),
            handed_over: Vec::new(),
            deadlines: BTreeSet::new(),
            deadline_of: BTreeMap::new(),
            outbox: Outbox::new(),
            packet: vec![0; carry::PACKET_BUFFER].into_boxed_slice(),
            opened: vec![0; carry::OPENED_BUFFER].into_boxed_slice(),
            opened_to: 0,
            coalescer: Coalescer::new(),
            arrived: Vec::new(),
            routed: Routed::default(),
            admitted: Admitted::default(),
            places: Recent::default(),
            is_lively: false,
            epoch: Instant::now(),
            next_tick: TICK,
        })
    }

    /// Carries packets until the last handle of the backend is gone. It blocks, on a thread of its own.
    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let patience = self.patience();
            let waited = self.wait(&mut events, patience);
            if let Err(error) = waited {
                tracing::error!(%error, "the driver cannot wait for packets");
                return;
            }
            let mut reads = 0;
            for event in &events {
                match event.data.u64() {
                    UNDERLAY => self.receive(),
                    WAKE => {
                        let _: rustix::io::Result<usize> = rustix::io::read(&self.shared.wake, &mut [0; 8]);
                    }
                    tun => {
                        self.read(usize::try_from(tun - FIRST_TUN).unwrap_or(usize::MAX));
                        reads += 1;
                        if reads % READS_BETWEEN == 0 {
                            self.receive();
                        }
                    }
                }
            }
            self.collect_due();
            self.carry();
            self.flush();
        }
    }

    /// Returns how long there is nothing to do but what others begin.
    fn patience(&self) -> Duration {
        if !self.due.is_empty() {
            return Duration::ZERO;
        }
        let next = self.deadlines.first().map_or(self.next_tick, |(deadline, _)| self.next_tick.min(*deadline));
        next.saturating_sub(self.now())
    }

    /// Waits for events.
    fn wait(&mut self, events: &mut Vec<Event>, patience: Duration) -> io::Result<()> {
        let start = Instant::now();
        while self.is_lively && start.elapsed() < LINGER.min(patience) {
            self.look(events, Duration::ZERO)?;
            if !events.is_empty() || self.is_called() {
                return Ok(());
            }
            // Others may have something to do, and it may be what is waited for.
            thread::yield_now();
        }
        self.look(events, patience)?;
        self.is_lively = start.elapsed() < LINGER;
        Ok(())
    }

    /// Takes events, and waits for the first as long as there is patience.
    fn look(&self, events: &mut Vec<Event>, mut patience: Duration) -> io::Result<()> {
        events.clear();
        if !patience.is_zero() {
            // Who has work from here on wakes us; who had it before has put it where it is seen now.
            self.shared.is_asleep.store(true, Ordering::SeqCst);
            if self.is_called() {
                patience = Duration::ZERO;
            }
        }
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        let result = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&timeout));
        self.shared.is_asleep.store(false, Ordering::SeqCst);
        match result {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether somebody in this process wants something.
    fn is_called(&self) -> bool {
        self.shared.has_ready()
            || self.shared.has_handed_over()
            || !self.commands.is_empty()
            || self.commands.is_closed()
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn obey(&mut self, command: Command) {
        // Who asked may be gone by now; what was asked for is done all the same.
        match command {
            Command::Apply(plan, reply) => drop(reply.send(self.apply(&plan))),
            Command::Observe(reply) => drop(reply.send(self.observe())),
            Command::Peers(reply) => drop(reply.send(crew::read(&self.tunnel).peers().collect())),
            Command::Interface(container, reply) => drop(reply.send(self.interface(container))),
            Command::Attach(container, tun, reply) => drop(reply.send(self.attach(container, *tun))),
            Command::Detach(container, reply) => drop(reply.send(self.detach(container))),
            Command::Attached(reply) => drop(reply.send(self.tun_of.keys().copied().collect())),
            Command::NetworkInterface(network, reply) => drop(reply.send(self.network_interface(network))),
            Command::AttachNetwork(network, tun, reply) => drop(reply.send(self.attach_network(network, *tun))),
            Command::DetachNetwork(network, reply) => drop(reply.send(self.detach_network(network))),
            Command::Share(share, done) => {
                self.take(*share);
                drop(done);
            }
        }
    }

    /// Collects the stacks that somebody woke or whose time has come.
    fn collect_due(&mut self) {
        self.shared.take_ready(&mut self.due);
        let mut handed_over = core::mem::take(&mut self.handed_over);
        self.shared.take_handed_over(&mut handed_over);
        for packets in handed_over.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            self.deliver(packets[0].0, packets[0].1, packets.iter().map(|(.., packet)| &packet[..]));
        }
        self.handed_over = handed_over;
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
            self.underlay.count_not_received(&self.shared.drops);
            if self.crew.is_first() {
                let unanswered = crew::read(&self.tunnel).tick(&mut self.outbox);
                self.shared.drops.add(DropReason::Unanswered, unanswered as u64);
            }
            self.next_tick = now + TICK;
        }
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
        self.tuns.clear();
        let owners: Vec<Owner> = self.stacks.keys().copied().collect();
        owners.into_iter().for_each(|owner| self.remove_stack(owner, ENDED));
        // Who still holds a port must not keep itself alive by waking it.
        *self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Why sockets end.
const REMOVED: &str = "the container was removed from its network";
const ATTACHED: &str = "the container has an interface of its own now";
const ENDED: &str = "the node's data plane has ended";
