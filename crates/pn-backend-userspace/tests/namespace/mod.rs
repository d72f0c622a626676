//! Network namespaces for tests that need root.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::print_stdout, reason = "what is left out is said")]
#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use pn_backend_userspace::Port;
use pn_core::MacAddr;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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

    /// Runs a program inside; returns whether it succeeded, and what it said.
    pub(crate) fn try_run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let inside = [&["netns", "exec", &self.name, program], arguments].concat();
        let output = Command::new("ip").args(inside).output().expect("iproute2 is installed");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Returns the octets and packets that crossed the container's interface one way (`rx`, `tx`).
    pub(crate) fn counts(&self, way: &str) -> (u64, u64) {
        let of = |what: &str| {
            let (_, said) = self.try_run("cat", &[&format!("/sys/class/net/pn0/statistics/{way}_{what}")]);
            said.trim().parse().unwrap()
        };
        (of("bytes"), of("packets"))
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
pub(crate) async fn transfer(from: &Namespace, to: &Namespace, address: impl Into<IpAddr>, port: u16, len: usize) {
    let address = address.into();
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

/// From the interface to a socket in this process.
pub(crate) async fn to_socket(inside: &Namespace, port: &Port, address: impl Into<IpAddr>) {
    let listener = port.listen(0).unwrap();
    let to = SocketAddr::new(address.into(), listener.local_addr().port());
    let sender = inside.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.write_all(&octets(500_000, 1)).unwrap();
    });
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut received = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == octets(500_000, 1), "{}", received.len());
    sender.join().unwrap();
}

/// From a socket in this process to the interface.
pub(crate) async fn from_socket(inside: &Namespace, port: &Port, at: impl Into<IpAddr>, number: u16) {
    let at = SocketAddr::new(at.into(), number);
    let listener = inside.run(move || TcpListener::bind(at).unwrap()).await;
    let receiver = inside.spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    let mut stream = timeout(PATIENCE, port.connect(at)).await.unwrap().unwrap();
    stream.write_all(&octets(500_000, 2)).await.unwrap();
    drop(stream);
    let received = tokio::task::spawn_blocking(|| receiver.join().unwrap()).await.unwrap();
    assert!(received == octets(500_000, 2), "{}", received.len());
}

/// Makes a namespace that is a port of a bridge, as a container's is, with static neighbours: all others of a network, each
/// with its addresses, that of IPv4 first.
pub(crate) fn behind<const N: usize>(bridge: &Namespace, own: &[IpAddr; N], all: &[[IpAddr; N]]) -> Namespace {
    let mac = |addresses: &[IpAddr; N]| match addresses[0] {
        IpAddr::V4(address) => MacAddr::of_ipv4(address).to_string(),
        IpAddr::V6(address) => panic!("{address} is not the first"),
    };
    let inside = Namespace::new();
    let port = format!("v{}", all.iter().position(|other| other == own).unwrap());
    bridge.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &inside.name]);
    bridge.ip(&["link", "set", &port, "master", "br0", "up"]);
    inside.ip(&["link", "set", "eth0", "addrgenmode", "none", "address", &mac(own), "mtu", "1390", "up"]);
    for address in own {
        let (prefix, how) = if address.is_ipv4() { (22, &[][..]) } else { (64, &["nodad"][..]) };
        inside.ip(&[&["address", "add", &format!("{address}/{prefix}"), "dev", "eth0"], how].concat());
    }
    for other in all.iter().filter(|other| *other != own) {
        for address in other {
            let neighbour = [&address.to_string(), "lladdr", &mac(other), "dev", "eth0", "nud", "permanent"];
            inside.ip(&[&["neighbour", "add"], &neighbour[..]].concat());
        }
    }
    inside
}

const PATIENCE: Duration = Duration::from_secs(30);
