#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod backend;
mod carrier;
mod compare;
mod diff;
mod encryptor;
mod execute;
mod firewall;
mod frame;
mod kernel;
mod lower;
mod memory;
mod message;
mod netlink;
mod netns;
mod observe;
mod probe;
mod report;
mod screen;
mod sys;
mod tunnel;
mod vtep;
mod wireguard;
mod worker;

pub use backend::{Builder, LinuxBackend, Status, TunnelKind};
#[cfg(fuzzing)]
pub use frame::there_and_back;
