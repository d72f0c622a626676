//! `pn` and `pn-agent` on several machines: real programs, a real etcd, and network namespaces for machines and containers.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests fail where something is missing, and say what they did"
)]

mod bad_input;
mod churn;
mod everyday;
mod interfaces;
mod killed;
mod lost;
mod machines;
mod measure;
mod platform;
mod probe;
mod review;
mod stream;
mod waf;
