//! A node whose packets several threads carry.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;
mod namespace;

use std::net::{Ipv4Addr, UdpSocket};
use std::num::NonZeroUsize;
use std::time::Duration;

use cluster::Cluster;
use namespace::{Namespace, transfer};
use pn_backend_userspace::{TapPort, TunPort, probe};
use pn_core::ContainerId;
use pn_core::backend::OverlayBackend as _;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

fn address(cluster: &Cluster, container: ContainerId) -> Ipv4Addr {
    cluster.region.state().container(container).unwrap().address
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_arrive_whole_and_in_order_and_plans_are_obeyed_by_all() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(4).await;
    let (a, socket, spare) = (cluster.add(1, 1), cluster.add(1, 1), cluster.add(1, 1));
    let others = [2, 3, 4].map(|node| cluster.add(1, node));
    let first = cluster.replace_node_1(|builder| builder.threads(NonZeroUsize::new(3).unwrap())).await;
    for node in &cluster.region.nodes()[1..] {
        node.backend.apply(&cluster.region.state().node_plan(node.id)).await.into_result().unwrap();
    }
    let inside = Namespace::new();
    first.attach(a, TunPort::in_netns(inside.path())).await.unwrap();
    let mut far = Vec::new();
    for (other, node) in others.iter().zip(&cluster.region.nodes()[1..]) {
        let namespace = Namespace::new();
        node.backend.attach(*other, TunPort::in_netns(namespace.path())).await.unwrap();
        far.push((namespace, address(&cluster, *other)));
    }
    let at = address(&cluster, a);

    // Streams both ways between all, while plans are applied.
    let plan = cluster.region.state().node_plan(cluster.region.nodes()[0].id);
    let ways = far.iter().zip(80..).flat_map(|((namespace, other), port)| {
        [transfer(&inside, namespace, *other, port, 5_000_000), transfer(namespace, &inside, at, port, 5_000_000)]
    });
    let plans = async {
        loop {
            assert!(first.apply(&plan).await.is_unchanged());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = plans => {}
        () = join(ways) => {}
    }

    for (namespace, other) in &far {
        in_order(&inside, namespace, *other).await;
        in_order(namespace, &inside, at).await;
    }

    // What is for a socket in this process is handed over, whichever thread received it.
    let port = first.port(socket).unwrap();
    let listener = port.listen(7).unwrap();
    for (namespace, _) in &far {
        let to = (port.address(), 7).into();
        let connected = namespace.spawn(move || std::net::TcpStream::connect_timeout(&to, LIMIT).unwrap());
        timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        drop(connected.join().unwrap());
    }

    // Every thread gives its queue of an interface back.
    assert!(first.detach(a).await.unwrap());
    assert!(!inside.ip(&["link"]).contains("pn0"));
    let tap = TapPort::in_netns(inside.path(), "pn-tap".parse().unwrap());
    first.attach_network(cluster::network(1), tap).await.unwrap();
    assert!(first.detach_network(cluster::network(1)).await.unwrap());
    assert!(!inside.ip(&["link"]).contains("pn-tap"));
    let (from, to) = (first.port(spare).unwrap(), first.port(a).unwrap());
    assert_eq!(timeout(LIMIT, probe::tcp(&from, &to, 9, b"as before")).await.unwrap().unwrap(), b"as before");
}

/// Waits for all of some futures at a time.
async fn join(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Sends numbered datagrams as fast as it goes, and checks that none overtakes another.
async fn in_order(from: &Namespace, to: &Namespace, address: Ipv4Addr) {
    let receiver = to.run(move || UdpSocket::bind((address, 99)).unwrap()).await;
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    let sender = from.spawn(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for n in 1..=20_000u32 {
            // A full queue is what this is for.
            drop(socket.send_to(&n.to_be_bytes(), (address, 99)));
        }
        socket
    });
    let received = to.spawn(move || {
        let (mut last, mut count, mut octets) = (0, 0, [0; 4]);
        while receiver.recv(&mut octets).unwrap() == 4 {
            let n = u32::from_be_bytes(octets);
            assert!(n > last, "{n} after {last}");
            (last, count) = (n, count + 1);
        }
        count
    });
    let socket = sender.join().unwrap();
    while !received.is_finished() {
        // Nobody may be there any more.
        drop(socket.send_to(b"end", (address, 99)));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(received.join().unwrap() > 0);
}
