//! Namespaces, processes in them, and the clock of the machine's processors.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// The namespaces of the two nodes and of a container on each; they begin with what tells runs apart.
#[derive(Debug)]
pub(crate) struct Namespaces {
    prefix: String,
}

/// Offloads of the link between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Link {
    /// The veth pair's own: packets of 64 kB cross in one piece.
    Offloads,
    /// None: frames are what crosses a cable.
    Segmented,
    /// As a network card: sent in frames, coalesced on receipt.
    Card,
}

impl Namespaces {
    pub(crate) fn new(link: Link) -> Result<Self, Error> {
        let namespaces = Self { prefix: format!("tun-bench-{}", std::process::id()) };
        for name in ["node0", "node1", "cont0", "cont1"] {
            run(&["ip", "netns", "add", &namespaces.name(name)])?;
            // A socket that begins with bbr is paced for life, whatever it is given then; every kernel lets a namespace have reno.
            namespaces.sh(name, "ip link set lo up; echo reno >/proc/sys/net/ipv4/tcp_congestion_control")?;
        }
        let (a, b) = (namespaces.name("node0"), namespaces.name("node1"));
        run(&["ip", "link", "add", "u0", "netns", &a, "type", "veth", "peer", "name", "u1", "netns", &b])?;
        for n in 0..2 {
            let (node, host) = (format!("node{n}"), n + 1);
            namespaces.sh(&node, &format!("ip address add 10.0.99.{host}/24 dev u{n}; ip link set u{n} up"))?;
            let off = "tso off gso off tx-udp-segmentation off";
            match link {
                Link::Offloads => {}
                Link::Segmented => namespaces.sh(&node, &format!("ethtool -K u{n} {off} gro off"))?,
                Link::Card => namespaces.sh(&node, &format!("ethtool -K u{n} {off}; ethtool -K u{n} gro on"))?,
            }
        }
        Ok(namespaces)
    }

    pub(crate) fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    /// Makes a command that runs inside.
    pub(crate) fn command(&self, short: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(short), program]);
        command
    }

    /// Runs a shell command inside.
    pub(crate) fn sh(&self, short: &str, script: &str) -> Result<(), Error> {
        let output = self.command(short, "sh").args(["-ec", script]).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in ["node0", "node1", "cont0", "cont1"] {
            let _: Result<(), Error> = run(&["ip", "netns", "delete", &self.name(name)]);
        }
    }
}

fn run(words: &[&str]) -> Result<(), Error> {
    let output = Command::new(words[0]).args(&words[1..]).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn start(mut command: Command) -> Result<Self, Error> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self(child))
    }

    /// Starts a process that says when it is ready.
    pub(crate) fn start_and_wait(mut command: Command) -> Result<Self, Error> {
        let mut daemon = Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let mut said = String::new();
        if let Some(stdout) = daemon.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        if said.trim() == "ready" { Ok(daemon) } else { Err(format!("a node said {said:?} instead of ready").into()) }
    }

    /// Returns how much memory it uses, in MB: of the process itself, which `ip netns exec` becomes.
    pub(crate) fn rss_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kb.unwrap_or(0.0) / 1024.0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ours end with their standard input and say what they dropped; the others are told.
        drop(self.0.stdin.take());
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.0.wait();
    }
}

/// Returns how long the machine's processors were busy since it started, in seconds.
pub(crate) fn busy() -> Result<f64, Error> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let words = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    let ticks: Vec<f64> = words.map(str::parse).collect::<Result<_, _>>()?;
    // All but idle, waiting for disks, and what others of the host took.
    let busy: f64 = ticks.iter().enumerate().filter(|(n, _)| ![3, 4, 7].contains(n)).map(|(_, ticks)| ticks).sum();
    Ok(busy / 100.0)
}

/// Waits until something is so.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Error> {
    let end = Instant::now() + Duration::from_secs(15);
    while !is_so() {
        if Instant::now() > end {
            return Err(format!("{what} did not happen within 15 s").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
