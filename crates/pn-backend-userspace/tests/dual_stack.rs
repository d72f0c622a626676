//! A network with IPv6 beside IPv4: interfaces, sockets and bridges, what is large, and what is forged.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;
mod namespace;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use cluster::{Cluster, network};
use namespace::{Namespace, octets, transfer};
use nix::sys::socket::{setsockopt, sockopt};
use pn_backend_userspace::{Port, TapPort, TunPort, probe};
use pn_core::*;
use pn_overlay::DropReason;
use pn_overlay::packet::UdpPacket;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

/// The network with IPv6.
const DUAL_STACK: u128 = 6;

/// Two nodes, and containers of the network with IPv6 on them, by node.
async fn start<const N: usize>(nodes: [usize; N]) -> (Cluster, [ContainerId; N]) {
    let mut cluster = Cluster::start(2).await;
    cluster.add_network(DUAL_STACK, |request| request.families = Families::DualStack);
    let containers = nodes.map(|node| cluster.add(DUAL_STACK, node));
    cluster.apply().await;
    (cluster, containers)
}

/// Gives a container an interface in a namespace of its own.
async fn attach(cluster: &Cluster, container: ContainerId) -> Namespace {
    let namespace = Namespace::new();
    let node = cluster.region.node_of(container).unwrap();
    node.backend.attach(container, TunPort::in_netns(namespace.path())).await.unwrap();
    namespace
}

/// Returns a container's addresses, of IPv4 and of IPv6.
fn addresses(cluster: &Cluster, container: ContainerId) -> [IpAddr; 2] {
    let v4 = cluster.region.state().container(container).unwrap().address;
    [v4.into(), Ipv6Prefix::of_network(network(DUAL_STACK)).address(v4).into()]
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_and_sockets_reach_each_other_by_both_versions() {
    if !namespace::is_root() {
        return;
    }
    let (cluster, [a, near, far, socket]) = start([1, 1, 2, 2]).await;
    let (inside, inside_near, inside_far) =
        (attach(&cluster, a).await, attach(&cluster, near).await, attach(&cluster, far).await);
    let port = cluster.port(socket);
    assert_eq!(port.ipv6().map(IpAddr::from), Some(addresses(&cluster, socket)[1]));
    let shown = inside.ip(&["-6", "-o", "address", "show", "dev", "pn0"]);
    assert!(shown.contains(&format!("inet6 {}/64", addresses(&cluster, a)[1])), "{shown}");
    assert_eq!(shown.lines().count(), 1, "no address makes itself: {shown}");
    let routes = inside.ip(&["-6", "route"]);
    assert!(routes.contains("::/64 dev pn0") && !routes.contains("default"), "{routes}");
    for version in 0..2 {
        let [at, at_near, at_far] = [a, near, far].map(|container| addresses(&cluster, container)[version]);
        transfer(&inside, &inside_far, at_far, 80, 2_000_000).await;
        transfer(&inside_far, &inside, at, 81, 2_000_000).await;
        transfer(&inside, &inside_near, at_near, 82, 2_000_000).await;
        namespace::to_socket(&inside, &port, addresses(&cluster, socket)[version]).await;
        namespace::from_socket(&inside, &port, at, 83).await;
    }
    // As large as the network carries, and one octet more.
    for (to, headers) in addresses(&cluster, far).into_iter().zip([28, 48]) {
        let ping = |octets: usize| {
            inside.try_run("ping", &["-c1", "-W10", "-Mdo", &format!("-s{}", octets - headers), &to.to_string()])
        };
        let (full, more) = (ping(1390), ping(1391));
        assert!(full.0, "{}", full.1);
        assert!(!more.0 && more.1.contains("mtu") && more.1.contains("1390"), "{}", more.1);
    }
    for node in cluster.region.nodes() {
        for reason in [DropReason::NotIp, DropReason::ForgedSource, DropReason::UnknownDestination] {
            assert_eq!(
                node.backend.drops().get(reason),
                0,
                "{reason}: an interface asked for what networks do not carry"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_packets_of_ipv6_cross_interfaces_whole() {
    if !namespace::is_root() {
        return;
    }
    let (cluster, [a, b]) = start([1, 2]).await;
    let (from, to) = (attach(&cluster, a).await, attach(&cluster, b).await);
    let features = from.try_run("ethtool", &["-k", "pn0"]).1;
    for feature in ["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation"] {
        assert!(features.contains(&format!("{feature}: on")), "{features}");
    }
    for [from_address, to_address] in
        [0, 1].map(|version| [a, b].map(|container| addresses(&cluster, container)[version]))
    {
        // TSO: what the kernel hands over and is handed is larger than any packet.
        let before = [from.counts("tx"), to.counts("rx")];
        transfer(&from, &to, to_address, 80, 20_000_000).await;
        for (before, (namespace, way)) in before.into_iter().zip([(&from, "tx"), (&to, "rx")]) {
            let now = namespace.counts(way);
            let mean = (now.0 - before.0) / (now.1 - before.1);
            assert!(mean > 4 * 1390, "{to_address}: {way} packets of {mean} octets");
        }
        // USO: one send of thirty datagrams.
        let before = from.counts("tx").1;
        let (sender, receiver) = (
            from.run(move || UdpSocket::bind((from_address, 0)).unwrap()).await,
            to.run(move || UdpSocket::bind((to_address, 53)).unwrap()).await,
        );
        let work = tokio::task::spawn_blocking(move || {
            setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
            receiver.set_read_timeout(Some(LIMIT)).unwrap();
            let (whole, mut buffer) = (octets(29_500, 3), [0; 2000]);
            sender.send_to(&whole, (to_address, 53)).unwrap();
            for datagram in whole.chunks(1000) {
                let (len, _) = receiver.recv_from(&mut buffer).unwrap();
                assert!(buffer[..len] == *datagram);
            }
        });
        timeout(LIMIT, work).await.unwrap().unwrap();
        let packets = from.counts("tx").1 - before;
        assert!((1..=3).contains(&packets), "{to_address}: {packets} packets for thirty datagrams");
    }
}

/// Datagrams of every size there is to try: `PN_EVERY_SIZE=1` asks for each.
fn sizes(most: usize) -> impl Iterator<Item = usize> {
    let step = if std::env::var_os("PN_EVERY_SIZE").is_some() { 1 } else { 113 };
    (0..3000).chain((3000..most).step_by(step)).chain([most - 1, most])
}

/// The most octets of a datagram, by IPv4 and by IPv6.
const MOST: [usize; 2] = [65_507, 65_527];

#[tokio::test(flavor = "multi_thread")]
async fn udp_of_every_size_crosses_interfaces() {
    if !namespace::is_root() {
        return;
    }
    let (cluster, [a, b]) = start([1, 2]).await;
    let (inside_a, inside_b) = (attach(&cluster, a).await, attach(&cluster, b).await);
    for (version, most) in MOST.into_iter().enumerate() {
        let [from, to] = [a, b].map(|container| addresses(&cluster, container)[version]);
        let receiver = inside_b.run(move || UdpSocket::bind((to, 53)).unwrap()).await;
        let sender = inside_a.run(move || UdpSocket::bind((from, 54)).unwrap()).await;
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        let work = move || {
            let mut buffer = vec![0; 70_000];
            for len in sizes(most) {
                let datagram = octets(len, len as u64);
                sender.send_to(&datagram, (to, 53)).unwrap();
                let (received, _) = receiver.recv_from(&mut buffer).unwrap();
                assert!(buffer[..received] == datagram, "{len} octets to {to}");
            }
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_of_every_size_crosses_sockets() {
    let (cluster, [a, b]) = start([1, 2]).await;
    let (sender, receiver) = (cluster.port(a).bind_udp(54).unwrap(), cluster.port(b).bind_udp(53).unwrap());
    let mut buffer = vec![0; 70_000];
    for (version, most) in MOST.into_iter().enumerate() {
        let [from, to] = [a, b].map(|container| addresses(&cluster, container)[version]);
        for len in sizes(most) {
            let datagram = octets(len, len as u64);
            sender.send_to(&datagram, (to, 53)).await.unwrap();
            let (received, source) = timeout(LIMIT, receiver.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert!(buffer[..received] == datagram, "{len} octets to {to}");
            assert_eq!(source, SocketAddr::new(from, 54));
        }
        sender.send_to(&vec![0; most + 1], (to, 53)).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forgeries_by_ipv6_do_not_leave_and_others_addresses_are_not_reached() {
    let (mut cluster, [a, b]) = start([1, 2]).await;
    let plain = cluster.add(1, 1);
    cluster.apply().await;
    let (port, backend) = (cluster.port(a), &cluster.region.nodes()[0].backend);
    let [own, other] = [a, b].map(|container| cluster.port(container).ipv6().unwrap());
    let packet = |from: Ipv6Addr, to: Ipv6Addr, len: usize| {
        let mut packet = vec![0; 48 + len];
        UdpPacket::write_headers(&mut packet, (from.into(), 1), (to.into(), 2), len);
        packet
    };
    let with = |edits: &[(usize, u8)]| {
        let mut packet = packet(own, other, 24);
        edits.iter().for_each(|(at, value)| packet[*at] = *value);
        packet
    };
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    for (what, packet, reason) in [
        ("another's address", packet(other, other, 1), DropReason::ForgedSource),
        ("no address", packet(Ipv6Addr::UNSPECIFIED, everybody, 1), DropReason::ForgedSource),
        ("a link's own address", packet("fe80::1".parse().unwrap(), other, 1), DropReason::ForgedSource),
        ("to everybody", packet(own, everybody, 1), DropReason::UnknownDestination),
        ("to the node", packet(own, Ipv6Addr::LOCALHOST, 1), DropReason::UnknownDestination),
        ("one octet too many", packet(own, other, 1343), DropReason::TooBig),
        ("a solicitation", with(&[(6, 58), (40, 135)]), DropReason::NotIp),
        ("an advertisement", with(&[(6, 58), (40, 136)]), DropReason::NotIp),
        ("an advertisement of a router", with(&[(6, 58), (40, 134)]), DropReason::NotIp),
        (
            "an advertisement in a fragment",
            with(&[(6, 44), (40, 58), (41, 0), (42, 0), (43, 1), (48, 136)]),
            DropReason::NotIp,
        ),
        ("a way of its own", with(&[(6, 43)]), DropReason::NotIp),
        ("a home address", with(&[(6, 60)]), DropReason::NotIp),
    ] {
        let before = backend.drops().get(reason);
        port.send_raw(&packet).unwrap();
        let counted = async {
            while backend.drops().get(reason) == before {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(LIMIT, counted).await.unwrap_or_else(|_| panic!("{what} was not dropped as {reason}"));
    }
    let kind_of =
        async |port: &Port, to: IpAddr| timeout(LIMIT, port.connect((to, 80))).await.unwrap().unwrap_err().kind();
    assert_eq!(kind_of(&port, other.into()).await, std::io::ErrorKind::ConnectionRefused);
    let nobody = Ipv6Prefix::of_network(network(DUAL_STACK)).address([10, 240, 3, 77].into());
    for to in [nobody, "2001:db8::1".parse().unwrap()] {
        assert_eq!(kind_of(&port, to.into()).await, std::io::ErrorKind::HostUnreachable);
    }
    // A container of a network without has none, and reaches none.
    let plain = cluster.port(plain);
    assert_eq!(plain.ipv6(), None);
    assert_eq!(kind_of(&plain, other.into()).await, std::io::ErrorKind::HostUnreachable);
    let by_text = format!("[{other}]:81").parse::<SocketAddr>().unwrap().to_string();
    let listener = cluster.port(b).listen(81).unwrap();
    let (connected, accepted) = tokio::join!(port.connect(by_text), listener.accept());
    assert_eq!((connected.unwrap().peer_addr().unwrap().ip(), accepted.unwrap().1.ip()), (other.into(), own.into()));
    let echoed = probe::tcp_to(&port, &cluster.port(b), (other, 7).into(), b"by IPv6").await.unwrap();
    assert_eq!(echoed, b"by IPv6");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_behind_a_bridge_have_ipv6() {
    if !namespace::is_root() {
        return;
    }
    let (cluster, [a, b, c]) = start([1, 1, 2]).await;
    let (bridge, backend) = (Namespace::new(), &cluster.region.nodes()[0].backend);
    bridge.ip(&["link", "add", "br0", "type", "bridge"]);
    let tap = TapPort::in_netns(bridge.path(), "pn-tap".parse().unwrap());
    backend.attach_network(network(DUAL_STACK), tap).await.unwrap();
    bridge.ip(&["link", "set", "pn-tap", "master", "br0"]);
    bridge.ip(&["link", "set", "br0", "up"]);
    let far = attach(&cluster, c).await;
    let all = [a, b, c].map(|container| addresses(&cluster, container));
    let inside = [namespace::behind(&bridge, &all[0], &all), namespace::behind(&bridge, &all[1], &all)];
    for (from, to, target) in [(&inside[0], &far, 2), (&far, &inside[1], 1), (&inside[0], &inside[1], 1)] {
        for address in all[target] {
            transfer(from, to, address, 80, 2_000_000).await;
        }
    }
    // Who asks for a neighbour hears nothing from the network, and nobody else hears the question.
    let before = backend.drops().get(DropReason::NotIp);
    let nobody = Ipv6Prefix::of_network(network(DUAL_STACK)).address([10, 240, 3, 77].into());
    inside[0].run(move || drop(UdpSocket::bind("[::]:0").unwrap().send_to(b"who?", (nobody, 9)))).await;
    let counted = async {
        while backend.drops().get(DropReason::NotIp) == before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, counted).await.unwrap();
    assert!(far.ip(&["-6", "neighbour"]).is_empty());
}
