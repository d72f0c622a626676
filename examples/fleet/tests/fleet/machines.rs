//! Machines as network namespaces, joined by a bridge, with a real etcd and the real programs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// How long anything may take that is waited for: the machines that run this are slow and busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Says whether tests that need root can run; where they must, it is a failure that they cannot.
pub(crate) fn is_root() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if !root {
        assert!(std::env::var_os("PN_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
        println!("ignored: network namespaces need root");
    }
    root
}

/// Keeps tests apart that load the machine with all they have or that look at the clock.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A network of machines that goes with the value.
#[derive(Debug)]
pub(crate) struct Fleet {
    prefix: String,
    pub(crate) dir: PathBuf,
    namespaces: Vec<String>,
}

impl Fleet {
    /// Makes a bridge for machines to be joined to.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("pnf{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&dir).unwrap();
        let mut fleet = Self { prefix, dir, namespaces: Vec::new() };
        let wire = fleet.namespace("wire");
        ip(&["-n", &wire, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &wire, "link", "set", "br0", "up"]);
        // Bridged frames are not to cross the filters of a machine.
        let no_filter = "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables";
        let _ = Command::new("ip").args(["netns", "exec", &wire, "sh", "-c", no_filter]).output();
        fleet
    }

    /// Counts the namespaces made so far.
    pub(crate) fn count(&self) -> usize {
        self.namespaces.len()
    }

    /// Counts the network namespaces of this fleet that there are.
    pub(crate) fn there(&self) -> usize {
        let listed = succeed(Command::new("ip").args(["netns", "list"]));
        listed.lines().filter(|line| line.starts_with(&format!("{}-", self.prefix))).count()
    }

    /// Makes an empty network namespace and returns its name.
    pub(crate) fn namespace(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.prefix);
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        self.namespaces.push(name.clone());
        name
    }

    /// Makes a machine on the bridge, with the address 10.9.0.`n`.
    pub(crate) fn machine(&mut self, name: &str, n: u8) -> Machine {
        let namespace = self.namespace(name);
        let (wire, end) = (format!("{}-wire", self.prefix), format!("m{n}"));
        ip(&["-n", &wire, "link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["-n", &wire, "link", "set", &end, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("10.9.0.{n}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        Machine { namespace, address: Ipv4Addr::new(10, 9, 0, n), port: end, wire }
    }

    /// Makes the namespace of a container, whose resolver is its network's.
    pub(crate) fn container(&mut self, name: &str) -> Container {
        let namespace = self.namespace(name);
        let etc = Path::new("/etc/netns").join(&namespace);
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("resolv.conf"), "nameserver 169.254.53.53\n").unwrap();
        Container { namespace }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let pids = Command::new("ip").args(["netns", "pids", namespace]).output();
            for pid in String::from_utf8_lossy(&pids.map(|output| output.stdout).unwrap_or_default()).lines() {
                let _ = Command::new("kill").args(["-9", pid]).output();
            }
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
            let _ = fs::remove_dir_all(Path::new("/etc/netns").join(namespace));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A machine: a network namespace with an address on the bridge.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    port: String,
    wire: String,
}

impl Machine {
    /// Prepares a command on the machine. What it mounts is mounted for all, as by a service, and not gone with it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program);
        command
    }

    /// Does something on the machine, in this process.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        inside(&self.namespace, act)
    }

    /// Pulls or plugs the machine's cable.
    pub(crate) fn cable(&self, state: &str) {
        ip(&["-n", &self.wire, "link", "set", &self.port, state]);
    }
}

/// A container: a network namespace that an agent puts an interface into.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) namespace: String,
}

impl Container {
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.namespace)
    }

    /// Prepares a command in the container, whose resolver is its network's.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// Does something in the container, in this process.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        inside(&self.namespace, act)
    }

    /// Returns whether an agent has given it an interface.
    pub(crate) fn has_interface(&self) -> bool {
        self.inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("pn0:"))
    }

    /// Serves a text by HTTP on a port, with BusyBox.
    pub(crate) fn serve(&self, port: u16, text: &str, dir: &Path) -> Running {
        let root = dir.join(format!("{}-{port}", self.namespace));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("index.html"), text).unwrap();
        let mut server = self.command("busybox");
        server.args(["httpd", "-f", "-p", &port.to_string(), "-h"]).arg(root);
        Running::start(&mut server)
    }

    /// Fetches a URL, and returns what came or what went wrong.
    pub(crate) fn fetch(&self, url: &str) -> Result<String, String> {
        let output = self.command("curl").args(["-sS", "--max-time", "1", url]).output().unwrap();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// A program that runs until the value goes.
#[derive(Debug)]
pub(crate) struct Running(pub Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Asks the program to end, and waits until it has.
    pub(crate) fn terminate(mut self) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
        let status = wait_for("it ends", || self.0.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
        assert!(status.success(), "{status}");
    }

    /// Kills the program as nothing can refuse.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something is so, and says what it was where it does not become so.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match probe() {
            Ok(found) => return found,
            Err(why) if begin.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Runs a program that must succeed, and returns what it printed.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// Runs a program that must fail with a status, and returns what it complained about.
#[track_caller]
pub(crate) fn fail(command: &mut Command, status: i32) -> String {
    let output: Output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert_eq!(output.status.code(), Some(status), "{command:?}: {} {}", text(&output.stdout), text(&output.stderr));
    assert!(output.stdout.is_empty(), "{command:?}: an error belongs on standard error: {}", text(&output.stdout));
    text(&output.stderr)
}

pub(crate) fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// Does something on a thread that is in a network namespace.
fn inside<T: Send>(namespace: &str, act: impl FnOnce() -> T + Send) -> T {
    let entered = || {
        setns(File::open(Path::new("/run/netns").join(namespace)).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        act()
    };
    let done = std::thread::scope(|scope| scope.spawn(entered).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &[&str]) {
    succeed(Command::new("ip").args(arguments));
}
