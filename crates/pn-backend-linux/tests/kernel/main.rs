//! Everything that needs a kernel: networks between namespaces that are hosts.

mod errors;
mod hostile;
mod hosts;
mod keys;
mod laws;
mod matrix;
mod mtu;
mod reach;
mod whole;
mod wireguard;
