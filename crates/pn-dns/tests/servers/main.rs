//! Publishers and transfers beside the name servers that people run: BIND, Knot, NSD and dnsmasq, each a child process on
//! loopback in a directory of its own.

#![cfg(all(feature = "files", feature = "server", feature = "dynamic-update", feature = "transfer"))]

mod conformance;
mod dynamic_update;
mod files;
mod model;
mod support;
mod transfer;
