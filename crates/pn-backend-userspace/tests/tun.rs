//! Containers with interfaces of their own: what the kernel on both sides makes of them.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;
mod namespace;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use cluster::Cluster;
use namespace::{Namespace, octets, transfer};
use pn_backend_userspace::{Port, TapPort, TunPort, probe};
use pn_core::backend::Observed;
use pn_core::*;
use pn_dns::stub;
use pn_overlay::DropReason;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

async fn attach(cluster: &Cluster, container: ContainerId) -> Namespace {
    let namespace = Namespace::new();
    let node = cluster.region.node_of(container).unwrap();
    node.backend.attach(container, TunPort::in_netns(namespace.path())).await.unwrap();
    namespace
}

fn address(cluster: &Cluster, container: ContainerId) -> Ipv4Addr {
    cluster.region.state().container(container).unwrap().address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_its_address_routes_and_mtu() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (inside_a, inside_b) = (attach(&cluster, a).await, attach(&cluster, b).await);
    assert!(inside_a.ip(&["-4", "-o", "address", "show", "dev", "pn0"]).contains("inet 10.240.0.1/22"));
    let routes = inside_a.ip(&["route"]);
    assert!(routes.contains("10.240.0.0/22 dev pn0") && routes.contains("169.254.53.53 dev pn0"), "{routes}");
    assert!(!routes.contains("default"), "{routes}");
    assert!(inside_a.ip(&["link", "show", "dev", "pn0"]).contains("mtu 1390"));
    transfer(&inside_a, &inside_b, address(&cluster, b), 80, 3_000_000).await;
    transfer(&inside_b, &inside_a, address(&cluster, a), 1, 3_000_000).await;

    // It stays over plans, and goes with the container.
    let c = cluster.add(1, 1);
    cluster.apply().await;
    transfer(&inside_a, &inside_b, address(&cluster, b), 81, 1000).await;
    let port = cluster.port(c);
    assert_eq!(port.address(), Ipv4Addr::new(10, 240, 0, 3));
    let node = &cluster.region.nodes()[0];
    let nothing = NodePlan::empty(node.id, cluster.region.state().node_plan(node.id).generation);
    node.backend.apply(&nothing).await.into_result().unwrap();
    assert!(!inside_a.ip(&["link"]).contains("pn0"));
    assert!(inside_b.ip(&["link"]).contains("pn0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_and_sockets_of_a_network_reach_each_other() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(2).await;
    let (tun, near, far, tun_near) = (cluster.add(1, 1), cluster.add(1, 1), cluster.add(1, 2), cluster.add(1, 1));
    let foreign = cluster.add(2, 1);
    cluster.apply().await;
    let (inside, inside_near) = (attach(&cluster, tun).await, attach(&cluster, tun_near).await);
    let at = address(&cluster, tun);
    transfer(&inside_near, &inside, at, 90, 1_000_000).await;
    for (n, port) in [cluster.port(near), cluster.port(far)].into_iter().enumerate() {
        to_socket(&inside, &port).await;
        from_socket(&inside, &port, at, 100 + n as u16).await;
    }

    // Not into another network, though the address is there too.
    let theirs = cluster.port(foreign);
    assert_eq!(theirs.address(), at);
    let listener = theirs.listen(4000).unwrap();
    let refused = inside_near.run(move || TcpStream::connect_timeout(&(at, 4000).into(), LIMIT).unwrap_err()).await;
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "by the one of its own network");
    drop(listener);

    // And what it forges does not leave.
    let backend = &cluster.region.nodes()[0].backend;
    let before = backend.drops().get(DropReason::ForgedSource);
    inside.ip(&["address", "add", "10.240.0.77/32", "dev", "pn0"]);
    inside.run(move || UdpSocket::bind("10.240.0.77:0").unwrap().send_to(b"forged", "10.240.0.3:9").unwrap()).await;
    let counted = async {
        while backend.drops().get(DropReason::ForgedSource) == before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, counted).await.unwrap();
}

/// From the interface to a socket in this process.
async fn to_socket(inside: &Namespace, port: &Port) {
    let listener = port.listen(0).unwrap();
    let to = listener.local_addr();
    let sender = inside.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT).unwrap();
        stream.write_all(&octets(500_000, 1)).unwrap();
    });
    let (mut stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    let mut received = Vec::new();
    timeout(LIMIT, tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut received)).await.unwrap().unwrap();
    assert!(received == octets(500_000, 1), "{}", received.len());
    sender.join().unwrap();
}

/// From a socket in this process to the interface.
async fn from_socket(inside: &Namespace, port: &Port, at: Ipv4Addr, number: u16) {
    let listener = inside.run(move || TcpListener::bind((at, number)).unwrap()).await;
    let receiver = inside.spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    let mut stream = timeout(LIMIT, port.connect((at, number))).await.unwrap().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &octets(500_000, 2)).await.unwrap();
    drop(stream);
    let received = tokio::task::spawn_blocking(|| receiver.join().unwrap()).await.unwrap();
    assert!(received == octets(500_000, 2), "{}", received.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_of_every_size_arrives() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (inside_a, inside_b) = (attach(&cluster, a).await, attach(&cluster, b).await);
    let (from, to) = (address(&cluster, a), address(&cluster, b));
    let receiver = inside_b.run(move || UdpSocket::bind((to, 53)).unwrap()).await;
    let sender = inside_a.run(move || UdpSocket::bind((from, 54)).unwrap()).await;
    let work = inside_a.run(move || {
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        let mut buffer = vec![0; 70_000];
        for len in (0..40).chain(1350..1400).chain(2700..2740).chain([8000, 16_384, 32_768, 65_506, 65_507]) {
            let datagram = octets(len, len as u64);
            sender.send_to(&datagram, (to, 53)).unwrap();
            let (received, _) = receiver.recv_from(&mut buffer).unwrap();
            assert!(buffer[..received] == datagram, "{len}");
        }
    });
    timeout(LIMIT, work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resolver_answers_over_udp_and_tcp() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(1).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 1));
    cluster.apply().await;
    let inside = attach(&cluster, a).await;
    let (name, wanted) = (cluster.name(b), address(&cluster, b));
    let query = stub::query(&name, 77).unwrap();
    let ask = inside.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.send_to(&query, "169.254.53.53:53").unwrap();
        let mut buffer = [0; 2000];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, "169.254.53.53:53".parse().unwrap());
        let over_udp = buffer[..len].to_vec();
        let mut stream = TcpStream::connect("169.254.53.53:53").unwrap();
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).unwrap();
        stream.read_exact(&mut buffer[..2]).unwrap();
        let len = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
        stream.read_exact(&mut buffer[..len]).unwrap();
        [over_udp, buffer[..len].to_vec()]
    });
    for reply in timeout(LIMIT, ask).await.unwrap() {
        let stub::Reply::Addresses(addresses) = stub::addresses(77, &name, &reply).unwrap() else {
            panic!("no addresses")
        };
        assert_eq!(addresses, [wanted]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_attached_is_an_error_and_what_is_attached_comes_off() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(1).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 1));
    cluster.apply().await;
    let backend = cluster.region.nodes()[0].backend.clone();
    let inside = Namespace::new();
    let error = backend.attach(ContainerId::from_u128(99), TunPort::in_netns(inside.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = backend.attach(a, TunPort::in_netns("/run/netns/tun-nowhere")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    backend.attach(a, TunPort::in_netns(inside.path())).await.unwrap();
    let error = backend.attach(b, TunPort::in_netns(inside.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "the name is taken");
    let other = TunPort::in_netns(inside.path()).named("pn1".parse().unwrap());
    backend.attach(a, other).await.unwrap();
    assert!(inside.ip(&["link"]).contains("pn1") && !inside.ip(&["link"]).contains("pn0"), "replaced");
    assert!(backend.port(a).is_err());
    let plan = cluster.region.state().node_plan(cluster.region.nodes()[0].id);
    assert_eq!(backend.observe().await.unwrap(), Observed::from(&plan));
    assert!(backend.apply(&plan).await.is_unchanged());

    assert!(backend.detach(a).await.unwrap());
    assert!(!backend.detach(a).await.unwrap());
    let echoed = timeout(LIMIT, probe::tcp(&cluster.port(b), &cluster.port(a), 7, b"as before")).await.unwrap();
    assert_eq!(echoed.unwrap(), b"as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_behind_a_bridge_share_one_interface() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(2).await;
    let (a, b, c) = (cluster.add(1, 1), cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let (bridge, backend) = (Namespace::new(), &cluster.region.nodes()[0].backend);
    let tap = TapPort::in_netns(bridge.path(), "pn-tap".parse().unwrap());
    backend.attach_network(cluster::network(1), tap).await.unwrap();
    assert!(backend.port(a).is_err());
    bridge.ip(&["link", "add", "br0", "type", "bridge"]);
    bridge.ip(&["link", "set", "pn-tap", "master", "br0"]);
    bridge.ip(&["link", "set", "br0", "up"]);
    let far = attach(&cluster, c).await;
    let inside: Vec<_> = [a, b].map(|container| behind(&cluster, &bridge, container, &[a, b, c])).into_iter().collect();

    for (from, to, target) in [(&inside[0], &far, c), (&far, &inside[1], b), (&inside[0], &inside[1], b)] {
        transfer(from, to, address(&cluster, target), 80, 3_000_000).await;
    }
    let plan = cluster.region.state().node_plan(cluster.region.nodes()[0].id);
    assert_eq!(backend.observe().await.unwrap(), Observed::from(&plan));

    // Who takes another's address, or keeps it and takes another's MAC, is not heard.
    let before = backend.drops().get(DropReason::ForgedSource);
    inside[0].ip(&["link", "set", "eth0", "address", "02:00:0a:f0:00:02"]);
    // Linux forgets static neighbours with the address.
    let mac = "02:00:0a:f0:00:03";
    inside[0].ip(&["neighbour", "replace", "10.240.0.3", "lladdr", mac, "dev", "eth0", "nud", "permanent"]);
    let counted = async {
        // More than once: the bridge may not have taken notice of the change yet.
        while backend.drops().get(DropReason::ForgedSource) == before {
            let send = move || drop(UdpSocket::bind("10.240.0.1:0").unwrap().send_to(b"forged", "10.240.0.3:9"));
            inside[0].run(send).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, counted).await.unwrap();

    assert!(backend.detach_network(cluster::network(1)).await.unwrap());
    assert!(!bridge.ip(&["link"]).contains("pn-tap"));
    assert!(backend.port(a).is_ok());
}

/// Makes a namespace that is a port of a bridge, as a container's is, with static neighbours.
fn behind(cluster: &Cluster, bridge: &Namespace, container: ContainerId, all: &[ContainerId]) -> Namespace {
    let (inside, address_of) = (Namespace::new(), |container| address(cluster, container));
    let own = address_of(container);
    let port = format!("v{}", own.octets()[3]);
    bridge.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &inside.name]);
    bridge.ip(&["link", "set", &port, "master", "br0", "up"]);
    inside.ip(&["link", "set", "eth0", "address", &MacAddr::of_ipv4(own).to_string(), "mtu", "1390", "up"]);
    inside.ip(&["address", "add", &format!("{own}/22"), "dev", "eth0"]);
    for other in all.iter().map(|container| address_of(*container)).filter(|other| *other != own) {
        let mac = MacAddr::of_ipv4(other).to_string();
        inside.ip(&["neighbour", "add", &other.to_string(), "lladdr", &mac, "dev", "eth0", "nud", "permanent"]);
    }
    inside
}
