//! The tunnel in this process, for kernels without WireGuard: between a TAP device in the transport namespace and a UDP socket
//! in the node's own.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use pn_backend_userspace::underlay::Underlay;
use pn_core::{NodeId, PublicKey};
use pn_overlay::{DropCounters, PeerConfig, Tunnel};

use crate::carrier::{Carrier, Device, lock};
use crate::kernel::Peer;

/// The tunnel's keys and peers, and the thread that carries packets while there is a device.
#[derive(Debug)]
pub(crate) struct Engine {
    underlay: Arc<Mutex<Underlay>>,
    tunnel: Arc<Mutex<Tunnel>>,
    drops: Arc<DropCounters>,
    carrier: Option<(UnixStream, JoinHandle<()>)>,
}

impl Engine {
    pub(crate) fn new(underlay: Underlay, tunnel: Tunnel, drops: Arc<DropCounters>) -> Self {
        let (underlay, tunnel) = (Arc::new(Mutex::new(underlay)), Arc::new(Mutex::new(tunnel)));
        Self { underlay, tunnel, drops, carrier: None }
    }

    /// Carries packets of a device from now on.
    pub(crate) fn carry(&mut self, device: Device) -> io::Result<()> {
        self.stop();
        let (stop, stopped) = UnixStream::pair()?;
        let (underlay, tunnel, drops) = (Arc::clone(&self.underlay), Arc::clone(&self.tunnel), Arc::clone(&self.drops));
        let carrier = Carrier::new(device, underlay, tunnel, drops, stopped);
        let thread = thread::Builder::new().name("pn-carrier".to_owned()).spawn(move || {
            if let Err(error) = carrier.run() {
                tracing::error!(%error, "the tunnel's device is gone; the next plan that is applied makes another");
            }
        })?;
        self.carrier = Some((stop, thread));
        Ok(())
    }

    /// Lets go of the device, which ends with that.
    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.carrier.take() {
            drop(stop);
            // One that panicked has let go, too.
            let _: thread::Result<()> = thread.join();
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
        let tunnel = lock(&self.tunnel);
        tunnel.peers().map(|status| (status.config.public_key, peer(status.config))).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
