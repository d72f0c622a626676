//! Network namespaces for tests that need root.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::print_stdout, reason = "what is left out is said")]
#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::timeout;

/// Tells whether the tests of a file can run here, and says why not.
pub(crate) fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    println!("ignored: TUN interfaces and network namespaces need root");
    assert!(std::env::var_os("PN_REQUIRE_ROOT").is_none_or(|value| value != "1"), "PN_REQUIRE_ROOT=1");
    false
}

/// A network namespace that goes with this value.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tun-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        Self { name }
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs something on a thread inside.
    pub(crate) fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let namespace = File::open(self.path()).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// Runs something inside, without blocking the runtime.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = self.spawn(work);
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap()
    }

    /// Returns what `ip` says inside.
    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.name], arguments].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.name]);
    }
}

pub(crate) fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Some octets that do not repeat soon.
pub(crate) fn octets(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut octets = Vec::with_capacity(len + 8);
    while octets.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        octets.extend(state.to_le_bytes());
    }
    octets.truncate(len);
    octets
}

/// Sends octets from one namespace to the other and checks what arrives.
pub(crate) async fn transfer(from: &Namespace, to: &Namespace, address: Ipv4Addr, port: u16, len: usize) {
    let listener = to.run(move || TcpListener::bind((address, port)).unwrap()).await;
    let sent = octets(len, port.into());
    let expected = sent.clone();
    let receiver = to.spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&(address, port).into(), PATIENCE).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let joined = tokio::task::spawn_blocking(|| (sender.join().unwrap(), receiver.join().unwrap()));
    let ((), received) = timeout(PATIENCE, joined).await.expect("the transfer takes seconds").unwrap();
    assert!(received == expected, "{} octets arrived of {len}, or others", received.len());
}

const PATIENCE: Duration = Duration::from_secs(30);
