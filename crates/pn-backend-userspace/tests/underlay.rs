//! Underlays that lose, repeat, reorder and change their ways, of both IP versions.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;
mod namespace;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cluster::Cluster;
use namespace::{Namespace, transfer};
use pn_backend_userspace::{Port, TunPort, UserspaceBackend};
use pn_core::backend::OverlayBackend as _;
use pn_core::*;
use pn_overlay::DropReason;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

/// A way between two nodes.
struct Way {
    /// Where each node sends what is for the other.
    addresses: [SocketAddr; 2],
    is_over: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Quality {
    Good,
    /// Of a hundred datagrams it loses one, delivers one twice, and one late.
    Bad,
}

impl Way {
    fn between(nodes: [SocketAddr; 2], quality: Quality) -> Self {
        let sockets = nodes.map(|node| UdpSocket::bind((node.ip(), 0)).unwrap());
        let addresses = [1, 0].map(|n| sockets[n].local_addr().unwrap());
        let is_over = Arc::new(AtomicBool::new(false));
        for n in 0..2 {
            // What arrives at the socket that stands for one node is for the other, and leaves from what stands for the sender.
            let (from, to) = (sockets[n].try_clone().unwrap(), sockets[1 - n].try_clone().unwrap());
            let (target, is_over) = (nodes[n], Arc::clone(&is_over));
            from.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
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
            continue;
        };
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let datagram = &buffer[..len];
        match (state >> 16) % 100 {
            0 if quality == Quality::Bad => {}
            1 if quality == Quality::Bad => (0..2).for_each(|_| send(datagram)),
            2 if quality == Quality::Bad && late.is_none() => late = Some(datagram.to_vec()),
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

/// Two nodes on a host address, with a container each, whose datagrams go another way than straight.
struct Nodes {
    cluster: Cluster,
    backends: [UserspaceBackend; 2],
    ids: [NodeId; 2],
    containers: [ContainerId; 2],
}

impl Nodes {
    async fn start(listen: &str) -> Self {
        let mut cluster = Cluster::start(0).await;
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
            let (container, slot) = (ContainerId::from_u128(n), cluster::slot(1, "web", n as u32));
            cluster.change(Change::Start { container, slot, node: ids[n as usize - 1] });
            container
        });
        Self { cluster, backends: backends.try_into().unwrap(), ids, containers }
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        [0, 1].map(|n| self.backends[n].local_addr())
    }

    /// Has one node send what is for the other another way.
    async fn redirect(&mut self, node: usize, to: SocketAddr) {
        let state = self.cluster.region.state();
        let mut other = state.node(self.ids[1 - node]).unwrap().clone();
        other.underlay = to;
        self.cluster.change(Change::UpdateNode(other));
        let plan = self.cluster.region.state().node_plan(self.ids[node]);
        self.backends[node].apply(&plan).await.into_result().unwrap();
    }

    fn port(&self, n: usize) -> Port {
        self.backends[n].port(self.containers[n]).unwrap()
    }
}

/// Sends numbered datagrams and has them echoed, some at a time; calls `at` after each that came back.
async fn echo(from: &Port, to: &Port, count: u32, mut at: impl AsyncFnMut(u32)) -> BTreeSet<u32> {
    let (client, server) = (from.bind_udp(7).unwrap(), to.bind_udp(7).unwrap());
    let target = SocketAddrV4::new(to.address(), 7);
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = server.recv_from(&mut buffer).await {
            let SocketAddr::V4(from) = from else { unreachable!("containers have IPv4") };
            server.send_to(&buffer[..len], from).await.unwrap();
        }
    });
    let (mut back, mut buffer) = (BTreeSet::new(), [0; 2000]);
    for n in 0..count {
        client.send_to(&[&n.to_be_bytes()[..], &[n as u8; 1000]].concat(), target).await.unwrap();
        // As many are on their way as every queue has room for.
        while n + 1 == count || back.len() + 32 < n as usize {
            let Ok(received) = timeout(Duration::from_secs(1), client.recv_from(&mut buffer)).await else {
                break;
            };
            let number = u32::from_be_bytes(*buffer.first_chunk().unwrap());
            assert!(buffer[4..received.unwrap().0].iter().all(|octet| *octet == number as u8));
            assert!(back.insert(number), "{number} came twice");
            at(number).await;
            if back.len() == count as usize {
                break;
            }
        }
    }
    echo.abort();
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_underlay_loses_repeats_and_reorders_arrives_once_and_in_order() {
    if !namespace::is_root() {
        return;
    }
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut nodes = Nodes::start(listen).await;
        let way = Way::between(nodes.addresses(), Quality::Bad);
        for n in 0..2 {
            nodes.redirect(n, way.addresses[n]).await;
        }
        let [a, b] = [0, 1].map(|n| nodes.port(n));
        let back = echo(&a, &b, 1000, async |_| ()).await;
        assert!(back.len() >= 900, "{listen}: {} of 1000", back.len());
        let inside = [0; 2].map(|_| Namespace::new());
        for (n, inside) in inside.iter().enumerate() {
            nodes.backends[n].attach(nodes.containers[n], TunPort::in_netns(inside.path())).await.unwrap();
        }
        transfer(&inside[0], &inside[1], b.address(), 80, 5_000_000).await;
        transfer(&inside[1], &inside[0], a.address(), 80, 5_000_000).await;
        let drops = nodes.backends[1].drops();
        assert!(drops.get(DropReason::Replay) > 0, "{listen}: something was delivered twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_change_and_roam_under_load_lose_nothing() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut nodes = Nodes::start(listen).await;
        let ways = [0; 3].map(|_| Way::between(nodes.addresses(), Quality::Good));
        for n in 0..2 {
            nodes.redirect(n, ways[0].addresses[n]).await;
        }
        let [a, b] = [0, 1].map(|n| nodes.port(n));
        // The first node is told of another way; to the second the first moves without a word.
        let back = echo(&a, &b, 5000, async |number| {
            if number % 250 == 0 {
                nodes.redirect(0, ways[number as usize / 250 % 3].addresses[0]).await;
            }
        });
        assert_eq!(timeout(LIMIT, back).await.unwrap().len(), 5000, "{listen}");
    }
}
