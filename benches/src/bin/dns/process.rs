//! Servers as processes: started, waited for, weighed and stopped.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use pn_dns::stub::{self, Reply};
use rustix::process::{Pid, Signal, kill_process};

use crate::peers::{Server, find};

/// How long a server may take to load.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that runs and answers.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    /// From its start, or for ours from the plan, to its first right answer; without a meaning for the echo.
    pub(crate) load_s: f64,
    child: Child,
    /// What is written to our server; closed to end it.
    pub(crate) pipe: Option<ChildStdin>,
    directory: PathBuf,
}

/// What a server is started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub(crate) zone_files: &'a Path,
    pub(crate) names: u32,
    pub(crate) threads: usize,
    /// The processor it stays on.
    pub(crate) processor: Option<usize>,
    /// A name of the zone, and its address.
    pub(crate) known: (&'a str, Ipv4Addr),
    /// Whether ours takes its names from a state that changes.
    pub(crate) with_state: bool,
}

impl Running {
    pub(crate) fn start(server: Server, setup: Setup<'_>) -> io::Result<Self> {
        let directory = setup.zone_files.join(server.name());
        fs::create_dir_all(&directory)?;
        let address = free_address()?;
        let mut command =
            server.command(&directory, setup.zone_files, address, setup.threads, setup.names, setup.with_state)?;
        if let Some(processor) = setup.processor {
            let mut pinned = Command::new(find("taskset").ok_or_else(|| io::Error::other("taskset is not installed"))?);
            pinned.args(["-c", &processor.to_string()]).arg(command.get_program()).args(command.get_args());
            command = pinned;
        }
        let is_ours = matches!(server, Server::PnDns | Server::Echo);
        let log = fs::File::create(directory.join("log"))?;
        command.stderr(log.try_clone()?);
        if is_ours {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command.stdin(Stdio::null()).stdout(log);
        }
        let begin = Instant::now();
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        let mut running = Self { server, address, load_s: f64::NAN, child, pipe, directory };
        if is_ours {
            let mut line = String::new();
            let said = running.child.stdout.take().map(BufReader::new);
            said.ok_or(io::ErrorKind::BrokenPipe)?.read_line(&mut line)?;
            running.load_s = line.trim().parse().map_err(|_| running.failed("said nothing"))?;
        }
        if server == Server::Echo {
            return Ok(running);
        }
        // Ours has said how long it took to load.
        let (begin, before) = if is_ours { (Instant::now(), running.load_s) } else { (begin, 0.0) };
        while running.ask(setup.known.0) != Some(Reply::Addresses(vec![setup.known.1])) {
            if let Some(status) = running.child.try_wait()? {
                return Err(running.failed(&format!("ended with {status}")));
            }
            if begin.elapsed() > PATIENCE {
                return Err(running.failed("did not answer"));
            }
        }
        running.load_s = before + begin.elapsed().as_secs_f64();
        Ok(running)
    }

    fn failed(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(3).collect();
        io::Error::other(format!("{} {what}: {}", self.server.name(), tail.join(" / ")))
    }

    /// Asks once, and waits a little for the reply.
    pub(crate) fn ask(&self, name: &str) -> Option<Reply> {
        let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
        socket.connect(self.address).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
        socket.send(&stub::query(name, 7).ok()?).ok()?;
        let mut reply = [0; 1500];
        let len = socket.recv(&mut reply).ok()?;
        stub::addresses(7, name, &reply[..len]).ok()
    }

    /// Returns the memory of the server and what it started, in megabytes; what they share counts once.
    pub(crate) fn memory_mb(&self) -> f64 {
        let field = |pid: u32, file: &str, field: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
            let line = text.lines().find(|line| line.starts_with(field))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        };
        let of = |pid| field(pid, "smaps_rollup", "Pss:").or_else(|| field(pid, "status", "VmRSS:"));
        self.processes().into_iter().filter_map(of).sum::<f64>() / 1024.0
    }

    /// Returns the server's process and those that it started.
    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let mut at = 0;
        while let Some(pid) = found.get(at).copied() {
            at += 1;
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn signal(pids: &[u32], signal: Signal) {
        for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let pids = self.processes();
        Self::signal(&pids[..1], Signal::TERM);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            Self::signal(&pids, Signal::KILL);
        }
        // Whoever was killed is reaped.
        let _ = self.child.wait();
    }
}

/// Receive buffers of one size for all servers, as long as it is held.
///
/// Where the machine pauses a server, queries wait in its socket's buffer and are answered late, or are lost where it is full; a
/// server that loses them has the better p99 as long as they are fewer than a hundredth.
#[derive(Debug)]
pub(crate) struct LevelBuffers(Child);

impl LevelBuffers {
    /// What sockets get that ask for nothing, in octets: what our server asks for.
    const SIZE: u32 = 4 << 20;
    const SETTING: &str = "/proc/sys/net/core/rmem_default";

    /// Levels them; `None` where we may not. It is put back by a process of its own, however this one ends.
    pub(crate) fn level() -> io::Result<Option<Self>> {
        let (before, setting, size) = (fs::read_to_string(Self::SETTING)?, Self::SETTING, Self::SIZE);
        let script = format!("echo {size} >{setting} && echo && read end; echo {} >{setting}", before.trim());
        let mut keeper = Command::new("sh");
        keeper.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = keeper.process_group(0).spawn().map(Self)?;
        let mut said = String::new();
        keeper.0.stdout.take().map(BufReader::new).ok_or(io::ErrorKind::BrokenPipe)?.read_line(&mut said)?;
        Ok((!said.is_empty()).then_some(keeper))
    }
}

impl Drop for LevelBuffers {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Whether or not it could, nothing more can be done.
        let _ = self.0.wait();
    }
}

/// Returns an address with a port that is free for UDP and TCP at the moment.
fn free_address() -> io::Result<SocketAddr> {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let address = tcp.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}
