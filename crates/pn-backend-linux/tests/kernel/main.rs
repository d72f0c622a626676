//! Everything that needs a kernel: networks between namespaces that are hosts.

mod breakages;
mod discovery;
mod errors;
mod hostile;
mod hosts;
mod keys;
mod laws;
mod limits;
mod matrix;
mod missing;
mod mixed;
mod mtu;
mod objects;
mod reach;
mod repairs;
mod whole;
mod wireguard;
