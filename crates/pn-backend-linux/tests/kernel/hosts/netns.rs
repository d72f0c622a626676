//! Namespaces, and commands that run in them.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Says whether the tests can run: they need root. Where they must, a machine without it fails.
pub(crate) fn is_root() -> bool {
    let is_root = sh("id -u").trim() == "0";
    if !is_root {
        assert!(std::env::var("PN_REQUIRE_ROOT").as_deref() != Ok("1"), "root is required, and this is not root");
        println!("ignored: network namespaces need root");
    }
    is_root
}

/// Runs a command line and returns what it said.
pub(crate) fn sh(line: &str) -> String {
    let output = run(line);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Runs a command line, whatever comes of it.
pub(crate) fn run(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().unwrap()
}

/// Returns whether a command line succeeds.
pub(crate) fn works(line: &str) -> bool {
    run(line).status.success()
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not happen in 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A namespace that ends with this.
#[derive(Debug)]
pub(crate) struct Netns(pub(crate) String);

impl Netns {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("linux-{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.0))
    }

    /// Runs a command line in it.
    pub(crate) fn sh(&self, line: &str) -> String {
        sh(&self.line(line))
    }

    pub(crate) fn works(&self, line: &str) -> bool {
        works(&self.line(line))
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        run(&self.line(line))
    }

    fn line(&self, line: &str) -> String {
        format!("ip netns exec {} sh -c '{}'", self.0, line.replace('\'', r"'\''"))
    }

    /// Starts a command in it, which ends with what is returned.
    pub(crate) fn spawn(&self, line: &str) -> Running {
        let line = format!("exec ip netns exec {} {line}", self.0);
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.0));
    }
}

/// A command that is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Returns a folder for the namespaces of a node.
pub(crate) fn directory() -> PathBuf {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/run/linux-{}-{n}", std::process::id()))
}
