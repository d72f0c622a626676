//! Publishers and transfers beside the name servers that people run: BIND, Knot, NSD and dnsmasq, each a child process on
//! loopback in a directory of its own.

#![cfg(all(feature = "files", feature = "server"))]

mod conformance;
mod files;
mod support;
