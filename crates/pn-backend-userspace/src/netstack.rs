//! The sockets of one container, as a state machine: packets and time in, packets out, both in batches.
//!
//! TCP and ping are smoltcp's. UDP is ours, because datagrams larger than the MTU have to be fragmented, which smoltcp does
//! for one at a time and forgets when a second begins.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use pn_overlay::packet::{IPV6_LEN, IpPacket, UDP, UDP_LEN, UdpDatagram};
use pn_overlay::{FairQueue, queue};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpProtocol, checksum};
use tokio::sync::Notify;

use crate::batch::Batch;
use crate::fragment::{Envelope, Reassembly, fragment, max_payload};
use crate::spares::Spares;

mod holes;
mod orphans;

use holes::Holes;
use orphans::Orphans;

/// How much faster than others' smoltcp's clock goes here. It waits at least a second before it sends a segment again, as RFC
/// 6298 has it; where a round trip takes a millisecond, that is as long as nothing else. So it is 200 ms, as with Linux.
const CLOCK_RATE: u32 = 5;

/// Octets that a TCP connection buffers in each direction, and so its largest window.
const TCP_BUFFER: usize = 512 * 1024;

/// After so long without an answer, an attempt to connect is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// After so long without a packet from the other side, a connection is given up. smoltcp counts from the last packet that
/// came, whether one was due or not, and probes a closed window every 60 s at least: so it has to be several times as long
/// as that and as the time between keep-alives.
const TCP_TIMEOUT: Duration = Duration::from_secs(180);

/// After so long without a packet to send, the other side is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(45);

/// How long an acknowledgement waits for something to travel with.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// Connections that wait to be accepted, established or not, for each listener.
const BACKLOG: usize = 128;

/// Octets that wait in a UDP socket, each datagram counted with some more for what keeps it.
const UDP_QUEUE: usize = 1024 * 1024;
const UDP_QUEUE_OVERHEAD: usize = 256;

/// Octets of UDP that wait to be sent, with what is put in front of each packet.
const SEND_QUEUE: usize = 256 * 1024;

/// What smoltcp's answers to packets of a batch may take before what comes is dropped, in octets.
const SEGMENTS: usize = 4 << 20;

/// The ports that connections and sockets without one get (RFC 6335 §6).
const EPHEMERAL: core::ops::RangeInclusive<u16> = 49_152..=65_535;

/// What a container, or a resolver, is reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    /// `None` in a network without IPv6.
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Returns the one of the same version as another, if there is one.
    pub(crate) fn like(self, other: IpAddr) -> Option<IpAddr> {
        if other.is_ipv4() { Some(self.v4.into()) } else { self.v6.map(IpAddr::from) }
    }
}

pub(crate) struct Netstack {
    addresses: Addresses,
    mtu: u16,
    random: u64,
    interface: Interface,
    sockets: SocketSet<'static>,
    listeners: BTreeMap<u16, Listener>,
    /// How connections ended; what is not here and is closed was given up.
    ends: HashMap<SocketHandle, End>,
    /// What is left to read of connections that both sides have closed; smoltcp forgets it with the connection.
    rests: HashMap<SocketHandle, VecDeque<u8>>,
    orphans: Orphans,
    holes: Holes,
    udp: BTreeMap<u16, UdpQueue>,
    /// The UDP sockets that had nothing to read before the batch that is taken in.
    arrived: Vec<u16>,
    spares: Spares,
    reassembly: Reassembly,
    identification: u32,
    /// What smoltcp sends.
    segments: Batch,
    /// What UDP sockets and raw ones send, and what did not leave of it in the turns before.
    datagrams: Batch,
    leaving: Batch,
    /// Whether smoltcp has more to send than its turn had room for.
    has_more: bool,
    /// Why it was closed, once it was.
    closed: Option<&'static str>,
}

struct Listener {
    /// One that listens and those that shake hands.
    pending: Vec<SocketHandle>,
    established: VecDeque<SocketHandle>,
    changed: Arc<Notify>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody has the address.
    Unreachable,
    /// The other side reset it.
    Reset,
}

struct UdpQueue {
    datagrams: FairQueue<(SocketAddr, Vec<u8>)>,
    changed: Arc<Notify>,
}

/// What leaves a stack in a turn.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// TCP and ping, all of which leaves.
    pub(crate) segments: Batch,
    /// UDP, of which as much leaves as the turn has room for.
    pub(crate) datagrams: Batch,
}

impl Netstack {
    /// Makes the stack of a container; `seed` is where sequence numbers and ports come from.
    pub(crate) fn new(addresses: Addresses, mtu: u16, seed: u64, now: Duration) -> Self {
        Self {
            addresses,
            mtu,
            random: seed | 1,
            interface: interface(addresses, seed, mtu, now),
            sockets: SocketSet::new(Vec::new()),
            listeners: BTreeMap::new(),
            ends: HashMap::new(),
            rests: HashMap::new(),
            orphans: Orphans::default(),
            holes: Holes::default(),
            udp: BTreeMap::new(),
            arrived: Vec::new(),
            spares: Spares::default(),
            reassembly: Reassembly::default(),
            identification: seed as u32,
            segments: Batch::default(),
            datagrams: Batch::default(),
            leaving: Batch::default(),
            has_more: false,
            closed: None,
        }
    }

    pub(crate) const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Changes the MTU for whatever is sent from now on; connections go on.
    pub(crate) fn set_mtu(&mut self, mtu: u16, now: Duration) {
        if self.mtu != mtu {
            self.mtu = mtu;
            let seed = self.random();
            self.interface = interface(self.addresses, seed, mtu, now);
        }
    }

    /// Ends every connection and refuses new ones; everybody is told the reason.
    pub(crate) fn close(&mut self, reason: &'static str) {
        self.closed = Some(reason);
        for (_, socket) in self.sockets.iter_mut() {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            socket.abort();
        }
        self.listeners.values().for_each(|listener| listener.changed.notify_waiters());
        self.udp.values().for_each(|queue| queue.changed.notify_waiters());
    }

    pub(crate) fn check_open(&self) -> io::Result<()> {
        self.closed.map_or(Ok(()), |reason| Err(io::Error::new(io::ErrorKind::NotConnected, reason)))
    }

    /// Takes a packet of a batch for this container, and returns how many packets there was no room for any more. After the
    /// batch, [`announce`](Self::announce) is to be called.
    #[must_use]
    pub(crate) fn ingress(&mut self, packet: &[u8], now: Duration) -> usize {
        // What is for another address is not for anybody here.
        let is_ours = |packet: &IpPacket<'_>| self.addresses.like(packet.destination()) == Some(packet.destination());
        let Some(parsed) = IpPacket::parse(packet).filter(is_ours) else {
            return 0;
        };
        if parsed.protocol() == UDP {
            return self.ingress_udp(&parsed, now);
        }
        // Nothing but UDP is ever sent in fragments here, and smoltcp would take one for a whole packet.
        if parsed.fragment().is_some() {
            return 0;
        }
        if self.segments.used() > SEGMENTS {
            // Who asks more than is sent is answered less.
            return 1;
        }
        if parsed.protocol() == TCP {
            self.holes.note(&parsed, now);
        }
        self.give(packet, now);
        0
    }

    fn ingress_udp(&mut self, packet: &IpPacket<'_>, now: Duration) -> usize {
        let Some(payload) = self.reassembly.accept(packet, now) else {
            return 0;
        };
        let Some(udp) = UdpDatagram::parse(&payload) else {
            return 0;
        };
        // IPv6 has no datagrams without a checksum (RFC 8200 §8.1).
        let has_checksum = payload[6..8] != [0, 0] || packet.source().is_ipv6();
        let parts = [&payload[..UDP_LEN], udp.payload];
        if has_checksum && udp_sum(packet.source(), packet.destination(), parts) != u16::MAX {
            return 0;
        }
        let Some(queue) = self.udp.get_mut(&udp.destination) else {
            return 0;
        };
        if queue.datagrams.is_empty() {
            self.arrived.push(udp.destination);
        }
        let datagram = (SocketAddr::new(packet.source(), udp.source), self.spares.fill(udp.payload));
        let cost = datagram.1.capacity() + UDP_QUEUE_OVERHEAD;
        let mut dropped = 0;
        queue.datagrams.push_with(queue::flow(packet.octets()), cost, datagram, |(_, payload)| {
            dropped += 1;
            self.spares.put(payload);
        });
        dropped
    }

    /// Tells readers of UDP sockets what a batch has brought; those of TCP know.
    pub(crate) fn announce(&mut self) {
        for port in self.arrived.drain(..) {
            if let Some(queue) = self.udp.get(&port) {
                queue.changed.notify_one();
            }
        }
    }

    /// Gives smoltcp a packet.
    fn give(&mut self, packet: &[u8], now: Duration) {
        let (port, flags) = segment(packet).unzip();
        let flags = flags.unwrap_or(0);
        let ending = (flags & (RST | FIN) != 0).then(|| self.connection_of(packet)).flatten();
        if let Some(port) = port
            && flags & (SYN | ACK) == SYN
            && !self.has_room(port)
        {
            // smoltcp would refuse it. The other side asks again, and somebody may have accepted one by then.
            return;
        }
        let mut wire = Wire { mtu: self.mtu, received: Some(packet), sent: &mut self.segments };
        let _: PollIngressSingleResult = self.interface.poll_ingress_single(instant(now), &mut wire, &mut self.sockets);
        if let Some(handle) = ending {
            self.note_end(handle, flags);
        }
        if let Some(port) = port {
            self.settle_listener(port);
        }
    }

    /// Does what is due and returns what is to be sent, which is to be [put back](Self::put_back), and when there is something to
    /// do again, if nothing else happens before. `room` is how many packets TCP makes, but for one of each connection.
    pub(crate) fn poll(&mut self, now: Duration, room: usize) -> (Leaving, Option<Duration>) {
        let instant = instant(now);
        self.interface.poll_maintenance(instant);
        for packet in self.holes.lost(now) {
            self.give(&packet, now);
        }
        let give_up_at = self.orphans.give_up(&mut self.sockets, now);
        loop {
            // Each connection that has something to send sends one packet.
            let mut wire = Wire { mtu: self.mtu, received: None, sent: &mut self.segments };
            let result = self.interface.poll_egress(instant, &mut wire, &mut self.sockets);
            self.has_more = result == PollResult::SocketStateChanged;
            if !self.has_more || self.segments.len() >= room {
                break;
            }
        }
        self.orphans.bury(&mut self.sockets);
        if self.leaving.is_empty() {
            core::mem::swap(&mut self.leaving, &mut self.datagrams);
        }
        let segments = core::mem::take(&mut self.segments);
        let leaving = Leaving { segments, datagrams: core::mem::take(&mut self.leaving) };
        let next = self.interface.poll_at(instant, &self.sockets);
        let micros = |next: Instant| u64::try_from(next.total_micros()).unwrap_or(0).div_ceil(CLOCK_RATE.into());
        let next = next.map(|next| Duration::from_micros(micros(next)).max(now));
        (leaving, next.into_iter().chain(give_up_at).chain(self.holes.next()).min())
    }

    /// Keeps what has to be known of a connection that a packet with these flags may have ended.
    fn note_end(&mut self, handle: SocketHandle, flags: u8) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let state = socket.state();
        if flags & RST != 0 && state == tcp::State::Closed {
            self.ends.insert(handle, End::Reset);
        } else if matches!(state, tcp::State::Closing | tcp::State::TimeWait) && !self.orphans.contains(handle) {
            let rest = self.rests.entry(handle).or_default();
            while socket.can_recv() {
                let taken = socket.recv(|octets| {
                    rest.extend(&*octets);
                    (octets.len(), ())
                });
                taken.expect("there is something to receive");
            }
        }
    }

    /// Returns what is left to read of a connection that both sides have closed.
    pub(crate) fn rest(&mut self, handle: SocketHandle) -> Option<&mut VecDeque<u8>> {
        self.rests.get_mut(&handle)
    }

    /// Takes back what was not sent yet, and the memory of what was; returns whether anything is left to send.
    pub(crate) fn put_back(&mut self, Leaving { mut segments, mut datagrams }: Leaving) -> bool {
        if self.segments.is_empty() {
            segments.clear();
            self.segments = segments;
        }
        if datagrams.is_empty() {
            datagrams.clear();
        }
        self.leaving = datagrams;
        self.has_more || !(self.segments.is_empty() && self.leaving.is_empty() && self.datagrams.is_empty())
    }

    /// Returns whether one more connection to a port is answered, be it that nobody listens there and it is refused.
    fn has_room(&mut self, port: u16) -> bool {
        self.settle_listener(port);
        let Some(listener) = self.listeners.get(&port) else {
            return true;
        };
        // The one that listens is the last that was added.
        listener.pending.iter().rev().any(|handle| self.sockets.get::<tcp::Socket<'_>>(*handle).is_listening())
    }

    /// Tells connections that are being made to an address that nobody has it.
    pub(crate) fn unreachable(&mut self, address: IpAddr) {
        for (handle, socket) in self.sockets.iter_mut() {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            let to = socket.remote_endpoint().map(|remote| remote.addr);
            if socket.state() == tcp::State::SynSent && to == Some(address.into()) {
                self.ends.insert(handle, End::Unreachable);
                socket.close();
            }
        }
    }

    /// Starts to listen on a port; 0 picks one.
    pub(crate) fn listen(&mut self, port: u16) -> io::Result<(u16, Arc<Notify>)> {
        self.check_open()?;
        let port = self.pick_port(port, |stack, port| stack.listeners.contains_key(&port))?;
        let changed = Arc::new(Notify::new());
        let listener = Listener { pending: Vec::new(), established: VecDeque::new(), changed: Arc::clone(&changed) };
        self.listeners.insert(port, listener);
        self.settle_listener(port);
        Ok((port, changed))
    }

    /// Stops to listen; connections that nobody accepted are reset.
    pub(crate) fn unlisten(&mut self, port: u16) {
        let Some(listener) = self.listeners.remove(&port) else {
            return;
        };
        for handle in listener.pending.into_iter().chain(listener.established) {
            self.tcp(handle).abort();
            self.orphans.push(handle);
        }
    }

    /// Returns the next established connection of a listener.
    pub(crate) fn accept(&mut self, port: u16) -> io::Result<Option<SocketHandle>> {
        self.check_open()?;
        let accepted = self.listeners.get_mut(&port).and_then(|listener| listener.established.pop_front());
        if accepted.is_some() {
            self.settle_listener(port);
        }
        Ok(accepted)
    }

    /// Sorts a listener's connections and sees to it that one listens while there is room.
    fn settle_listener(&mut self, port: u16) {
        let Some(Listener { pending, established, changed }) = self.listeners.get_mut(&port) else {
            return;
        };
        let mut listening = false;
        pending.retain(|handle| match self.sockets.get_mut::<tcp::Socket<'_>>(*handle).state() {
            tcp::State::Listen => {
                listening = true;
                true
            }
            tcp::State::SynReceived | tcp::State::SynSent => true,
            tcp::State::Closed | tcp::State::TimeWait => {
                self.sockets.remove(*handle);
                false
            }
            tcp::State::Established
            | tcp::State::CloseWait
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::Closing
            | tcp::State::LastAck => {
                self.sockets.get_mut::<tcp::Socket<'_>>(*handle).set_timeout(Some(ticks(TCP_TIMEOUT)));
                established.push_back(*handle);
                changed.notify_one();
                false
            }
        });
        if !listening && pending.len() + established.len() < BACKLOG {
            let mut socket = new_tcp();
            socket.listen(port).expect("a new socket listens on any port but 0");
            let handle = self.sockets.add(socket);
            // It may have been another's.
            self.ends.remove(&handle);
            self.rests.remove(&handle);
            pending.push(handle);
        }
    }

    /// Starts to make a connection.
    pub(crate) fn connect(&mut self, to: SocketAddr) -> io::Result<SocketHandle> {
        self.check_open()?;
        let own = self.own(to)?;
        let in_use = |stack: &Self, port: u16| {
            stack.listeners.contains_key(&port)
                || stack.sockets.iter().any(|(_, socket)| {
                    let smoltcp::socket::Socket::Tcp(socket) = socket;
                    socket.local_endpoint().is_some_and(|local| local.port == port)
                })
        };
        let port = self.pick_port(0, in_use)?;
        let mut socket = new_tcp();
        let (remote, local) = ((IpAddress::from(to.ip()), to.port()), (IpAddress::from(own), port));
        socket
            .connect(self.interface.context(), remote, local)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("cannot connect to {to}: {error}")))?;
        let handle = self.sockets.add(socket);
        // It may have been another's.
        self.ends.remove(&handle);
        self.rests.remove(&handle);
        Ok(handle)
    }

    /// Returns the address that packets to another have as their source.
    fn own(&self, to: SocketAddr) -> io::Result<IpAddr> {
        self.addresses.like(to.ip()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::HostUnreachable, format!("cannot reach {to}: the network has no IPv6"))
        })
    }

    /// Returns whether a connection that is being made is there, and why not if it failed; `None` while that is open.
    pub(crate) fn connected(&mut self, handle: SocketHandle) -> Option<Result<(), io::ErrorKind>> {
        let end = self.ends.get(&handle).copied();
        let socket = self.tcp(handle);
        match socket.state() {
            tcp::State::SynSent | tcp::State::SynReceived => None,
            tcp::State::Closed => Some(Err(match end {
                Some(End::Unreachable) => io::ErrorKind::HostUnreachable,
                Some(End::Reset) => io::ErrorKind::ConnectionRefused,
                None => io::ErrorKind::TimedOut,
            })),
            tcp::State::Listen
            | tcp::State::Established
            | tcp::State::CloseWait
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::Closing
            | tcp::State::LastAck
            | tcp::State::TimeWait => {
                socket.set_timeout(Some(ticks(TCP_TIMEOUT)));
                Some(Ok(()))
            }
        }
    }

    /// Returns why a connection that was there is no more.
    pub(crate) fn broken(&self, handle: SocketHandle) -> io::Error {
        let given_up =
            if self.ends.contains_key(&handle) { io::ErrorKind::ConnectionReset } else { io::ErrorKind::TimedOut };
        self.check_open().err().unwrap_or_else(|| given_up.into())
    }

    /// Finds the connection that a TCP packet belongs to.
    fn connection_of(&self, packet: &[u8]) -> Option<SocketHandle> {
        let packet = IpPacket::parse(packet)?;
        let [a, b, c, d] = *packet.payload().first_chunk()?;
        let remote = IpEndpoint::new(packet.source().into(), u16::from_be_bytes([a, b]));
        let port = u16::from_be_bytes([c, d]);
        let mut sockets = self.sockets.iter().map(|(handle, smoltcp::socket::Socket::Tcp(socket))| (handle, socket));
        let found = sockets.find(|(_, socket)| {
            socket.remote_endpoint() == Some(remote) && socket.local_endpoint().is_some_and(|local| local.port == port)
        });
        found.map(|(handle, _)| handle)
    }

    /// Returns a connection's socket.
    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Takes a connection from its owner, who is gone; it says goodbye by itself.
    pub(crate) fn release(&mut self, handle: SocketHandle) {
        self.ends.remove(&handle);
        self.rests.remove(&handle);
        let closed = self.closed.is_some();
        let socket = self.tcp(handle);
        if closed || socket.recv_queue() > 0 {
            // Nobody will read what has arrived: a reset says so (RFC 9293 §3.6.1).
            socket.abort();
        } else {
            socket.close();
        }
        self.orphans.push(handle);
    }

    /// Opens a UDP socket; port 0 picks one.
    pub(crate) fn bind_udp(&mut self, port: u16) -> io::Result<(u16, Arc<Notify>)> {
        self.check_open()?;
        let port = self.pick_port(port, |stack, port| stack.udp.contains_key(&port))?;
        let changed = Arc::new(Notify::new());
        let queue = UdpQueue { datagrams: FairQueue::new(UDP_QUEUE), changed: Arc::clone(&changed) };
        self.udp.insert(port, queue);
        Ok((port, changed))
    }

    /// Closes a UDP socket.
    pub(crate) fn unbind_udp(&mut self, port: u16) {
        self.udp.remove(&port);
    }

    /// Takes the next datagram of a socket into a buffer, and returns how much of it that took and where it came from.
    pub(crate) fn receive_udp(&mut self, port: u16, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        self.check_open()?;
        let Some(queue) = self.udp.get_mut(&port) else {
            return Ok(None);
        };
        let Some((from, payload)) = queue.datagrams.pop() else {
            return Ok(None);
        };
        if !queue.datagrams.is_empty() {
            // Others may wait too, and a permit is one for all that came before.
            queue.changed.notify_one();
        }
        let len = payload.len().min(buffer.len());
        buffer[..len].copy_from_slice(&payload[..len]);
        self.spares.put(payload);
        Ok(Some((len, from)))
    }

    /// Sends a datagram, in fragments where it must; `false` where there is no room now.
    pub(crate) fn send_udp(&mut self, from: u16, to: SocketAddr, payload: &[u8]) -> io::Result<bool> {
        self.check_open()?;
        let (source, destination) = (self.own(to)?, to.ip());
        let most = max_payload(source) - UDP_LEN;
        if payload.len() > most {
            let message = format!("a datagram of {} octets: at most {most} fit", payload.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if self.datagrams.used() >= SEND_QUEUE {
            return Ok(false);
        }
        let mut header = [0; UDP_LEN];
        header[..2].copy_from_slice(&from.to_be_bytes());
        header[2..4].copy_from_slice(&to.port().to_be_bytes());
        header[4..6].copy_from_slice(&((UDP_LEN + payload.len()) as u16).to_be_bytes());
        // 0 would mean "not computed"; its complement sums to the same (RFC 768).
        let sum = match !udp_sum(source, destination, [&header, payload]) {
            0 => u16::MAX,
            sum => sum,
        };
        header[6..].copy_from_slice(&sum.to_be_bytes());
        let envelope = Envelope { source, destination, protocol: UDP, identification: self.identification };
        let is_cut = fragment([&header, payload], self.mtu, envelope, &mut self.datagrams);
        // Only fragments need one of their own (RFC 6864 §4.1), and of IPv4's there are few to go around.
        self.identification = self.identification.wrapping_add(is_cut.into());
        Ok(true)
    }

    /// Queues a packet that a container made itself.
    pub(crate) fn send_raw(&mut self, packet: &[u8]) -> io::Result<bool> {
        self.check_open()?;
        if self.datagrams.used() >= SEND_QUEUE {
            return Ok(false);
        }
        self.datagrams.push(packet.len()).copy_from_slice(packet);
        Ok(true)
    }

    fn pick_port(&mut self, port: u16, in_use: impl Fn(&Self, u16) -> bool) -> io::Result<u16> {
        if port != 0 {
            if in_use(self, port) {
                let message = format!("port {port} of {} is in use", self.addresses.v4);
                return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
            }
            return Ok(port);
        }
        let count = u32::from(EPHEMERAL.end() - EPHEMERAL.start()) + 1;
        let start = (self.random() >> 32) as u32 % count;
        let ports = (0..count).map(|n| EPHEMERAL.start() + ((start + n) % count) as u16);
        let free = ports.into_iter().find(|port| !in_use(self, *port));
        free.ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "every ephemeral port is in use"))
    }

    /// Steps a xorshift generator (Marsaglia's 13, 7, 17), seeded by the caller.
    const fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Returns what smoltcp's clock shows.
fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from((now * CLOCK_RATE).as_micros()).unwrap_or(i64::MAX))
}

/// Returns how long a time is by smoltcp's clock.
fn ticks(time: Duration) -> smoltcp::time::Duration {
    (time * CLOCK_RATE).into()
}

fn interface(addresses: Addresses, seed: u64, mtu: u16, now: Duration) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut wire = Wire { mtu, received: None, sent: &mut Batch::default() };
    let mut interface = Interface::new(config, &mut wire, instant(now));
    // No route: what to reach is the network's affair. The prefix only has to hold the address.
    interface.update_ip_addrs(|own| {
        let v4 = IpCidr::new(addresses.v4.into(), 32);
        let v6 = addresses.v6.map(|address| IpCidr::new(address.into(), 128));
        let full = [Some(v4), v6].into_iter().flatten().any(|address| own.push(address).is_err());
        debug_assert!(!full, "a new interface has room for two addresses");
    });
    interface
}

fn new_tcp() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_timeout(Some(ticks(CONNECT_TIMEOUT)));
    socket.set_keep_alive(Some(ticks(KEEP_ALIVE)));
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(Some(ticks(ACK_DELAY)));
    // It grows by round trips, and not by the clock.
    socket.set_congestion_control(tcp::CongestionControl::Reno);
    socket
}

/// Sums a UDP datagram, header and payload, with its pseudo header; a right checksum makes it all ones.
fn udp_sum(source: IpAddr, destination: IpAddr, datagram: [&[u8]; 2]) -> u16 {
    let len = u32::try_from(datagram[0].len() + datagram[1].len()).expect("a datagram has 65 535 octets at most");
    let pseudo = checksum::pseudo_header(&source.into(), &destination.into(), IpProtocol::Udp, len);
    checksum::combine(&[pseudo, checksum::data(datagram[0]), checksum::data(datagram[1])])
}

/// Returns the port a TCP packet is for, and its flags.
fn segment(packet: &[u8]) -> Option<(u16, u8)> {
    let packet = IpPacket::parse(packet).filter(|packet| packet.protocol() == TCP)?;
    let header = packet.payload().first_chunk::<14>()?;
    Some((u16::from_be_bytes([header[2], header[3]]), header[13]))
}

/// IP protocol number of TCP.
const TCP: u8 = 6;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What smoltcp takes for a network device, for one packet or one turn.
struct Wire<'a> {
    mtu: u16,
    received: Option<&'a [u8]>,
    sent: &'a mut Batch,
}

impl phy::Device for Wire<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = ToSend<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), ToSend(self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        Some(ToSend(self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu.into();
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct ToSend<'a>(&'a mut Batch);

impl phy::TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let packet = self.0.push(len);
        // smoltcp leaves out what an ICMP error has no use for, behind the IP header.
        let headers = len.min(IPV6_LEN + 8);
        packet[..headers].fill(0);
        f(packet)
    }
}

#[cfg(test)]
mod tests;
