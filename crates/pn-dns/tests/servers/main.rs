//! Publishers and transfers beside the name servers that people run: BIND, Knot, NSD and dnsmasq, each a child process on
//! loopback in a directory of its own.

#![expect(clippy::print_stdout, reason = "a test says what it leaves out, and how long a change took")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![cfg(all(feature = "files", feature = "server", feature = "dynamic-update", feature = "transfer"))]

mod conformance;
mod dynamic_update;
mod files;
mod model;
mod support;
mod transfer;
