//! TCP and UDP between containers: on one node, across nodes, of any size, and when things go wrong.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cluster::Cluster;
use pn_backend_userspace::{Port, TcpStream};
use pn_core::{Change, ContainerId, Name, Node, NodeId, PublicKey};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// Longer than anything here takes; what hangs fails.
const LIMIT: Duration = Duration::from_secs(30);

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// Sends `len` octets from one container to another over TCP and compares hashes.
async fn transfer(from: &Port, to: &Port, port: u16, len: usize) {
    let listener = to.listen(port).unwrap();
    let target = SocketAddrV4::new(to.address(), port);
    let sent = body(len);
    let digest = Sha256::digest(&sent);
    let sender = async {
        let mut stream = from.connect(target).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), target.into());
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, digest.as_slice(), "the other side saw something else");
    };
    let receiver = async {
        let (mut stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip(), from.address());
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), len);
        stream.write_all(&Sha256::digest(&received)).await.unwrap();
    };
    timeout(LIMIT, async { tokio::join!(sender, receiver) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_on_any_port_across_nodes_and_on_one() {
    let mut cluster = Cluster::start(3).await;
    let containers = [cluster.add(1, 1), cluster.add(1, 1), cluster.add(1, 2), cluster.add(1, 3)];
    cluster.apply().await;
    let ports = containers.map(|container| cluster.port(container));
    for port in [1, 3000, 65_535] {
        for (from, to) in [(0, 1), (0, 2), (2, 3), (3, 0)] {
            transfer(&ports[from], &ports[to], port, 100_000).await;
        }
    }
    transfer(&ports[0], &ports[2], 3000, 20_000_000).await;
    transfer(&ports[0], &ports[1], 3000, 20_000_000).await;
    transfer(&ports[0], &ports[0], 3000, 100_000).await;
    transfer(&ports[0], &ports[2], 3000, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_of_every_size_arrives_intact() {
    let mut cluster = Cluster::start(2).await;
    let containers = [cluster.add(1, 1), cluster.add(1, 1), cluster.add(1, 2)];
    cluster.apply().await;
    let ports = containers.map(|container| cluster.port(container));
    for (from, to) in [(0, 1), (0, 2)] {
        let receiver = ports[to].bind_udp(65_535).unwrap();
        let sender = ports[from].bind_udp(0).unwrap();
        let target = SocketAddrV4::new(ports[to].address(), 65_535);
        let mut buffer = vec![0; 65_536];
        for len in [0, 1, 1361, 1362, 1363, 1400, 2800, 9000, 60_000, 65_506, 65_507] {
            let sent = body(len);
            sender.send_to(&sent, target).await.unwrap();
            let (received, peer) = timeout(LIMIT, receiver.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!((received, peer), (len, sender.local_addr()));
            assert_eq!(Sha256::digest(&buffer[..received]), Sha256::digest(&sent), "{len} octets");
        }
        // Several large ones at once: their fragments are told apart.
        for n in 0..8u8 {
            sender.send_to(&[n; 20_000], target).await.unwrap();
        }
        for n in 0..8u8 {
            let (received, _) = timeout(LIMIT, receiver.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!(&buffer[..received], [n; 20_000]);
        }
        let error = sender.send_to(&[0; 65_508], target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), "a datagram of 65508 octets: at most 65507 fit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_they_are() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (port_a, port_b) = (cluster.port(a), cluster.port(b));
    let kind_of = async |target: String| timeout(LIMIT, port_a.connect(target)).await.unwrap().unwrap_err().kind();

    assert_eq!(kind_of(format!("{}:80", port_b.address())).await, ErrorKind::ConnectionRefused);
    assert_eq!(kind_of("10.240.3.77:80".to_owned()).await, ErrorKind::HostUnreachable);
    assert_eq!(kind_of("192.0.2.1:80".to_owned()).await, ErrorKind::HostUnreachable);
    for text in ["", "10.240.0.2", "10.240.0.2:", "10.240.0.2:65536", ":80"] {
        assert_eq!(kind_of(text.to_owned()).await, ErrorKind::InvalidInput, "{text:?}");
    }
    let error = port_a.connect((port_b.address(), 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    let _first = port_a.listen(80).unwrap();
    let error = port_a.listen(80).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::AddrInUse, "port 80 of 10.240.0.1 is in use".to_owned()));
    let _udp = port_a.bind_udp(80).unwrap();
    assert_eq!(port_a.bind_udp(80).unwrap_err().kind(), ErrorKind::AddrInUse);

    let missing = ContainerId::from_u128(99);
    let error = cluster.region.nodes()[0].backend.port(missing).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot open the port of {missing} on {}: the applied plan does not have it there: there is none",
            cluster.region.nodes()[0].id
        )
    );
}

async fn pair(from: &Port, to: &Port) -> (TcpStream, TcpStream) {
    let listener = to.listen(0).unwrap();
    let target = format!("{}", listener.local_addr());
    let (connected, accepted) = tokio::join!(from.connect(target), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_as_the_kernels_do() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (port_a, port_b) = (cluster.port(a), cluster.port(b));
    let mut buffer = [0; 16];

    // Half closed: what was written arrives, then 0, and the other direction goes on.
    let (mut one, mut two) = pair(&port_a, &port_b).await;
    one.write_all(b"last words").await.unwrap();
    one.shutdown().await.unwrap();
    assert_eq!(one.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(timeout(LIMIT, two.read(&mut buffer)).await.unwrap().unwrap(), 10);
    assert_eq!(timeout(LIMIT, two.read(&mut buffer)).await.unwrap().unwrap(), 0);
    two.write_all(b"answer").await.unwrap();
    assert_eq!(timeout(LIMIT, one.read(&mut buffer)).await.unwrap().unwrap(), 6);

    // Dropped after writing: everything arrives.
    let (mut one, mut two) = pair(&port_a, &port_b).await;
    let sent = body(300_000);
    one.write_all(&sent).await.unwrap();
    drop(one);
    let mut received = Vec::new();
    timeout(LIMIT, two.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, sent);

    // Dropped with something unread: the other side learns that it was not read.
    let (mut one, mut two) = pair(&port_a, &port_b).await;
    one.write_all(b"partly read").await.unwrap();
    assert_eq!(timeout(LIMIT, two.read(&mut buffer[..1])).await.unwrap().unwrap(), 1);
    drop(two);
    let error = timeout(LIMIT, one.read(&mut buffer)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    // The container goes: its sockets fail, and the other side's do not hang for ever.
    let (mut one, _two) = pair(&port_a, &port_b).await;
    let listener = port_a.listen(9).unwrap();
    let udp = port_a.bind_udp(9).unwrap();
    cluster.change(Change::Fail(a));
    let read = async { one.read(&mut [0; 1]).await };
    let mut datagram = [0; 1];
    let (applied, read, accepted, received) =
        timeout(LIMIT, async { tokio::join!(cluster.apply(), read, listener.accept(), udp.recv_from(&mut datagram)) })
            .await
            .unwrap();
    let () = applied;
    for error in [read.unwrap_err(), accepted.unwrap_err(), received.unwrap_err(), port_a.listen(1).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert_eq!(error.to_string(), "the container was removed from its network");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_at_once() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (port_a, port_b) = (cluster.port(a), cluster.port(b));
    let listener = port_b.listen(3000).unwrap();
    let server = tokio::spawn(async move {
        for _ in 0..1200 {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut octets = [0; 4];
                stream.read_exact(&mut octets).await.unwrap();
                stream.write_all(&octets).await.unwrap();
            });
        }
    });
    let target = SocketAddrV4::new(port_b.address(), 3000);
    for round in 0..3u32 {
        let clients: Vec<_> = (0..400u32)
            .map(|n| {
                let port = port_a.clone();
                tokio::spawn(async move {
                    let mut stream = port.connect(target).await.unwrap();
                    let sent = (round * 1000 + n).to_be_bytes();
                    stream.write_all(&sent).await.unwrap();
                    let mut echoed = [0; 4];
                    stream.read_exact(&mut echoed).await.unwrap();
                    assert_eq!(echoed, sent);
                })
            })
            .collect();
        for client in clients {
            timeout(LIMIT, client).await.unwrap().unwrap();
        }
    }
    timeout(LIMIT, server).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_plan_breaks_no_connection() {
    let mut cluster = Cluster::start(3).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (mut one, mut two) = pair(&cluster.port(a), &cluster.port(b)).await;
    let sent = body(3_000_000);
    let sender = async {
        for piece in sent.chunks(100_000) {
            one.write_all(piece).await.unwrap();
        }
        one.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let receiver = two.read_to_end(&mut received);
    let changes = async {
        for n in 0..20 {
            cluster.add(1, 3);
            let mut node = cluster.region.state().node(cluster.region.nodes()[2].id).unwrap().clone();
            // The MTU of the network goes down and up again under the traffic.
            node.underlay_mtu = if n % 2 == 0 { 1400 } else { 1500 };
            cluster.change(Change::UpdateNode(node));
            cluster.apply().await;
        }
    };
    timeout(LIMIT, async { tokio::join!(sender, receiver, changes) }).await.unwrap().1.unwrap();
    assert_eq!(received, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resolver_listens_on_its_port_only() {
    let mut cluster = Cluster::start(1).await;
    let a = cluster.add(1, 1);
    cluster.apply().await;
    let resolver = Ipv4Addr::new(169, 254, 53, 53);
    cluster.port(a).connect((resolver, 53)).await.unwrap();
    let error = cluster.port(a).connect((resolver, 80)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_silent_costs_seconds_and_not_the_connection() {
    let mut cluster = Cluster::start(1).await;
    let node = Node::new(
        NodeId::from_u128(66),
        "silent".parse().unwrap(),
        "127.0.0.77:9".parse().unwrap(),
        Ipv4Addr::new(100, 64, 0, 66).into(),
        PublicKey::new([9; 32]),
    );
    let (silent, silent_node) = (ContainerId::from_u128(1000), node.id);
    cluster.change(Change::AddNode(node));
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 1));
    cluster.change(Change::Start { container: silent, slot: cluster::slot(1, "web", 1000), node: silent_node });
    cluster.change(Change::Ready(silent));
    cluster.apply().await;
    let (port_a, port_b) = (cluster.port(a), cluster.port(b));

    // The name of all has all addresses, in any order: those of the others refuse or accept.
    let _listener = port_b.listen(80).unwrap();
    let name = Name::app(cluster::network(1), cluster::app(1));
    for _ in 0..100 {
        let began = Instant::now();
        let stream = port_a.connect(format!("{name}:80")).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().ip(), port_b.address());
        let elapsed = began.elapsed().as_secs();
        assert!(elapsed <= 10, "{elapsed} s");
        if elapsed == 10 {
            return;
        }
    }
    panic!("the silent one was never tried first");
}
