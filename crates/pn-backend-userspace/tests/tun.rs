//! Containers with interfaces of their own: what the kernel on both sides makes of them.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;
mod namespace;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use cluster::Cluster;
use namespace::{Namespace, transfer};
use pn_backend_userspace::{TapPort, TunPort, probe};
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
        namespace::to_socket(&inside, &port, port.address()).await;
        namespace::from_socket(&inside, &port, at, 100 + n as u16).await;
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
    let all = [a, b, c].map(|container| [address(&cluster, container).into()]);
    let inside = [namespace::behind(&bridge, &all[0], &all), namespace::behind(&bridge, &all[1], &all)];

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

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_to_the_network_that_a_containers_id_was_in_before() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(2).await;
    let (reused, before) = (cluster.add(1, 1), cluster.add(1, 2));
    let (marker, after) = (cluster.add(2, 1), cluster.add(2, 2));
    // The network stays, and its interface.
    cluster.add(1, 1);
    cluster.apply().await;
    let (inside, node) = (Namespace::new(), &cluster.region.nodes()[0]);
    let tap = TapPort::in_netns(inside.path(), "pn-tap".parse().unwrap());
    node.backend.attach_network(cluster::network(1), tap).await.unwrap();
    let node = node.id;

    // What is for the interface arrives before what is for the socket.
    let (marker, after) = (cluster.port(marker).bind_udp(9).unwrap(), cluster.port(after).bind_udp(0).unwrap());
    let before = cluster.port(before).bind_udp(0).unwrap();
    before.send_to(b"x", (address(&cluster, reused), 9)).await.unwrap();
    after.send_to(b"x", marker.local_addr()).await.unwrap();
    timeout(LIMIT, marker.recv_from(&mut [0; 9])).await.unwrap().unwrap();

    cluster.change(Change::Fail(reused));
    cluster.change(Change::Start { container: reused, slot: cluster::slot(2, "web", 77), node });
    cluster.change(Change::Ready(reused));
    cluster.apply().await;
    let socket = cluster.port(reused).bind_udp(9).unwrap();
    after.send_to(b"hello", socket.local_addr()).await.unwrap();
    let (len, from) = timeout(LIMIT, socket.recv_from(&mut [0; 9])).await.unwrap().unwrap();
    assert_eq!((len, from), (5, after.local_addr()));
}

/// A plan that holds back a network keeps a container there that has gone to another since; here without what keeps an agent from
/// making such a plan.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_two_networks_have_mixes_nothing() {
    if !namespace::is_root() {
        return;
    }
    let mut cluster = Cluster::start(2).await;
    let (y, x, z) = (cluster.add(1, 2), cluster.add(1, 1), cluster.add(2, 2));
    cluster.apply().await;
    let [here, there] = [0, 1].map(|n| cluster.region.nodes()[n].id);
    let (before, old) = (cluster.region.state().node_plan(here), address(&cluster, x));
    cluster.change(Change::Fail(x));
    cluster.change(Change::Start { container: x, slot: cluster::slot(2, "web", 77), node: here });
    cluster.change(Change::Ready(x));
    let networks = [1, 2].map(cluster::network);
    let merged = cluster.region.state().node_plan(here).keeping(&before, |id| id == networks[0]);
    let has = |id: &NetworkId| merged.networks[id].endpoints.iter().any(|endpoint| endpoint.container == x);
    assert!(networks.iter().all(has), "both have the container");
    let inside = [0; 2].map(|_| Namespace::new());
    let backend = &cluster.region.nodes()[0].backend;
    backend.apply(&merged).await.into_result().unwrap();
    for (network, inside) in networks.into_iter().zip(&inside) {
        let tap = TapPort::in_netns(inside.path(), "pn-tap".parse().unwrap());
        backend.attach_network(network, tap).await.unwrap();
    }
    let arrived = || {
        inside.each_ref().map(|inside| {
            let (_, count) = inside.try_run("cat", &["/sys/class/net/pn-tap/statistics/rx_packets"]);
            count.trim().parse::<u32>().unwrap()
        })
    };
    // The other node knows where the container is in network 2 only when it has let go of network 1.
    let plan = cluster.region.state().node_plan(there);
    cluster.port(y).bind_udp(0).unwrap().send_to(b"of network 1", (old, 9)).await.unwrap();
    eventually(|| arrived() == [1, 0], || format!("{:?}", arrived())).await;
    cluster.region.nodes()[1].backend.apply(&plan).await.into_result().unwrap();
    let (new, socket) = (address(&cluster, x), cluster.port(z).bind_udp(0).unwrap());
    for n in 1..=5 {
        socket.send_to(b"of network 2", (new, 9)).await.unwrap();
        eventually(|| arrived() == [1, n], || format!("{:?}", arrived())).await;
    }
}

async fn eventually(is_so: impl Fn() -> bool, what: impl Fn() -> String) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is {}", what());
}
