//! What a container's packet costs on its way: wrapping and sealing, opening and every check.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pn_core::{ContainerId, NetworkId, NodeId};
use pn_overlay::packet::{IpPacket, UdpPacket};
use pn_overlay::{Admitted, Egress, Outbox, PeerConfig, PrivateKey, Routed, Tunnel, Vtep};

const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1),
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 2),
];

/// Two nodes' tunnels with a session between them.
fn tunnels() -> [Tunnel; 2] {
    let mut tunnels = [1, 2].map(|n| Tunnel::new(PrivateKey::from_bytes([n; 32])));
    let keys = [tunnels[0].public_key(), tunnels[1].public_key()];
    for (n, tunnel) in tunnels.iter_mut().enumerate() {
        let other = 1 - n;
        tunnel.set_peer(PeerConfig {
            node: NodeId::from_u128(other as u128 + 1),
            public_key: keys[other],
            underlay: ADDRESSES[other],
            tunnel_address: [100, 64, 0, other as u8 + 1].into(),
        });
    }
    let (mut out, mut back) = (Outbox::new(), Outbox::new());
    let mut first = vec![0; 28];
    UdpPacket::write_headers(&mut first, ([100, 64, 0, 1].into(), 1), ([100, 64, 0, 2].into(), 4789), 0);
    tunnels[0].seal([100, 64, 0, 2].into(), &first, &mut out).expect("a route");
    for _ in 0..2 {
        for (_, datagram) in out.iter() {
            tunnels[1].open(ADDRESSES[0], datagram, &mut back).expect("authentic");
        }
        out.clear();
        for (_, datagram) in back.iter() {
            tunnels[0].open(ADDRESSES[1], datagram, &mut out).expect("authentic");
        }
        back.clear();
    }
    tunnels
}

fn data_path(c: &mut Criterion) {
    let state = pn_benches::network(2, 100);
    let [here, there] = [1, 2].map(|n| Vtep::new(state.node_plan(NodeId::from_u128(n))));
    let network = NetworkId::from_u128(1);
    let [sender, mut receiver] = tunnels();
    let mut group = c.benchmark_group("data path");
    group.throughput(Throughput::Elements(1));
    for len in [64, 1390] {
        let mut packet = vec![7; len];
        UdpPacket::write_headers(&mut packet, ([10, 240, 0, 1].into(), 1), ([10, 240, 0, 2].into(), 2), len - 28);
        let (mut buffer, mut out, mut ignored) = (Vec::new(), Outbox::new(), Outbox::new());
        group.bench_function(format!("wrap and seal {len} octets"), |b| {
            b.iter(|| {
                let egress = here.egress(network, ContainerId::from_u128(1), black_box(&packet), &mut buffer);
                let Ok(Egress::Tunnel(via, wrapped)) = egress else { unreachable!("the other node has it") };
                out.clear();
                sender.seal(via, wrapped, &mut out).expect("a route");
            });
        });
        group.bench_function(format!("open and check {len} octets"), |b| {
            let mut seal = || {
                let egress = here.egress(network, ContainerId::from_u128(1), &packet, &mut buffer);
                let Ok(Egress::Tunnel(via, wrapped)) = egress else { unreachable!("the other node has it") };
                out.clear();
                sender.seal(via, wrapped, &mut out).expect("a route");
                out.iter().next().map(|(_, datagram)| datagram.to_vec()).expect("sealed")
            };
            let mut open = |datagram: Vec<u8>| {
                let opened = receiver.open(ADDRESSES[0], &datagram, &mut ignored).expect("authentic");
                let (node, packet) = opened.expect("a packet");
                there.ingress(node, &packet).expect("honest").packet.octets().len()
            };
            b.iter_batched(&mut seal, &mut open, BatchSize::SmallInput);
        });
    }
}

/// What it costs to say where packets go and whom they are for, where one container speaks to several in turn.
fn ways(c: &mut Criterion) {
    let state = pn_benches::network(2, 100);
    let [here, there] = [1, 2].map(|n| Vtep::new(state.node_plan(NodeId::from_u128(n))));
    let (network, one) = (NetworkId::from_u128(1), ContainerId::from_u128(1));
    let packet = |from: u8, to: u8| {
        let mut packet = vec![7; 64];
        let [from, to] = [from, to].map(|n| (IpAddr::from([10, 240, 0, n]), 1));
        UdpPacket::write_headers(&mut packet, from, to, 64 - 28);
        packet
    };
    let others = (2..=16).step_by(2);
    let sent: Vec<_> = others.clone().map(|to| packet(1, to)).collect();
    let received: Vec<_> = others
        .map(|from| {
            let (packet, mut buffer) = (packet(from, 1), Vec::new());
            let egress = there.egress(network, ContainerId::from_u128(from.into()), &packet, &mut buffer);
            assert!(matches!(egress, Ok(Egress::Tunnel(..))), "the other node has it");
            buffer
        })
        .collect();
    let mut group = c.benchmark_group("ways");
    group.throughput(Throughput::Elements(1));
    for count in [1, 8] {
        let sent: Vec<_> = sent[..count].iter().map(|packet| IpPacket::parse(packet).expect("a packet")).collect();
        let received: Vec<_> =
            received[..count].iter().map(|packet| UdpPacket::parse(packet).expect("a packet")).collect();
        let (mut sent, mut received) = (sent.iter().cycle(), received.iter().cycle());
        let (mut routed, mut admitted) = (Routed::default(), Admitted::default());
        group.bench_function(format!("to {count}, looked up"), |b| {
            b.iter(|| here.route(network, one, black_box(sent.next().expect("endless")), 64));
        });
        group.bench_function(format!("to {count}, remembered"), |b| {
            b.iter(|| here.route_after(network, one, black_box(sent.next().expect("endless")), 64, &mut routed));
        });
        let from = NodeId::from_u128(2);
        group.bench_function(format!("from {count}, looked up"), |b| {
            b.iter(|| here.ingress(from, black_box(received.next().expect("endless"))).is_ok());
        });
        group.bench_function(format!("from {count}, remembered"), |b| {
            b.iter(|| here.ingress_after(from, black_box(received.next().expect("endless")), &mut admitted).is_ok());
        });
    }
}

criterion_group!(benches, data_path, ways);
criterion_main!(benches);
