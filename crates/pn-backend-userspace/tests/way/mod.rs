//! Two nodes, and ways between them that lose, repeat and reorder.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pn_backend_userspace::{Port, UserspaceBackend};
use pn_core::backend::OverlayBackend as _;
use pn_core::*;

use crate::cluster::{Cluster, slot};

/// The network with IPv6.
const DUAL_STACK: u128 = 6;

/// A way between two nodes.
pub(crate) struct Way {
    /// Where each node sends what is for the other.
    pub(crate) addresses: [SocketAddr; 2],
    is_over: Arc<AtomicBool>,
}

/// What becomes of a datagram in a hundred, each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quality {
    pub(crate) loses: bool,
    pub(crate) repeats: bool,
    pub(crate) reorders: bool,
}

impl Quality {
    pub(crate) const GOOD: Self = Self { loses: false, repeats: false, reorders: false };
    /// Every way to be bad alone, and all at once.
    pub(crate) const BAD: [Self; 4] = [
        Self { loses: true, ..Self::GOOD },
        Self { repeats: true, ..Self::GOOD },
        Self { reorders: true, ..Self::GOOD },
        Self { loses: true, repeats: true, reorders: true },
    ];
}

impl Way {
    pub(crate) fn between(nodes: [SocketAddr; 2], quality: Quality) -> Self {
        let sockets = nodes.map(|node| UdpSocket::bind((node.ip(), 0)).unwrap());
        let addresses = [1, 0].map(|n| sockets[n].local_addr().unwrap());
        let is_over = Arc::new(AtomicBool::new(false));
        for n in 0..2 {
            // What arrives at the socket that stands for one node is for the other, and leaves from what stands for the sender.
            let (from, to) = (sockets[n].try_clone().unwrap(), sockets[1 - n].try_clone().unwrap());
            let (target, is_over) = (nodes[n], Arc::clone(&is_over));
            from.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            // What it is given at a time it has room for, where we may.
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&from, 8 << 20);
            thread::spawn(move || carry(&from, &to, target, quality, &is_over));
        }
        Self { addresses, is_over }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn carry(from: &UdpSocket, to: &UdpSocket, target: SocketAddr, quality: Quality, is_over: &AtomicBool) {
    let (mut buffer, mut late, mut state) = ([0; 2000], None::<Vec<u8>>, 7u32);
    let send = |datagram: &[u8]| drop(to.send_to(datagram, target));
    while !is_over.load(Ordering::Relaxed) {
        let Ok((len, _)) = from.recv_from(&mut buffer) else {
            // Nothing overtakes it any more.
            late.take().iter().for_each(|late| send(late));
            continue;
        };
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let datagram = &buffer[..len];
        match (state >> 16) % 100 {
            0 if quality.loses => {}
            1 if quality.repeats => (0..2).for_each(|_| send(datagram)),
            2 if quality.reorders && late.is_none() => late = Some(datagram.to_vec()),
            other => {
                send(datagram);
                if other < 20
                    && let Some(late) = late.take()
                {
                    send(&late);
                }
            }
        }
    }
}

/// Two nodes on a host address, with a container each in a network with IPv6, whose datagrams go another way than straight.
pub(crate) struct Nodes {
    pub(crate) cluster: Cluster,
    pub(crate) backends: [UserspaceBackend; 2],
    ids: [NodeId; 2],
    pub(crate) containers: [ContainerId; 2],
}

impl Nodes {
    pub(crate) async fn start(listen: &str) -> Self {
        let mut cluster = Cluster::start(0).await;
        cluster.add_network(DUAL_STACK, |request| request.families = Families::DualStack);
        let ids = [1, 2].map(NodeId::from_u128);
        let mut backends = Vec::new();
        for (id, n) in ids.into_iter().zip(1..) {
            let backend = UserspaceBackend::builder(id).listen(listen.parse().unwrap()).build().await.unwrap();
            let (tunnel, key) = (Ipv4Addr::new(100, 64, 0, n).into(), backend.public_key());
            let name = format!("node-{n}").parse().unwrap();
            cluster.change(Change::AddNode(Node::new(id, name, backend.local_addr(), tunnel, key)));
            backends.push(backend);
        }
        let containers = [1, 2].map(|n| {
            let (container, slot) = (ContainerId::from_u128(n), slot(DUAL_STACK, "web", n as u32));
            cluster.change(Change::Start { container, slot, node: ids[n as usize - 1] });
            container
        });
        Self { cluster, backends: backends.try_into().unwrap(), ids, containers }
    }

    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        [0, 1].map(|n| self.backends[n].local_addr())
    }

    /// Has one node send what is for the other another way.
    pub(crate) async fn redirect(&mut self, node: usize, to: SocketAddr) {
        let state = self.cluster.region.state();
        let mut other = state.node(self.ids[1 - node]).unwrap().clone();
        other.underlay = to;
        self.cluster.change(Change::UpdateNode(other));
        let plan = self.cluster.region.state().node_plan(self.ids[node]);
        self.backends[node].apply(&plan).await.into_result().unwrap();
    }

    /// Sends both nodes' datagrams the same way.
    pub(crate) async fn go(&mut self, way: &Way) {
        for n in 0..2 {
            self.redirect(n, way.addresses[n]).await;
        }
    }

    pub(crate) fn port(&self, n: usize) -> Port {
        self.backends[n].port(self.containers[n]).unwrap()
    }
}
