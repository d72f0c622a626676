//! Benchmarks of private networks; see `benches/`.
