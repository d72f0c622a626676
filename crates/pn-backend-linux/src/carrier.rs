//! The thread that carries packets between the tunnel's device and the underlay, in batches.

use core::net::SocketAddr;
use core::time::Duration;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pn_backend_userspace::offload::Coalescer;
use pn_backend_userspace::underlay::Underlay;
use pn_core::MacAddr;
use pn_overlay::{DropCounters, DropReason, Opener, Outbox, Tunnel};

use crate::frame::{self, Head, Outside};

/// Frames taken from the device, and batches of messages from the underlay, before the other gets its turn.
const READS: usize = 64;
const BATCHES: usize = 4;

/// Octets that wait for the underlay before they are sent, though there may be more to come.
const FLUSH: usize = 60_000;

/// How often tunnels look at their clocks.
const TICK: Duration = Duration::from_millis(250);

/// How long the thread looks for more before it sleeps, where something came within that time before.
const LINGER: Duration = Duration::from_micros(100);

/// What frames are read to, and what datagrams are opened to: twice the longest, so that what one batch brings is seldom
/// written in two.
const FRAME_BUFFER: usize = frame::PACKET + 65_536;
const OPENED_BUFFER: usize = 2 * 65_536;

/// What a handshake message needs.
const MIN_BUFFER: usize = 148;

/// The tunnel's device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) file: File,
    pub(crate) mac: MacAddr,
}

pub(crate) struct Carrier {
    device: Device,
    underlay: Arc<Mutex<Underlay>>,
    tunnel: Arc<Mutex<Tunnel>>,
    drops: Arc<DropCounters>,
    /// Whose other end is closed when the thread is to end.
    stop: UnixStream,
    outbox: Outbox,
    frame: Box<[u8]>,
    opened: Box<[u8]>,
    opened_to: usize,
    coalescer: Coalescer<Outside>,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    device: bool,
    underlay: bool,
    stop: bool,
}

impl Carrier {
    pub(crate) fn new(
        device: Device,
        underlay: Arc<Mutex<Underlay>>,
        tunnel: Arc<Mutex<Tunnel>>,
        drops: Arc<DropCounters>,
        stop: UnixStream,
    ) -> Self {
        Self {
            device,
            underlay,
            tunnel,
            drops,
            stop,
            outbox: Outbox::new(),
            frame: vec![0; FRAME_BUFFER].into_boxed_slice(),
            opened: vec![0; OPENED_BUFFER].into_boxed_slice(),
            opened_to: 0,
            coalescer: Coalescer::below(frame::MAX_OUTSIDE),
        }
    }

    /// Carries packets until it is to end, or the device is gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let underlay = Arc::clone(&self.underlay);
        let mut underlay = lock(&underlay);
        let (mut next_tick, mut is_lively) = (Instant::now(), false);
        loop {
            let start = Instant::now();
            let mut ready = Ready::default();
            while is_lively && !ready.any() && start.elapsed() < LINGER {
                ready = self.look(&underlay, Duration::ZERO)?;
                if !ready.any() {
                    // Others may have something to do, and it may be what is waited for.
                    std::thread::yield_now();
                }
            }
            if !ready.any() {
                ready = self.look(&underlay, next_tick.saturating_duration_since(Instant::now()))?;
                is_lively = ready.any() && start.elapsed() < LINGER;
            }
            if ready.stop {
                return Ok(());
            }
            if ready.underlay {
                self.open(&mut underlay);
            }
            if ready.device {
                self.seal(&mut underlay)?;
            }
            if Instant::now() >= next_tick {
                underlay.count_not_received(&self.drops);
                let unanswered = lock(&self.tunnel).tick(&mut self.outbox);
                self.drops.add(DropReason::Unanswered, unanswered as u64);
                next_tick = Instant::now() + TICK;
            }
            underlay.send(&mut self.outbox, &self.drops);
        }
    }

    /// Looks what there is to do, and waits for it.
    fn look(&self, underlay: &Underlay, patience: Duration) -> io::Result<Ready> {
        let events = [underlay.as_fd(), self.device.file.as_fd(), self.stop.as_fd()];
        let mut events = events.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Rounded up, so that it is over then.
        let millis = u16::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        match poll(&mut events, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [underlay, device, stop] = events.map(|event| event.any().unwrap_or(true));
        Ok(Ready { device, underlay, stop })
    }

    /// Takes frames from the device.
    fn seal(&mut self, underlay: &mut Underlay) -> io::Result<()> {
        let tunnel = lock(&self.tunnel);
        for _ in 0..READS {
            let len = match (&self.device.file).read(&mut self.frame) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (outbox, drops) = (&mut self.outbox, &self.drops);
            let read = self.frame.get_mut(..len).unwrap_or_default();
            let sealed = frame::cut(read, |to| {
                let mut sealer = tunnel.sealer(to)?;
                // What is dropped for one may be another's.
                Ok(move |packet: &[u8]| sealer.seal(packet, outbox).unwrap_or_else(|reason| drops.count(reason)))
            });
            sealed.unwrap_or_else(|reason| drops.count(reason));
            if self.outbox.octets() >= FLUSH {
                underlay.send(&mut self.outbox, &self.drops);
            }
        }
        Ok(())
    }

    /// Takes datagrams from the underlay.
    fn open(&mut self, underlay: &mut Underlay) {
        let tunnel = Arc::clone(&self.tunnel);
        let tunnel = lock(&tunnel);
        let mut opener = tunnel.opener();
        for _ in 0..BATCHES {
            // An error is an ICMP message that some earlier datagram caused; the next call takes the next datagrams.
            let (count, more) = underlay.receive().unwrap_or((0, true));
            for (received, octets) in (0..count).map(|message| underlay.message(message)) {
                for datagram in octets.chunks(received.segment.max(1)) {
                    if self.opened.len() - self.opened_to < datagram.len().max(MIN_BUFFER) {
                        self.write_merged();
                    }
                    self.open_one(&mut opener, received.from, datagram)
                        .unwrap_or_else(|reason| self.drops.count(reason));
                }
            }
            if !more {
                break;
            }
        }
        // Not before: where each datagram is a message of its own, a batch is little to put together.
        self.write_merged();
    }

    fn open_one(&mut self, opener: &mut Opener<'_>, from: SocketAddr, datagram: &[u8]) -> Result<(), DropReason> {
        let buffer = self.opened.get_mut(self.opened_to..).unwrap_or_default();
        let base = buffer.as_ptr().addr();
        let Some((_, packet)) = opener.open(from, datagram, &mut self.outbox, buffer)? else {
            return Ok(());
        };
        if packet.source.is_ipv4() != packet.destination.is_ipv4() {
            return Err(DropReason::NotVxlan);
        }
        match Outside::split(&packet) {
            Some((outside, octets)) => {
                // It waits for those that follow it, where it lies.
                let start = self.opened_to + (octets.as_ptr().addr() - base);
                self.opened_to = start + octets.len();
                self.coalescer.push(outside, &self.opened, start..self.opened_to);
                Ok(())
            }
            None => {
                let (from, to) = ((packet.source, packet.udp.source), (packet.destination, packet.udp.destination));
                let head = Head::begin(from, to, packet.udp.payload.len(), self.device.mac);
                write(&self.device, &[IoSlice::new(head.octets()), IoSlice::new(packet.udp.payload)])
            }
        }
    }

    /// Gives the device what was opened, as few frames.
    fn write_merged(&mut self) {
        let (device, drops) = (&self.device, &self.drops);
        self.coalescer.drain(&mut self.opened, |merged, buffer| {
            let len = merged.first.len() + merged.rest.iter().map(ExactSizeIterator::len).sum::<usize>();
            let head = Head::of(merged.place, merged.header, len, device.mac);
            let mut pieces = Vec::with_capacity(2 + merged.rest.len());
            pieces.extend([IoSlice::new(head.octets()), IoSlice::new(merged.first)]);
            pieces.extend(merged.rest.iter().filter_map(|range| buffer.get(range.clone())).map(IoSlice::new));
            if let Err(reason) = write(device, &pieces) {
                drops.add(reason, 1 + merged.rest.len() as u64);
            }
        });
        self.opened_to = 0;
    }
}

impl Ready {
    const fn any(self) -> bool {
        self.device || self.underlay || self.stop
    }
}

/// Gives a frame, in pieces, to the device.
fn write(device: &Device, pieces: &[IoSlice<'_>]) -> Result<(), DropReason> {
    (&device.file).write_vectored(pieces).map(drop).map_err(|_| DropReason::NotTaken)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
