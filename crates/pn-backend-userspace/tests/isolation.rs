//! What must not get through does not, is counted by its reason, and nothing crosses the underlay in clear.

mod cluster;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, network};
use pn_backend_userspace::{Direction, Recorder, UnderlayTap, UserspaceBackend};
use pn_core::backend::Observed;
use pn_core::*;
use pn_overlay::packet::UdpPacket;
use pn_overlay::{DropReason, Outbox, PeerConfig, PrivateKey, Tunnel, Vtep, conformance, vxlan};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn obeys_the_laws_of_data_planes() {
    conformance::overlay(|host| async move {
        let listen = SocketAddr::new(host.node.underlay.ip(), 0);
        let builder = UserspaceBackend::builder(host.node.id).listen(listen).private_key(host.private_key);
        builder.build().await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_plan_for_another_node_or_key_is_refused() {
    let mut cluster = Cluster::start(2).await;
    cluster.add(1, 1);
    let backend = &cluster.region.nodes()[0].backend;
    let refused = async |plan: &NodePlan| backend.apply(plan).await.into_result().unwrap_err();
    let error = refused(&cluster.region.state().node_plan(cluster.region.nodes()[1].id)).await;
    assert_eq!(error.kind(), ErrorKind::WrongNode);
    let mut state = cluster.region.state().clone();
    let mut node = state.node(cluster.region.nodes()[0].id).unwrap().clone();
    node.public_key = PublicKey::new([9; 32]);
    state.apply(Timestamp::ZERO, Change::UpdateNode(node)).unwrap();
    let error = refused(&state.node_plan(cluster.region.nodes()[0].id)).await;
    assert_eq!(error.kind(), ErrorKind::WrongNode);
    assert!(error.to_string().contains(&PublicKey::new([9; 32]).to_string()), "{error}");
    assert_eq!(backend.observe().await.unwrap(), Observed::default(), "nothing was applied");
}

#[tokio::test]
async fn what_this_backend_cannot_do_is_reported_and_the_rest_is_done() {
    let mut cluster = Cluster::start(1).await;
    cluster.add_network(3, |request| request.encryption = Encryption::None);
    let (plain, sealed) = (cluster.add(3, 1), cluster.add(1, 1));
    let node = &cluster.region.nodes()[0];
    let report = node.backend.apply(&cluster.region.state().node_plan(node.id)).await;
    let failures: Vec<_> = report.failures().map(|error| (error.kind(), error.object().to_owned())).collect();
    assert_eq!(
        failures,
        [(ErrorKind::Unsupported, format!("network {} with encryption None, keys per Node", network(3)))]
    );
    assert!(node.backend.port(sealed).is_ok());
    assert!(node.backend.port(plain).is_err(), "no encryption means no traffic");
}

#[tokio::test(flavor = "multi_thread")]
async fn n6_the_same_address_in_two_networks_is_two_containers() {
    let mut cluster = Cluster::start(2).await;
    let (ours, theirs) = ([cluster.add(1, 1), cluster.add(1, 2)], [cluster.add(2, 1), cluster.add(2, 2)]);
    cluster.apply().await;
    for containers in [ours, theirs] {
        let port = cluster.port(containers[1]);
        assert_eq!(port.address(), Ipv4Addr::new(10, 240, 0, 2));
        let network = port.network().to_string();
        let listener = port.listen(80).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(network.as_bytes()).await.unwrap();
        });
    }
    for containers in [ours, theirs] {
        let port = cluster.port(containers[0]);
        let mut stream = port.connect("10.240.0.2:80").await.unwrap();
        let mut found = String::new();
        timeout(LIMIT, stream.read_to_string(&mut found)).await.unwrap().unwrap();
        assert_eq!(found, port.network().to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_resolve_in_their_network_only() {
    let mut cluster = Cluster::start(2).await;
    let (a, b, intruder) = (cluster.add(1, 1), cluster.add(1, 2), cluster.add(2, 1));
    cluster.apply().await;
    let (port, name) = (cluster.port(a), cluster.name(b));
    assert_eq!(port.resolve(&name).await.unwrap(), [cluster.port(b).address()]);
    assert_eq!(port.resolve(&name.to_uppercase()).await.unwrap(), [cluster.port(b).address()]);
    let error = cluster.port(intruder).resolve(&name).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{name} does not exist in this network"));
    for (name, expected) in [
        ("example.com".to_owned(), "the resolver answered example.com with rcode 5"),
        ("a..b".to_owned(), "\"a..b\" is not a domain name"),
    ] {
        assert_eq!(port.resolve(&name).await.unwrap_err().to_string(), expected);
    }
    // A connection by name, and one to a name that has no address.
    let listener = cluster.port(b).listen(3000).unwrap();
    let (connected, accepted) = tokio::join!(port.connect(format!("{name}:3000")), listener.accept());
    assert_eq!(connected.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    cluster.change(Change::Stop(b));
    cluster.apply().await;
    let error = port.connect(format!("{name}:3000")).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_name_with_all_1022_addresses_is_resolved_over_tcp() {
    let mut cluster = Cluster::start(1).await;
    let containers: Vec<_> = (0..1022).map(|_| cluster.add(1, 1)).collect();
    cluster.apply().await;
    let app = Name::app(network(1), cluster::app(1)).to_string();
    let mut addresses = timeout(LIMIT, cluster.port(containers[0]).resolve(&app)).await.unwrap().unwrap();
    addresses.sort_unstable();
    assert_eq!(addresses, (1..=1022).map(|n| Subnet::DEFAULT.address(n).unwrap()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_resolver_waits_in_vain() {
    let mut cluster = Cluster::start(1).await;
    let container = cluster.add(1, 1);
    let backend = cluster.replace_node_1(|builder| builder).await;
    let error = timeout(LIMIT, backend.port(container).unwrap().resolve("example.com")).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the resolver did not answer example.com");
}

#[tokio::test]
async fn without_sockets_nobody_answers_for_a_container_without_an_interface() {
    let mut cluster = Cluster::start(2).await;
    let (here, there) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let backend = cluster.replace_node_1(|builder| builder.without_sockets()).await;
    let other = &cluster.region.nodes()[1];
    other.backend.apply(&cluster.region.state().node_plan(other.id)).await.into_result().unwrap();
    assert_eq!(backend.port(here).unwrap_err().kind(), ErrorKind::NotFound);
    // It is missed by who compares.
    let (address, node) = (cluster.region.state().container(here).unwrap().address, cluster.region.nodes()[0].id);
    let mut planned = Observed::from(&cluster.region.state().node_plan(node));
    planned.networks.get_mut(&network(1)).unwrap().endpoints.remove(&address);
    assert_eq!(backend.observe().await.unwrap(), planned);
    let port = cluster.port(there);
    let connected = timeout(Duration::from_millis(500), port.connect((address, 9))).await;
    assert!(connected.is_err(), "somebody has answered: {connected:?}");
    assert!(backend.drops().get(DropReason::UnknownDestination) > 0);
}

/// A container's UDP packet, as a raw socket would make it.
fn packet(from: [u8; 4], to: [u8; 4], len: usize) -> Vec<u8> {
    let mut packet = vec![b'f'; 28 + len];
    UdpPacket::write_headers(&mut packet, (from.into(), 1000), (to.into(), 2000), len);
    packet
}

/// Waits until a reason was counted so often.
async fn counted(backend: &UserspaceBackend, reason: DropReason, count: u64) {
    let wait = async {
        while backend.drops().get(reason) < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap_or_else(|_| {
        panic!(
            "{reason}: {} instead of {count}; all: {:?}",
            backend.drops().get(reason),
            backend.drops().iter().collect::<Vec<_>>()
        )
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn forgeries_of_a_container_do_not_leave_its_port() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    let _theirs = cluster.add(2, 1);
    cluster.apply().await;
    let (port, backend) = (cluster.port(a), &cluster.region.nodes()[0].backend);
    let socket = cluster.port(b).bind_udp(2000).unwrap();
    for (packet, reason) in [
        (packet([10, 240, 0, 2], [10, 240, 0, 2], 10), DropReason::ForgedSource),
        (packet([10, 240, 0, 3], [10, 240, 0, 2], 10), DropReason::ForgedSource),
        (packet([192, 0, 2, 1], [10, 240, 0, 2], 10), DropReason::ForgedSource),
        (packet([10, 240, 0, 1], [100, 64, 0, 2], 10), DropReason::UnknownDestination),
        (packet([10, 240, 0, 1], [127, 0, 0, 2], 10), DropReason::UnknownDestination),
        (packet([10, 240, 0, 1], [10, 240, 0, 2], 1363), DropReason::TooBig),
        (vec![0x60; 60], DropReason::NotIp),
    ] {
        let before = backend.drops().get(reason);
        port.send_raw(&packet).unwrap();
        counted(backend, reason, before + 1).await;
    }
    // The good one after them is the only one that arrives.
    port.send_raw(&packet([10, 240, 0, 1], [10, 240, 0, 2], 7)).unwrap();
    let mut buffer = [0; 100];
    let (len, from) = timeout(LIMIT, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!((len, from), (7, SocketAddrV4::new(Ipv4Addr::new(10, 240, 0, 1), 1000).into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn x12_the_underlay_port_takes_nothing_but_wireguard_of_peers() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let backend = &cluster.region.nodes()[0].backend;
    let plan = cluster.region.state().node_plan(cluster.region.nodes()[1].id);

    // Exactly what node 2 would put into its tunnel, in clear: as VXLAN over UDP, and as the whole inner packet.
    let mut wrapped = Vec::new();
    let inner = packet([10, 240, 0, 2], [10, 240, 0, 1], 10);
    Vtep::new(plan.clone()).egress(network(1), b, &inner, &mut wrapped).unwrap();
    let stranger = UdpSocket::bind("127.0.0.9:0").unwrap();
    let receiver = cluster.port(a).bind_udp(2000).unwrap();
    for clear in [&wrapped[28..], &wrapped[..], &inner[..], b"GET / HTTP/1.1\r\n\r\n", &[]] {
        let before = backend.drops().get(DropReason::NotWireGuard);
        stranger.send_to(clear, backend.local_addr()).unwrap();
        counted(backend, DropReason::NotWireGuard, before + 1).await;
    }

    // A handshake of somebody whose key is nobody's.
    let mut tunnel = Tunnel::new(PrivateKey::from_bytes([77; 32]));
    let target = PeerConfig {
        node: cluster.region.nodes()[0].id,
        public_key: backend.public_key(),
        underlay: backend.local_addr(),
        tunnel_address: "100.64.0.1".parse().unwrap(),
    };
    tunnel.set_peer(target);
    let mut out = Outbox::new();
    tunnel.seal(target.tunnel_address, &wrapped, &mut out).unwrap();
    out.iter().for_each(|(to, datagram)| assert_eq!(stranger.send_to(datagram, to).unwrap(), datagram.len()));
    counted(backend, DropReason::UnknownPeer, 1).await;

    // The legitimate way still works, and nothing of the above arrived.
    cluster
        .port(b)
        .bind_udp(5)
        .unwrap()
        .send_to(b"real", SocketAddrV4::new(Ipv4Addr::new(10, 240, 0, 1), 2000))
        .await
        .unwrap();
    let mut buffer = [0; 100];
    let (len, _) = timeout(LIMIT, receiver.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..len], b"real");
}

/// A node that has a peer's key and lies inside the tunnel: the worst neighbour there is.
#[tokio::test(flavor = "multi_thread")]
async fn k9_a_peer_that_lies_inside_the_tunnel_is_not_believed() {
    let mut cluster = Cluster::start(1).await;
    let socket = UdpSocket::bind("127.0.0.2:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut liar = Tunnel::new(PrivateKey::from_bytes([66; 32]));
    let liar_node = NodeId::from_u128(66);
    cluster.change(Change::AddNode(Node::new(
        liar_node,
        "liar".parse().unwrap(),
        socket.local_addr().unwrap(),
        "100.64.0.66".parse().unwrap(),
        liar.public_key(),
    )));
    // Network 1: containers here and at the liar. Network 2: here only, so the liar is no member.
    let first = cluster.add(1, 1);
    cluster.add(1, 1);
    let (theirs, other) = (ContainerId::from_u128(1000), cluster.add(2, 1));
    cluster.change(Change::Start { container: theirs, slot: cluster::slot(1, "web", 1000), node: liar_node });
    let theirs_address = cluster.region.state().container(theirs).unwrap().address;
    cluster.apply().await;
    let backend = &cluster.region.nodes()[0].backend;
    let here = PeerConfig {
        node: cluster.region.nodes()[0].id,
        public_key: backend.public_key(),
        underlay: backend.local_addr(),
        tunnel_address: "100.64.0.1".parse().unwrap(),
    };
    liar.set_peer(here);

    let mut honest = Vec::new();
    let from = theirs_address.octets();
    let inner = packet(from, [10, 240, 0, 1], 10);
    let vtep = Vtep::new(cluster.region.state().node_plan(liar_node));
    vtep.egress(network(1), theirs, &inner, &mut honest).unwrap();
    let receiver = cluster.port(other).bind_udp(2000).unwrap();
    let honest_receiver = cluster.port(first).bind_udp(2000).unwrap();

    // The handshake, by hand, whoever begins it.
    let mut out = Outbox::new();
    liar.seal(here.tunnel_address, &honest, &mut out).unwrap();
    let mut buffer = [0; 2000];
    loop {
        out.iter().for_each(|(to, datagram)| assert_eq!(socket.send_to(datagram, to).unwrap(), datagram.len()));
        out.clear();
        if liar.peers().all(|peer| peer.handshake_age.is_some()) {
            break;
        }
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        liar.open(from, &buffer[..len], &mut out).unwrap();
    }
    let mut datagram = [0; 100];
    let (len, _) = timeout(LIMIT, honest_receiver.recv_from(&mut datagram)).await.unwrap().unwrap();
    assert_eq!(len, 10, "the honest packet arrives");

    let vni_of = |n: u128| cluster.region.state().network(network(n)).unwrap().vni;
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = honest.clone();
        edit(&mut packet);
        packet
    };
    let set_vni = |packet: &mut Vec<u8>, vni: Vni| packet[28..36].copy_from_slice(&vxlan::header(vni));
    for (what, lie, reason) in [
        ("another node's tunnel address", with(&|p| p[15] = 99), DropReason::TunnelSource),
        ("this node's own tunnel address", with(&|p| p[15] = 1), DropReason::TunnelSource),
        ("a network it is no member of", with(&|p| set_vni(p, vni_of(2))), DropReason::NotMember),
        ("a network that does not exist", with(&|p| set_vni(p, Vni::new(999).unwrap())), DropReason::UnknownVni),
        ("a container of this node", with(&|p| p[50 + 15] = 2), DropReason::ForgedSource),
        ("a forged MAC", with(&|p| p[36 + 11] = 2), DropReason::ForgedSource),
        ("ARP", with(&|p| p[36 + 13] = 6), DropReason::NotIp),
        ("not VXLAN", with(&|p| p[23] = 1), DropReason::NotVxlan),
    ] {
        let before = backend.drops().get(reason);
        liar.seal(here.tunnel_address, &lie, &mut out).unwrap();
        out.iter().for_each(|(to, datagram)| assert_eq!(socket.send_to(datagram, to).unwrap(), datagram.len()));
        out.clear();
        counted(backend, reason, before + 1).await;
        assert!(!what.is_empty());
    }
    let nothing = timeout(Duration::from_millis(100), receiver.recv_from(&mut datagram)).await;
    assert!(nothing.is_err(), "a lie arrived in another network");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_crosses_the_underlay_in_clear() {
    let recorder = Arc::new(Recorder::default());
    let mut cluster = Cluster::start_with_tap(2, Some(recorder.clone())).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (port_a, port_b) = (cluster.port(a), cluster.port(b));
    let listener = port_b.listen(3000).unwrap();
    let secret = b"the quick brown fox jumps over the lazy dog".repeat(1000);
    let (stream, accepted) = tokio::join!(port_a.connect((port_b.address(), 3000)), listener.accept());
    let (mut stream, mut accepted) = (stream.unwrap(), accepted.unwrap().0);
    stream.write_all(&secret).await.unwrap();
    drop(stream);
    let mut received = Vec::new();
    timeout(LIMIT, accepted.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, secret);

    let found = recorder.inspect([&secret[..]]);
    assert!(found.sent * 1500 > secret.len() && found.pieces >= 43, "{found:?}");
    assert_eq!((found.foreign, found.in_clear), (0, 0), "{found:?}");
    // The recorder itself has eyes: what the tunnel carries is found when it is shown.
    recorder.datagram(Direction::Sent, "127.0.0.1:1".parse().unwrap(), &secret[7..40]);
    let shown = recorder.inspect([&secret[..]]);
    assert_eq!((shown.foreign, shown.in_clear), (1, 1));
    let recorded = recorder.datagrams();
    let largest = recorded.iter().map(|(_, datagram)| datagram.len()).max().unwrap();
    assert_eq!(largest + 28, 1500, "a full packet fills the underlay's MTU exactly");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_backend_gives_everything_back() {
    let mut cluster = Cluster::start(1).await;
    let a = cluster.add(1, 1);
    cluster.apply().await;
    let port = cluster.port(a);
    let listener = port.listen(80).unwrap();
    let address = cluster.region.nodes()[0].backend.local_addr();
    assert_eq!(address.ip(), IpAddr::from([127, 0, 0, 1]));
    drop(cluster);
    let error = timeout(LIMIT, listener.accept()).await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (io::ErrorKind::NotConnected, "the node's data plane has ended".into())
    );
    let rebind = async {
        while UdpSocket::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, rebind).await.expect("the underlay port is free again");
    let taken = UdpSocket::bind(address).unwrap();
    let error = UserspaceBackend::builder(NodeId::from_u128(1)).listen(address).build().await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot bind underlay address {address}: something else is in the way"));
    drop(taken);
}

/// A plan that holds back a network keeps a container there that has gone to another since: its socket is the other's alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_two_networks_have_hears_one() {
    let mut cluster = Cluster::start(2).await;
    let (y, x) = (cluster.add(1, 2), cluster.add(1, 1));
    cluster.add(2, 2);
    cluster.apply().await;
    let here = cluster.region.nodes()[0].id;
    let (before, target) = (cluster.region.state().node_plan(here), cluster.port(x).address());
    cluster.change(Change::Fail(x));
    cluster.change(Change::Start { container: x, slot: cluster::slot(2, "web", 77), node: here });
    cluster.change(Change::Ready(x));
    let merged = cluster.region.state().node_plan(here).keeping(&before, |id| id == network(1));
    let backend = &cluster.region.nodes()[0].backend;
    backend.apply(&merged).await.into_result().unwrap();
    let port = cluster.port(x);
    assert_eq!((port.network(), port.address()), (network(2), target), "it has one address in both");
    let socket = port.bind_udp(9).unwrap();
    // The other node has not heard of it yet.
    cluster.port(y).bind_udp(0).unwrap().send_to(b"of network 1", SocketAddr::from((target, 9))).await.unwrap();
    counted(backend, DropReason::UnknownDestination, 1).await;
    let heard = timeout(Duration::from_millis(100), socket.recv_from(&mut [0; 99])).await;
    assert!(heard.is_err(), "{heard:?}");
}
