//! How fast names are formatted and parsed.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pn_core::{AppId, Name, NetworkId, Slot};

fn names(c: &mut Criterion) {
    let (network, app) = (NetworkId::from_u128(u128::MAX / 3), AppId::from_u128(u128::MAX / 7));
    let slot = Slot::new(app, "my-app-backend".parse().expect("a type"), 12).expect("indexes from 1");
    let name = Name::container(network, &slot);
    let text = name.to_string();
    c.bench_function("name/encode", |b| {
        let mut buffer = [0; Name::MAX_LEN];
        b.iter(|| black_box(black_box(&name).encode(&mut buffer)).len());
    });
    c.bench_function("name/to_string", |b| b.iter(|| black_box(&name).to_string()));
    c.bench_function("name/parse", |b| b.iter(|| black_box(&text).parse::<Name>()));
    c.bench_function("name/from_labels", |b| {
        let labels: Vec<&[u8]> = text.split('.').map(str::as_bytes).collect();
        b.iter(|| Name::from_labels(black_box(&labels).iter().copied()));
    });
}

criterion_group!(benches, names);
criterion_main!(benches);
