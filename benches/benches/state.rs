//! What changes and plans cost.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pn_core::{
    AppId, Change, ContainerId, ContainerType, Limits, NodeId, NodePlanner, Plan, Region, Slot, State, Timestamp,
};

fn state(c: &mut Criterion) {
    let state = pn_benches::network(50, 50);
    let node = NodeId::from_u128(1);
    let container = ContainerId::from_u128(1000);
    let slot = Slot::new(AppId::from_u128(1), ContainerType::web(), 1).expect("indexes from 1");
    let stopped = || {
        let mut state = state.clone();
        let planner = NodePlanner::new(&state, node);
        let stopped = state.apply(Timestamp::ZERO, Change::Fail(ContainerId::from_u128(1)));
        assert!(stopped.is_ok());
        (state, planner)
    };
    c.bench_function("state/start and plan, 50 containers on 50 nodes", |b| {
        b.iter_batched(
            stopped,
            |(mut state, mut planner)| {
                let started = state.apply(Timestamp::ZERO, Change::Start { container, slot, node });
                black_box(planner.update(&state));
                (started, state, planner)
            },
            BatchSize::SmallInput,
        );
    });
    c.bench_function("state/records and load", |b| {
        b.iter(|| State::load(Region::default(), state.generation(), state.records()));
    });
    let (plan, empty) = (state.plan(), Plan::default());
    c.bench_function("plan/changes since nothing", |b| b.iter(|| black_box(&plan).changes_since(&empty)));
    c.bench_function("plan/check", |b| b.iter(|| black_box(&plan).check(&Limits::default())));
}

criterion_group!(benches, state);
criterion_main!(benches);
