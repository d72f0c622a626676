//! Programs that use private networks; see `examples/private-network`.
