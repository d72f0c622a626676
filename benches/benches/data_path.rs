//! What a container's packet costs on its way: wrapping and sealing, opening and every check.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pn_core::{ContainerId, NetworkId, NodeId};
use pn_overlay::packet::UdpPacket;
use pn_overlay::{Egress, Outbox, PeerConfig, PrivateKey, Tunnel, Vtep};

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

criterion_group!(benches, data_path);
criterion_main!(benches);
