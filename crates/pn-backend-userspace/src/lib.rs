#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod backend;
mod batch;
mod driver;
mod fragment;
mod link;
pub mod loopback;
mod netstack;
pub mod offload;
pub mod port;
pub mod probe;
mod resolver;
mod spares;
mod sys;
pub mod tap;
pub mod tcp;
pub mod tun;
pub mod udp;
pub mod underlay;

pub use backend::{Builder, UserspaceBackend};
pub use loopback::{Loopback, LoopbackNode};
pub use port::{Port, ResolveError, Target};
pub use tap::{Direction, Recorder, UnderlayTap};
pub use tcp::{TcpListener, TcpStream};
pub use tun::{TapPort, TunPort};
pub use udp::UdpSocket;
