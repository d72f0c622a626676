//! What goes wrong in one place, or is too much, stays there.

mod cluster;

use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster::{Cluster, network, slot};
use pn_core::*;
use tokio::time::timeout;

/// Longer than anything here takes; what hangs fails.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Panics;

impl Resolver for Panics {
    fn resolve(&self, _: NetworkId, _: Transport, _: &[u8]) -> Option<Vec<u8>> {
        panic!("a defect of the embedder's")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_embedders_code_ends_every_socket() {
    let mut cluster = Cluster::start(1).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(2, 1));
    let backend = cluster.replace_node_1(|builder| builder.resolver(Arc::new(Panics))).await;
    let (asks, other) = (backend.port(a).unwrap(), backend.port(b).unwrap());
    let (listener, udp) = (other.listen(9).unwrap(), other.bind_udp(9).unwrap());
    let mut buffer = [0; 9];
    let everybody = async { tokio::join!(listener.accept(), udp.recv_from(&mut buffer), asks.resolve("example.com")) };
    let (accepted, received, resolved) = timeout(LIMIT, everybody).await.unwrap();
    let resolved = std::io::Error::from(resolved.unwrap_err());
    assert_eq!(resolved.kind(), ErrorKind::NotConnected, "{resolved}");
    let to = SocketAddrV4::new(other.address(), 9);
    for error in [
        accepted.unwrap_err(),
        received.unwrap_err(),
        udp.send_to(b"x", to).await.unwrap_err(),
        asks.connect(to).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert_eq!(error.to_string(), "the node's data plane has ended");
    }
    let error = backend.observe().await.unwrap_err();
    assert_eq!(error.kind(), pn_core::ErrorKind::Closed);
    assert!(backend.port(a).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_stay_in_their_network_when_a_containers_id_comes_again_in_another() {
    let mut cluster = Cluster::start(1).await;
    let (reused, neighbour) = (cluster.add(1, 1), cluster.add(2, 1));
    cluster.apply().await;
    let old = cluster.port(reused);
    let socket = old.bind_udp(2000).unwrap();
    let node = cluster.region.nodes()[0].id;
    cluster.change(Change::Fail(reused));
    cluster.change(Change::Start { container: reused, slot: slot(2, "web", 77), node });
    cluster.change(Change::Ready(reused));
    cluster.apply().await;

    let error = timeout(LIMIT, socket.recv_from(&mut [0; 9])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    let new = cluster.port(reused);
    assert_eq!((old.network(), new.network()), (network(1), network(2)));
    assert_eq!(new.address(), cluster.region.state().container(reused).unwrap().address);
    let socket = new.bind_udp(2000).unwrap();
    let sender = cluster.port(neighbour).bind_udp(0).unwrap();
    sender.send_to(b"hello", SocketAddrV4::new(new.address(), 2000)).await.unwrap();
    let (len, from) = timeout(LIMIT, socket.recv_from(&mut [0; 9])).await.unwrap().unwrap();
    assert_eq!((len, from), (5, sender.local_addr()));
    let observed = cluster.region.nodes()[0].backend.observe().await.unwrap();
    assert!(observed.networks[&network(2)].endpoints.contains_key(&new.address()));
}

/// Answers nothing, and takes its time for it.
#[derive(Debug)]
struct Slow;

impl Resolver for Slow {
    fn resolve(&self, _: NetworkId, _: Transport, _: &[u8]) -> Option<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(1));
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_in_one_network_does_not_stop_another() {
    let mut cluster = Cluster::start(1).await;
    let (flooder, sink) = (cluster.add(1, 1), cluster.add(1, 1));
    let (a, b) = (cluster.add(2, 1), cluster.add(2, 1));
    let backend = cluster.replace_node_1(|builder| builder.resolver(Arc::new(Slow))).await;
    let ports = [a, b].map(|container| backend.port(container).unwrap());
    let sockets = ports.each_ref().map(|port| port.bind_udp(7).unwrap());
    let resolver = SocketAddrV4::new([169, 254, 53, 53].into(), 53);
    for target in [resolver, SocketAddrV4::new(backend.port(sink).unwrap().address(), 7)] {
        let socket = backend.port(flooder).unwrap().bind_udp(0).unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let flood = tokio::spawn(async move {
            loop {
                socket.send_to(&[0; 64], target).await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut worst = Duration::ZERO;
        let mut trips = 0;
        // Until well after the flooder's queue is full.
        while trips < 20 || sent.load(Ordering::Relaxed) < 5000 {
            let began = std::time::Instant::now();
            for (from, to) in [(0, 1), (1, 0)] {
                sockets[from].send_to(b"x", SocketAddrV4::new(ports[to].address(), 7)).await.unwrap();
                timeout(LIMIT, sockets[to].recv_from(&mut [0; 9])).await.unwrap().unwrap();
            }
            worst = worst.max(began.elapsed());
            trips += 1;
        }
        flood.abort();
        assert!(worst < Duration::from_secs(1), "a round trip took {worst:?} while {target} was flooded");
    }
}
