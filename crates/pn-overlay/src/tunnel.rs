//! The WireGuard tunnels of one node to all its peers, as a state machine without sockets.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use pn_core::{NodeId, PublicKey};

use crate::allowed_ips::AllowedIps;
use crate::drops::DropReason;
use crate::outbox::Outbox;
use crate::packet::UdpPacket;
use crate::peer::{Addressee, Identity, MIN_BUFFER, OVERHEAD, Peer, PrivateKey, Step};

/// What is known of a peer before any packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerConfig {
    /// The node it is.
    pub node: NodeId,
    /// Its public key.
    pub public_key: PublicKey,
    /// Where it receives UDP on the underlay.
    pub underlay: SocketAddr,
    /// The one address it may send from inside the tunnel, and to which packets are routed.
    pub tunnel_address: IpAddr,
}

/// What is known of a peer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// What was configured.
    pub config: PeerConfig,
    /// Where its last authentic message came from.
    pub endpoint: SocketAddr,
    /// How long ago the session in use was agreed upon; `None` without one.
    pub handshake_age: Option<Duration>,
}

/// The tunnels of a node.
///
/// Inputs are packets to send ([`seal`](Self::seal)), datagrams that arrived ([`open`](Self::open)) and the passing of time
/// ([`tick`](Self::tick)); all may append datagrams to an [`Outbox`], which the caller sends. Sessions are made with peers that
/// are new, some at each tick, so that a node that was restarted is soon believed by those who hold sessions with what it was
/// before; and with others when there is something to send, which waits for them in bounded queues. Nothing is ever sent in clear.
///
/// Threads that carry packets share one. Each peer is behind a lock of its own, which a [`Sealer`] or an [`Opener`] holds for a
/// batch; nobody holds two.
pub struct Tunnel {
    identity: Identity,
    peers: Vec<Option<Mutex<Entry>>>,
    /// The keys of peers that no handshake was begun with, each mixed with this node's: in an order of its own, so that nodes
    /// that start together do not all begin with the same peer.
    unmet: Mutex<BTreeSet<[u8; 32]>>,
    /// Places in `peers` that are free.
    free: Vec<u32>,
    by_key: HashMap<PublicKey, u32>,
    /// The peers by where they are planned to be.
    by_underlay: HashMap<SocketAddr, u32>,
    allowed: AllowedIps<u32>,
    /// Where messages are opened.
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct Entry {
    config: PeerConfig,
    endpoint: SocketAddr,
    /// Whether the table gives its tunnel address to it, and not to another that was given it later.
    is_owner: bool,
    peer: Peer,
}

/// Peers are told apart by 24 bits of the index that their messages name.
const MAX_PEERS: u32 = 1 << 24;

/// The first octets of messages.
const INITIATION: u8 = 1;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

/// Handshakes with new peers that are begun at each tick. With as many from others it is less than what asks for cookies.
const GREETINGS: usize = 16;

/// The longest datagram UDP carries.
const MAX_DATAGRAM: usize = 65_535;

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("public_key", &self.public_key()).field("peers", &self.by_key.len()).finish()
    }
}

impl Tunnel {
    /// Makes a node's end without peers.
    #[must_use]
    pub fn new(private_key: PrivateKey) -> Self {
        Self {
            identity: Identity::new(private_key),
            peers: Vec::new(),
            unmet: Mutex::default(),
            free: Vec::new(),
            by_key: HashMap::new(),
            by_underlay: HashMap::new(),
            allowed: AllowedIps::new(),
            buffer: vec![0; MAX_DATAGRAM].into_boxed_slice(),
        }
    }

    /// Returns the node's public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.identity.public_key()
    }

    /// Adds a peer, or changes one in place, by its key; sessions survive a change of addresses.
    ///
    /// Returns whether anything changed.
    pub fn set_peer(&mut self, config: PeerConfig) -> bool {
        let index = match self.by_key.get(&config.public_key) {
            Some(index) => *index,
            None => self.insert(config),
        };
        let owner = self.allowed.owner(config.tunnel_address);
        if let Some(other) = owner.filter(|owner| *owner != index).and_then(|owner| entry_mut(&mut self.peers, owner)) {
            other.is_owner = false;
        }
        let entry = entry_mut(&mut self.peers, index).expect("indexed peers exist");
        let unchanged = entry.config == config && owner == Some(index);
        if entry.config.tunnel_address != config.tunnel_address {
            self.allowed.remove(IpNet::from(entry.config.tunnel_address), index);
        }
        if entry.config.underlay != config.underlay {
            entry.endpoint = config.underlay;
            forget(&mut self.by_underlay, entry.config.underlay, index);
        }
        self.by_underlay.insert(config.underlay, index);
        (entry.config, entry.is_owner) = (config, true);
        self.allowed.insert(IpNet::from(config.tunnel_address), index);
        !unchanged
    }

    /// Removes a peer with its session, and returns whether it was there. A route that another peer has by now stays.
    pub fn remove_peer(&mut self, public_key: &PublicKey) -> bool {
        let Some(index) = self.by_key.remove(public_key) else {
            return false;
        };
        lock(&self.unmet).remove(&self.mixed(public_key));
        if let Some(entry) = self.peers[index as usize].take() {
            let entry = entry.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.allowed.remove(IpNet::from(entry.config.tunnel_address), index);
            forget(&mut self.by_underlay, entry.config.underlay, index);
            self.free.push(index);
        }
        true
    }

    /// Returns the peers in no particular order.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> + '_ {
        self.peers.iter().flatten().map(|entry| {
            let Entry { config, endpoint, peer, .. } = &*lock(entry);
            PeerStatus { config: *config, endpoint: *endpoint, handshake_age: peer.handshake_age() }
        })
    }

    /// Seals an IP packet for the peer that has its destination address.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] where no peer has it, and those of [`Sealer::seal`].
    pub fn seal(&self, to: IpAddr, packet: &[u8], out: &mut Outbox) -> Result<(), DropReason> {
        self.sealer(to)?.seal(packet, out)
    }

    /// Returns what seals packets for the peer that has an address, for many at a time.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] where no peer has it.
    pub fn sealer(&self, to: IpAddr) -> Result<Sealer<'_>, DropReason> {
        let index = self.allowed.owner(to).ok_or(DropReason::NoRoute)?;
        let entry = self.peers[index as usize].as_ref().expect("routes lead to peers");
        Ok(Sealer { entry: lock(entry), identity: &self.identity })
    }

    /// Opens a datagram from the underlay. `Some` is an IP packet of a peer, whose source address is the peer's own.
    ///
    /// # Errors
    /// Why the datagram was dropped.
    pub fn open(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut Outbox,
    ) -> Result<Option<(NodeId, UdpPacket<'_>)>, DropReason> {
        let Self { identity, peers, by_key, by_underlay, buffer, .. } = self;
        Opener { identity, peers, by_key, by_underlay, held: None }.open(from, datagram, out, buffer)
    }

    /// Returns what opens datagrams, for many at a time.
    #[must_use]
    pub fn opener(&self) -> Opener<'_> {
        let Self { identity, peers, by_key, by_underlay, .. } = self;
        Opener { identity, peers, by_key, by_underlay, held: None }
    }

    /// Does what is due for every peer: handshakes, rekeys, keepalives. To be called about four times a second, and where
    /// peers were added. Returns how many packets were given up because nobody answered ([`DropReason::Unanswered`]).
    pub fn tick(&self, out: &mut Outbox) -> usize {
        self.identity.reset_rate_limit();
        let mut unmet = lock(&self.unmet);
        for mixed in (0..GREETINGS).map_while(|_| unmet.pop_first()) {
            let index = self.by_key.get(&PublicKey::new(self.mixed(&PublicKey::new(mixed))));
            if let Some(entry) = index.and_then(|index| self.peers.get(*index as usize)?.as_ref()) {
                lock(entry).begin(&self.identity, out);
            }
        }
        drop(unmet);
        let mut unanswered = 0;
        for entry in self.peers.iter().flatten() {
            let Entry { peer, endpoint, .. } = &mut *lock(entry);
            // A peer that cannot go on now is asked again at the next tick.
            let _: Result<(), DropReason> =
                send(out, *endpoint, MIN_BUFFER, |buffer| peer.tick(buffer, &mut unanswered));
        }
        unanswered
    }

    /// Returns a key mixed with this node's, or one that was mixed as it was.
    fn mixed(&self, key: &PublicKey) -> [u8; 32] {
        let own = self.public_key();
        core::array::from_fn(|n| key.as_bytes()[n] ^ own.as_bytes()[n])
    }

    fn insert(&mut self, config: PeerConfig) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.peers.push(None);
            let index = u32::try_from(self.peers.len() - 1).ok();
            index.filter(|index| *index < MAX_PEERS).expect("a node has fewer than 2^24 peers")
        });
        let peer = Peer::new(config.public_key, index);
        let entry = Entry { config, endpoint: config.underlay, is_owner: false, peer };
        self.peers[index as usize] = Some(Mutex::new(entry));
        self.by_key.insert(config.public_key, index);
        lock(&self.unmet).insert(self.mixed(&config.public_key));
        index
    }
}

/// Seals packets for one peer, which is its own until it is dropped.
#[derive(Debug)]
pub struct Sealer<'a> {
    entry: MutexGuard<'a, Entry>,
    identity: &'a Identity,
}

impl Sealer<'_> {
    /// Seals an IP packet.
    ///
    /// # Errors
    /// Why it was dropped; [`DropReason::QueueFull`] says that another was that waited for a handshake too.
    pub fn seal(&mut self, packet: &[u8], out: &mut Outbox) -> Result<(), DropReason> {
        let Entry { peer, endpoint, .. } = &mut *self.entry;
        send(out, *endpoint, packet.len() + OVERHEAD, |buffer| peer.seal(self.identity, packet, buffer))
    }
}

/// Opens datagrams. The peer that the last was for is its own until another is needed, or it is dropped.
pub struct Opener<'a> {
    identity: &'a Identity,
    peers: &'a [Option<Mutex<Entry>>],
    by_key: &'a HashMap<PublicKey, u32>,
    by_underlay: &'a HashMap<SocketAddr, u32>,
    held: Option<(u32, MutexGuard<'a, Entry>)>,
}

impl fmt::Debug for Opener<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Opener<'_> {
    /// Opens a datagram as [`Tunnel::open`] does, into a buffer of at least the datagram's length and 148 octets.
    ///
    /// # Errors
    /// Why the datagram was dropped.
    pub fn open<'b>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut Outbox,
        buffer: &'b mut [u8],
    ) -> Result<Option<(NodeId, UdpPacket<'b>)>, DropReason> {
        let opened = self.open_known(from, datagram, out, buffer);
        opened.inspect_err(|_| self.begin(from, datagram, out))
    }

    /// Begins a handshake with a peer that sends data of a session that is not there, as it does after this node was restarted:
    /// it would notice by itself only after 15 s.
    fn begin(&mut self, from: SocketAddr, datagram: &[u8], out: &mut Outbox) {
        let identity = self.identity;
        let peer = self.by_underlay.get(&from).filter(|_| datagram.first() == Some(&DATA));
        if let Some(entry) = peer.and_then(|index| self.entry(*index)) {
            entry.begin(identity, out);
        }
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        if self.held.as_ref().is_none_or(|(held, _)| *held != index) {
            // First the one, then the other: who holds two may wait for somebody who waits for it.
            self.held = None;
            let entry = self.peers.get(index as usize)?.as_ref()?;
            self.held = Some((index, lock(entry)));
        }
        self.held.as_mut().map(|(_, entry)| &mut **entry)
    }

    fn open_known<'b>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut Outbox,
        buffer: &'b mut [u8],
    ) -> Result<Option<(NodeId, UdpPacket<'b>)>, DropReason> {
        if buffer.len() < MIN_BUFFER {
            return Err(DropReason::NotWireGuard);
        }
        let identity = self.identity;
        let (index, is_initiation) = match identity.addressee(from.ip(), datagram, buffer) {
            Ok(Addressee::Index(index)) => (index, false),
            Ok(Addressee::Key(key)) => (*self.by_key.get(&key).ok_or(DropReason::UnknownPeer)?, true),
            Err(Ok(cookie)) => {
                let cookie = &buffer[..cookie];
                send(out, from, cookie.len(), |buffer| Ok(copy(cookie, buffer)))?;
                return Ok(None);
            }
            Err(Err(reason)) => return Err(reason),
        };
        let entry = self.entry(index).ok_or(DropReason::UnknownPeer)?;
        let step = entry.peer.open(identity, from.ip(), datagram, buffer)?;
        // What is authentic and new says where the peer is. A cookie is not, nor is what is answered with one: who knows the
        // public keys makes both. An initiation may be an old one; what its sender makes of the answer cannot be.
        let is_authentic = !matches!(datagram, [INITIATION | COOKIE, ..]) && !matches!(step, Step::Send([COOKIE, ..]));
        if is_authentic {
            entry.endpoint = from;
        }
        if let Step::Send(reply) = &step {
            send(out, from, reply.len(), |buffer| Ok(copy(reply, buffer)))?;
        }
        if entry.peer.has_waiting() && !is_initiation {
            entry.flush(out)?;
        }
        let Step::Packet(packet) = step else {
            return Ok(None);
        };
        let packet = UdpPacket::parse(packet).ok_or(DropReason::NotVxlan)?;
        // The table has nothing but whole addresses, so this is what it says.
        if !entry.is_owner || entry.config.tunnel_address != packet.source {
            return Err(DropReason::TunnelSource);
        }
        Ok(Some((entry.config.node, packet)))
    }
}

impl Entry {
    /// Begins a handshake, unless there is a session or one is under way.
    fn begin(&mut self, identity: &Identity, out: &mut Outbox) {
        let Self { peer, endpoint, .. } = self;
        // Where nothing can be sent now, the next packet or datagram asks again.
        let _: Result<(), DropReason> = send(out, *endpoint, MIN_BUFFER, |buffer| peer.begin(identity, buffer));
    }

    /// Sends what waited for a session.
    fn flush(&mut self, out: &mut Outbox) -> Result<(), DropReason> {
        let Self { peer, endpoint, .. } = self;
        while peer.has_waiting() {
            send(out, *endpoint, MAX_DATAGRAM, |buffer| peer.next_waiting(buffer))?;
        }
        Ok(())
    }
}

/// Removes what leads from an underlay address to a peer, unless it leads to another by now.
fn forget(by_underlay: &mut HashMap<SocketAddr, u32>, underlay: SocketAddr, index: u32) {
    if by_underlay.get(&underlay) == Some(&index) {
        by_underlay.remove(&underlay);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entry_mut(peers: &mut [Option<Mutex<Entry>>], index: u32) -> Option<&mut Entry> {
    let entry = peers.get_mut(index as usize)?.as_mut()?;
    Some(entry.get_mut().unwrap_or_else(PoisonError::into_inner))
}

/// Appends what a step wants to send.
fn send(
    out: &mut Outbox,
    to: SocketAddr,
    capacity: usize,
    step: impl FnOnce(&mut [u8]) -> Result<Step<'_>, DropReason>,
) -> Result<(), DropReason> {
    out.append(to, capacity.max(MIN_BUFFER), |buffer| match step(buffer)? {
        Step::Send(datagram) => Ok(Some(datagram.len())),
        Step::Done | Step::Packet(_) => Ok(None),
    })
}

fn copy<'a>(from: &[u8], to: &'a mut [u8]) -> Step<'a> {
    let to = &mut to[..from.len()];
    to.copy_from_slice(from);
    Step::Send(to)
}

#[cfg(test)]
mod tests;
