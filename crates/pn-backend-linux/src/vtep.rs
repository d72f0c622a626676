//! The end of VXLAN in this process, for kernels that refuse large packets in tunnels: that of the user-space data plane, between
//! a TAP interface on each network's bridge and the node's UDP socket.

use core::net::SocketAddr;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use nix::net::if_::if_nametoindex;
use pn_backend_userspace::backend::Builder;
use pn_backend_userspace::{TapPort, UserspaceBackend};
use pn_core::{
    BackendError, ErrorKind, Generation, InterfaceName, NetworkId, NodeId, NodePlan, OverlayBackend as _, PublicKey,
};
use pn_overlay::{DropCounters, PrivateKey};
use tokio::runtime::Handle;

use crate::kernel::{Link, LinkKind, LinkName, Namespace, Peer, Place};
use crate::netns::Namespaces;
use crate::observe::Indexes;

/// The data plane behind the bridges.
#[derive(Debug)]
pub(crate) struct Vtep {
    /// How it was made, for when it has to be made again.
    builder: Builder,
    backend: UserspaceBackend,
    runtime: Handle,
    /// What it carries packets by, which nobody else changes.
    plan: NodePlan,
    /// The kernel's numbers of its interfaces: another of the name is not the same.
    taps: BTreeMap<NetworkId, u32>,
}

impl Vtep {
    /// Binds the node's socket in the namespace of the calling thread, and carries nothing yet.
    pub(crate) fn start(
        node: NodeId,
        listen: SocketAddr,
        private_key: PrivateKey,
        drops: Arc<DropCounters>,
        runtime: Handle,
    ) -> Result<Self, BackendError> {
        let builder = UserspaceBackend::builder(node).listen(listen).private_key(private_key).drops(drops);
        let builder = builder.without_sockets();
        let backend = runtime.block_on(builder.clone().build())?;
        let (builder, plan) = (builder.listen(backend.local_addr()), NodePlan::empty(node, Generation::ZERO));
        Ok(Self { builder, backend, runtime, plan, taps: BTreeMap::new() })
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.backend.local_addr()
    }

    /// Carries packets as a plan says from now on. What it checks does not wait for filters, and interfaces of networks that
    /// are gone end.
    pub(crate) fn take(&mut self, plan: &NodePlan) -> Result<(), BackendError> {
        let mut plan = plan.clone();
        if plan.host.is_none() || plan.networks.is_empty() {
            // Nobody is spoken to.
            plan = NodePlan::empty(plan.node, plan.generation);
        }
        self.runtime.block_on(self.backend.apply(&plan)).into_result()?;
        self.taps.retain(|network, _| plan.networks.contains_key(network));
        self.plan = plan;
        Ok(())
    }

    /// Makes the interface of a network.
    pub(crate) fn create(&mut self, namespaces: &Namespaces, place: Place) -> io::Result<()> {
        let Place::Network(network) = place else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let name: InterfaceName = LinkName::Vxlan.to_string().parse().map_err(io::Error::other)?;
        let namespace = namespaces.open(place)?.ok_or(io::ErrorKind::NotFound)?;
        let tap = TapPort::in_netns_of(namespace.into(), name);
        self.runtime.block_on(self.backend.attach_network(network, tap)).map_err(of_the_system)?;
        let index = namespaces.within(place, || Ok(if_nametoindex(name.as_str())?))?;
        self.taps.insert(network, index);
        Ok(())
    }

    /// Returns the peers. Where the data plane has ended, for a panic, there is another from now on, which has neither peers nor
    /// interfaces yet.
    pub(crate) fn peers(&mut self) -> io::Result<BTreeMap<PublicKey, Peer>> {
        let peers = match self.runtime.block_on(self.backend.peers()) {
            Err(error) if error.kind() == ErrorKind::Closed => {
                tracing::error!(%error, "the end of VXLAN in this process is made anew");
                self.backend = self.runtime.block_on(self.builder.clone().build()).map_err(of_the_system)?;
                self.plan = NodePlan::empty(self.plan.node, Generation::ZERO);
                self.taps.clear();
                Vec::new()
            }
            peers => peers.map_err(of_the_system)?,
        };
        let peer = |peer: pn_overlay::PeerStatus| {
            let config = peer.config;
            (config.public_key, Peer::new(config.underlay, config.tunnel_address))
        };
        Ok(peers.into_iter().map(peer).collect())
    }

    /// Says of a network's interface, if it is the one that was made, what is behind it.
    pub(crate) fn complete(&self, network: NetworkId, namespace: &mut Namespace, indexes: &Indexes) {
        let is_ours = indexes.get(&LinkName::Vxlan).is_some_and(|index| self.taps.get(&network) == Some(index));
        let (Some(Link { kind: kind @ LinkKind::Tun, .. }), true) =
            (namespace.links.get_mut(&LinkName::Vxlan), is_ours)
        else {
            return;
        };
        let (Some(network), Some(host)) = (self.plan.networks.get(&network), &self.plan.host) else {
            return;
        };
        *kind = LinkKind::Tap(Some((network.vni.get(), host.tunnel_address)));
        for endpoint in network.endpoints.iter().filter(|endpoint| endpoint.node != self.plan.node) {
            if let Some(node) = self.plan.member(endpoint.node) {
                namespace.vxlan_fdb.insert(endpoint.mac(), node.tunnel_address);
            }
        }
    }
}

/// Makes an error of the data plane's one of the operating system's, as those of all other steps are.
fn of_the_system(error: BackendError) -> io::Error {
    let kinds = [
        (ErrorKind::PermissionDenied, io::ErrorKind::PermissionDenied),
        (ErrorKind::Conflict, io::ErrorKind::AlreadyExists),
        (ErrorKind::NotFound, io::ErrorKind::NotFound),
    ];
    let kind = kinds.iter().find(|(kind, _)| *kind == error.kind()).map_or(io::ErrorKind::Other, |(_, kind)| *kind);
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use pn_backend_userspace::{Direction, UnderlayTap};

    use super::*;

    #[derive(Debug)]
    struct Panics;

    impl UnderlayTap for Panics {
        fn datagram(&self, _: Direction, _: SocketAddr, _: &[u8]) {
            panic!("as a test asks for");
        }
    }

    #[test]
    fn a_data_plane_that_panicked_is_made_anew() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (node, drops) = (NodeId::from_u128(1), Arc::<DropCounters>::default());
        let key = PrivateKey::from_bytes([1; 32]);
        let any = "127.0.0.1:0".parse().unwrap();
        let mut vtep = Vtep::start(node, any, key, Arc::clone(&drops), runtime.handle().clone()).unwrap();
        let (address, public_key) = (vtep.local_addr(), vtep.backend.public_key());
        vtep.backend = runtime.block_on(vtep.builder.clone().listen(any).tap(Arc::new(Panics)).build()).unwrap();
        UdpSocket::bind(any).unwrap().send_to(b"x", vtep.local_addr()).unwrap();
        let begin = Instant::now();
        while vtep.local_addr() != address {
            assert!(begin.elapsed() < Duration::from_secs(20), "it is not made anew");
            // The address is in use until the first one has ended.
            drop(vtep.peers());
        }
        assert_eq!(vtep.backend.public_key(), public_key);
        assert!(vtep.peers().unwrap().is_empty());
        vtep.take(&NodePlan::empty(node, Generation::new(3))).unwrap();
    }
}
