//! The tunnel in this process, for kernels without WireGuard: between a TUN device in the transport namespace and a UDP
//! socket in the node's own.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pn_core::{NodeId, PublicKey};
use pn_overlay::packet::UdpPacket;
use pn_overlay::{DropCounters, DropReason, Outbox, PeerConfig, PeerStatus, Tunnel};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::kernel::Peer;
use crate::sys::Tun;

/// Packets taken from one side before the other gets its turn.
const BATCH: usize = 64;

/// How often tunnels look at their clocks.
const TICK: Duration = Duration::from_millis(250);

/// How many milliseconds the task may take to end.
const STOP_ATTEMPTS: u32 = 2000;

/// The longest packet.
const MAX_PACKET: usize = 65_535;

/// The tunnel's keys and peers, and the task that carries packets while there is a device.
#[derive(Debug)]
pub(crate) struct Engine {
    runtime: Handle,
    socket: Arc<UdpSocket>,
    tunnel: Arc<Mutex<Tunnel>>,
    drops: Arc<DropCounters>,
    carrier: Option<JoinHandle<()>>,
}

impl Engine {
    pub(crate) fn new(runtime: Handle, socket: UdpSocket, tunnel: Tunnel, drops: Arc<DropCounters>) -> Self {
        Self { runtime, socket: Arc::new(socket), tunnel: Arc::new(Mutex::new(tunnel)), drops, carrier: None }
    }

    /// Carries packets of a device from now on.
    pub(crate) fn carry(&mut self, device: File) -> io::Result<()> {
        self.stop();
        let _runtime = self.runtime.enter();
        let device = Tun::new(device)?;
        let (socket, tunnel, drops) = (Arc::clone(&self.socket), Arc::clone(&self.tunnel), Arc::clone(&self.drops));
        let mut carrier = Carrier { device, socket, tunnel, drops, outbox: Outbox::new(), packet: vec![0; MAX_PACKET] };
        self.carrier = Some(self.runtime.spawn(async move {
            if let Err(error) = carrier.run().await {
                tracing::error!(%error, "the tunnel's device is gone; the next plan that is applied makes another");
            }
        }));
        Ok(())
    }

    /// Lets go of the device, which ends with that.
    pub(crate) fn stop(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            carrier.abort();
            // The device is gone when the task is, and that is as soon as the runtime gets to it.
            for _ in 0..STOP_ATTEMPTS {
                if carrier.is_finished() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Adds a peer, or changes one in place. One without an address waits for it.
    pub(crate) fn set_peer(&self, node: NodeId, public_key: PublicKey, peer: &Peer) {
        let Some(tunnel_address) = peer.tunnel_address() else {
            return;
        };
        let underlay = peer.underlay;
        lock(&self.tunnel).set_peer(PeerConfig { node, public_key, underlay, tunnel_address });
    }

    pub(crate) fn remove_peer(&self, key: &PublicKey) {
        lock(&self.tunnel).remove_peer(key);
    }

    pub(crate) fn peers(&self) -> BTreeMap<PublicKey, Peer> {
        let peer = |config: PeerConfig| Peer::new(config.underlay, config.tunnel_address);
        self.status().into_iter().map(|status| (status.config.public_key, peer(status.config))).collect()
    }

    pub(crate) fn status(&self) -> Vec<PeerStatus> {
        lock(&self.tunnel).peers().collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            carrier.abort();
        }
    }
}

struct Carrier {
    device: Tun,
    socket: Arc<UdpSocket>,
    tunnel: Arc<Mutex<Tunnel>>,
    drops: Arc<DropCounters>,
    outbox: Outbox,
    packet: Vec<u8>,
}

impl Carrier {
    async fn run(&mut self) -> io::Result<()> {
        let mut next_tick = Instant::now();
        loop {
            let (mut from_device, mut from_socket) = (false, false);
            tokio::select! {
                ready = self.device.get().readable() => {
                    // Whether it stays readable shows when it is read.
                    ready?.retain_ready();
                    from_device = true;
                }
                ready = self.socket.readable() => {
                    ready?;
                    from_socket = true;
                }
                () = sleep_until(next_tick) => {
                    lock(&self.tunnel).tick(&mut self.outbox);
                    next_tick = Instant::now() + TICK;
                }
            }
            if from_device {
                self.seal()?;
            }
            if from_socket {
                self.open();
            }
            self.send().await;
        }
    }

    /// Takes packets from the device.
    fn seal(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            let read = match self
                .device
                .get()
                .try_io(tokio::io::Interest::READABLE, |mut device| device.read(&mut self.packet))
            {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                result => result?,
            };
            let packet = self.packet.get(..read).unwrap_or_default();
            let sealed = match destination(packet) {
                Some(to) => lock(&self.tunnel).seal(to, packet, &mut self.outbox),
                None => Err(DropReason::NotIp),
            };
            sealed.unwrap_or_else(|reason| self.drops.count(reason));
        }
        Ok(())
    }

    /// Takes datagrams from the socket.
    fn open(&mut self) {
        for _ in 0..BATCH {
            let (len, from) = match self.socket.try_recv_from(&mut self.packet) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error that some earlier datagram caused.
                Err(_) => continue,
            };
            let datagram = self.packet.get(..len).unwrap_or_default();
            let mut tunnel = lock(&self.tunnel);
            let written = match tunnel.open(from, datagram, &mut self.outbox) {
                Ok(Some((_, packet))) => write(self.device.get().get_ref(), &packet),
                Ok(None) => Ok(()),
                Err(reason) => Err(reason),
            };
            drop(tunnel);
            written.unwrap_or_else(|reason| self.drops.count(reason));
        }
    }

    async fn send(&mut self) {
        for (to, datagram) in self.outbox.iter() {
            let sent = match self.socket.try_send_to(datagram, to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.send_to(datagram, to).await,
                result => result,
            };
            if let Err(error) = sent {
                tracing::debug!(%to, %error, "a datagram was not sent");
                self.drops.count(DropReason::SendFailed);
            }
        }
        self.outbox.clear();
    }
}

/// Gives a packet to the device, with headers that say what was checked.
fn write(mut device: &File, packet: &UdpPacket<'_>) -> Result<(), DropReason> {
    if packet.source.is_ipv4() != packet.destination.is_ipv4() {
        return Err(DropReason::NotVxlan);
    }
    let mut octets = vec![0; HEADERS];
    let (from, to) = ((packet.source, packet.udp.source), (packet.destination, packet.udp.destination));
    let headers = UdpPacket::write_headers(&mut octets, from, to, packet.udp.payload.len());
    octets.truncate(headers);
    octets.extend_from_slice(packet.udp.payload);
    device.write_all(&octets).map_err(|_| DropReason::QueueFull)
}

/// The longest headers: IPv6 and UDP.
const HEADERS: usize = 48;

fn destination(packet: &[u8]) -> Option<IpAddr> {
    UdpPacket::parse(packet).map(|packet| packet.destination)
}

fn lock(tunnel: &Mutex<Tunnel>) -> MutexGuard<'_, Tunnel> {
    tunnel.lock().unwrap_or_else(PoisonError::into_inner)
}
