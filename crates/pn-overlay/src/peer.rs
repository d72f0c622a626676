//! One WireGuard peer. The only file that names boringtun, which reads the clock by itself.

use core::fmt;
use core::net::IpAddr;
use core::time::Duration;
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use pn_core::PublicKey;

use crate::drops::DropReason;
use crate::packet::{ETHERNET_LEN, UdpPacket};
use crate::queue::{self, FairQueue};
use crate::vxlan;

/// What sealing adds to a packet: header 16, tag 16 (no padding is added).
pub const OVERHEAD: usize = 32;

/// Buffers that handshake messages go into have at least this many octets: the longest of them, an initiation.
pub(crate) const MIN_BUFFER: usize = 148;

/// The first octet of what begins a handshake.
const INITIATION: u8 = 1;

/// Handshake messages a second above which cookies are asked for. Each initiation is looked at twice, once to find its peer.
const HANDSHAKES_PER_SECOND: u64 = 200;

/// A node's WireGuard private key. It is wiped from memory when dropped and never printed.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// Makes a key from 32 octets, which must come from a cryptographic random source.
    #[must_use]
    pub fn from_bytes(octets: [u8; 32]) -> Self {
        Self(x25519::StaticSecret::from(octets))
    }

    /// Returns its 32 octets, for a kernel that is to do the work.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Returns the public key that belongs to it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey::new(x25519::PublicKey::from(&self.0).to_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// What all peers of a node share.
pub(crate) struct Identity {
    private: PrivateKey,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("private", &self.private).finish_non_exhaustive()
    }
}

/// Whom an arriving message is for, before it is decrypted.
pub(crate) enum Addressee {
    /// The peer with this key, who begins a handshake.
    Key(PublicKey),
    /// The peer with this index, who continues one or sends data.
    Index(u32),
}

/// What came of a message.
pub(crate) enum Step<'a> {
    /// Nothing more.
    Done,
    /// This must be sent to the peer.
    Send(&'a [u8]),
    /// The peer sent this packet.
    Packet(&'a [u8]),
}

impl Identity {
    pub(crate) fn new(private: PrivateKey) -> Self {
        let public = x25519::PublicKey::from(&private.0);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Self { private, public, limiter }
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        PublicKey::new(self.public.to_bytes())
    }

    /// Lets handshakes through again; to be called about every second.
    pub(crate) fn reset_rate_limit(&self) {
        self.limiter.reset_count();
    }

    /// Finds whom a datagram is for. `Err(Ok(len))` asks for the first `len` octets of `reply` to be sent back, a cookie.
    pub(crate) fn addressee(
        &self,
        from: IpAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<Addressee, Result<usize, DropReason>> {
        let packet = Tunn::parse_incoming_packet(datagram).map_err(|_| Err(DropReason::NotWireGuard))?;
        let index = |receiver: u32| Ok(Addressee::Index(receiver >> 8));
        match packet {
            Packet::PacketData(data) => index(data.receiver_idx),
            Packet::HandshakeResponse(response) => index(response.receiver_idx),
            Packet::PacketCookieReply(cookie) => index(cookie.receiver_idx),
            Packet::HandshakeInit(initiation) => {
                // Before any curve arithmetic: the cheap code that only those can compute who know our public key, and
                // under load the cookie.
                match self.limiter.verify_packet(Some(from), datagram, reply) {
                    Ok(_) => {}
                    Err(TunnResult::WriteToNetwork(cookie)) => return Err(Ok(cookie.len())),
                    Err(_) => return Err(Err(DropReason::Handshake)),
                }
                let half = parse_handshake_anon(&self.private.0, &self.public, &initiation);
                let half = half.map_err(|_| Err(DropReason::Handshake))?;
                Ok(Addressee::Key(PublicKey::new(half.peer_static_public)))
            }
        }
    }
}

/// The state of the tunnel to one peer.
///
/// Buffers must hold the packet and [`OVERHEAD`], and [`MIN_BUFFER`] octets at least; boringtun panics otherwise, so every
/// method checks.
///
/// boringtun's part takes 12 kB. It is there from the first message on that is sent or received, and goes when nobody wants it
/// any more, so that a peer that is only known takes its key.
pub(crate) struct Peer {
    key: PublicKey,
    index: u32,
    tunn: Option<Box<Tunn>>,
    /// Whether there is a session: what is looked up only where it may have changed, for boringtun looks at the clock.
    has_session: bool,
    /// Packets that wait for a session.
    waiting: Option<Box<FairQueue<Vec<u8>>>>,
    /// How many ticks a handshake that nothing waits for has left; 0 where there is none.
    patience: u8,
}

/// How many ticks a handshake that nothing waits for is given: as long as one takes until it is repeated.
const PATIENCE: u8 = 20;

/// How many packets wait for a session.
const MAX_WAITING: usize = 256;

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("handshake_age", &self.handshake_age()).finish_non_exhaustive()
    }
}

impl Peer {
    /// Makes the state for a peer; `index` has 24 bits and is what the peer's messages name.
    pub(crate) const fn new(key: PublicKey, index: u32) -> Self {
        Self { key, index, tunn: None, has_session: false, waiting: None, patience: 0 }
    }

    fn tunn(&mut self, identity: &Identity) -> &mut Tunn {
        let Self { key, index, tunn, .. } = self;
        tunn.get_or_insert_with(|| {
            let (private, key) = (identity.private.0.clone(), x25519::PublicKey::from(*key.as_bytes()));
            Box::new(Tunn::new(private, key, None, None, *index, Some(Arc::clone(&identity.limiter))))
        })
    }

    /// Seals a packet. Without a session it waits, and what is returned begins a handshake.
    ///
    /// [`DropReason::QueueFull`] says that one of those that wait was dropped, which is of the flow that has most.
    pub(crate) fn seal<'a>(
        &mut self,
        identity: &Identity,
        packet: &[u8],
        buffer: &'a mut [u8],
    ) -> Result<Step<'a>, DropReason> {
        if buffer.len() < MIN_BUFFER.max(packet.len() + OVERHEAD) {
            return Err(DropReason::TooBig);
        }
        if self.has_session {
            return step(self.tunn(identity).encapsulate(packet, buffer));
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::new(FairQueue::new(MAX_WAITING)));
        if waiting.push(flow(packet), 1, packet.to_vec()) > 0 {
            return Err(DropReason::QueueFull);
        }
        step(self.tunn(identity).format_handshake_initiation(buffer, false))
    }

    /// Opens a message.
    pub(crate) fn open<'a>(
        &mut self,
        identity: &Identity,
        from: IpAddr,
        datagram: &[u8],
        buffer: &'a mut [u8],
    ) -> Result<Step<'a>, DropReason> {
        if datagram.is_empty() || buffer.len() < MIN_BUFFER.max(datagram.len()) {
            return Err(DropReason::NotWireGuard);
        }
        if self.tunn.is_none() && datagram[0] != INITIATION {
            return Err(DropReason::NoSession);
        }
        let result = step(self.tunn(identity).decapsulate(Some(from), datagram, buffer));
        if !self.has_session {
            self.has_session = self.handshake_age().is_some();
        }
        result
    }

    /// Seals the next packet that waited for a session.
    pub(crate) fn next_waiting<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Step<'a>, DropReason> {
        let packet = self.waiting.as_mut().and_then(|waiting| waiting.pop());
        let (Some(packet), Some(tunn)) = (packet, &mut self.tunn) else {
            self.waiting = None;
            return Ok(Step::Done);
        };
        if buffer.len() < MIN_BUFFER.max(packet.len() + OVERHEAD) {
            return Err(DropReason::TooBig);
        }
        step(tunn.encapsulate(&packet, buffer))
    }

    /// Returns whether packets wait that were sealed before there was a session, and there is one now.
    pub(crate) const fn has_waiting(&self) -> bool {
        self.has_session && self.waiting.is_some()
    }

    /// Begins a handshake, unless there is a session or one is under way. It is given up after [`PATIENCE`] where there is
    /// nothing to send by then.
    pub(crate) fn begin<'a>(&mut self, identity: &Identity, buffer: &'a mut [u8]) -> Result<Step<'a>, DropReason> {
        if buffer.len() < MIN_BUFFER {
            return Err(DropReason::TooBig);
        }
        if self.has_session {
            return Ok(Step::Done);
        }
        if self.tunn.is_none() {
            self.patience = PATIENCE;
        }
        step(self.tunn(identity).format_handshake_initiation(buffer, false))
    }

    /// Does what is due: handshakes, rekeys, keepalives. To be called a few times a second. `unanswered` is told how many
    /// packets waited in vain.
    pub(crate) fn tick<'a>(&mut self, buffer: &'a mut [u8], unanswered: &mut usize) -> Result<Step<'a>, DropReason> {
        if buffer.len() < MIN_BUFFER {
            return Err(DropReason::TooBig);
        }
        let Some(tunn) = &mut self.tunn else {
            return Ok(Step::Done);
        };
        let is_over = self.patience == 1;
        self.patience = self.patience.saturating_sub(1);
        let result = if is_over && self.waiting.is_none() && tunn.time_since_last_handshake().is_none() {
            TunnResult::Err(WireGuardError::ConnectionExpired)
        } else {
            tunn.update_timers(buffer)
        };
        if matches!(result, TunnResult::Err(WireGuardError::ConnectionExpired)) {
            // A state, not a failure: nobody answers, and the next packet to send begins anew.
            *unanswered += self.waiting.take().map_or(0, |waiting| waiting.len());
            self.tunn = None;
        }
        let result = if self.tunn.is_some() { step(result) } else { Ok(Step::Done) };
        self.has_session = self.handshake_age().is_some();
        result
    }

    /// Returns how long ago the session in use was agreed upon; `None` without one.
    pub(crate) fn handshake_age(&self) -> Option<Duration> {
        self.tunn.as_ref()?.time_since_last_handshake()
    }
}

/// Returns what tells the flow of a packet: that of what is inside, where it is VXLAN, and its network, since all have the same
/// addresses.
fn flow(packet: &[u8]) -> u32 {
    let outside = UdpPacket::parse(packet).filter(|packet| packet.udp.destination == vxlan::PORT);
    let frame = outside.and_then(|packet| vxlan::decode(packet.udp.payload));
    let inside = frame.and_then(|(vni, frame)| Some((vni, frame.get(ETHERNET_LEN..)?)));
    inside.map_or_else(|| queue::flow(packet), |(vni, packet)| queue::flow_of(vni.get().into(), packet))
}

fn step(result: TunnResult<'_>) -> Result<Step<'_>, DropReason> {
    match result {
        TunnResult::Done => Ok(Step::Done),
        TunnResult::WriteToNetwork(datagram) => Ok(Step::Send(datagram)),
        TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => Ok(Step::Packet(packet)),
        TunnResult::Err(error) => Err(reason(&error)),
    }
}

const fn reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => DropReason::Replay,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::ConnectionExpired => {
            DropReason::NoSession
        }
        WireGuardError::InvalidAeadTag | WireGuardError::InvalidPacket => DropReason::Decrypt,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::UnexpectedPacket
        | WireGuardError::WrongPacketType
        | WireGuardError::WrongKey
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidMac
        | WireGuardError::LockFailed
        | WireGuardError::UnderLoad => DropReason::Handshake,
    }
}

#[cfg(test)]
mod tests;
