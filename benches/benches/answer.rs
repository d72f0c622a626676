//! How fast DNS queries are answered, on one core and without sockets.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pn_core::{AppId, ContainerType, Name, NetworkId, Slot, Transport};
use pn_dns::{View, Zone, answer, stub};

fn answers(c: &mut Criterion) {
    let zones = pn_benches::network(1, 1000).plan().zones();
    let network = NetworkId::from_u128(1);
    let zone = Zone::new(Arc::clone(&zones.zones[&network]), zones.serial());
    let app = AppId::from_u128(1);
    let slot = |index| Slot::new(app, ContainerType::web(), index).expect("indexes from 1");
    let mut group = c.benchmark_group("answer");
    group.throughput(Throughput::Elements(1));
    for (what, name) in [
        ("one address", Name::container(network, &slot(500))),
        ("1000 addresses, truncated", Name::app(network, app)),
        ("NXDOMAIN", Name::container(network, &slot(1001))),
    ] {
        let query = stub::query(&name.to_string(), 7).expect("a name");
        let mut rng = fastrand::Rng::with_seed(1);
        group.bench_function(what, |b| {
            b.iter(|| answer(View::of(&zone), Transport::Udp, black_box(&query), &mut rng));
        });
    }
}

criterion_group!(benches, answers);
criterion_main!(benches);
