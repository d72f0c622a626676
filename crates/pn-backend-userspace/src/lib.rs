#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod backend;
mod driver;
mod fragment;
pub mod loopback;
mod netstack;
pub mod port;
pub mod probe;
mod resolver;
pub mod tap;
pub mod tcp;
pub mod udp;

pub use backend::{Builder, UserspaceBackend};
pub use loopback::{Loopback, LoopbackNode};
pub use port::{Port, ResolveError, Target};
pub use tap::{Direction, Recorder, UnderlayTap};
pub use tcp::{TcpListener, TcpStream};
pub use udp::UdpSocket;
