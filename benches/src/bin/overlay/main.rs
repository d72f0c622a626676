//! Our data planes beside their peers: between two namespaces on this machine, interleaved over rounds, medians and ratios.
//!
//! It needs root, iproute2, iputils-ping, ethtool and iperf3. Peers are measured where they are installed.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program, and this is what it says")]

mod load;
mod netns;
mod node;
mod systems;
mod table;

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::{Parser, Subcommand};
use netns::{Link, Namespaces};
use node::Role;
use pn_backend_linux::TunnelKind;
use serde_json::Value;
use systems::{Running, System};
use table::Figures;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Measures data planes between two nodes.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Measure these systems alone, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Measure these figures alone: tcp1, tcp4, udp64, lossless, rtt; or sizes, which sends a datagram of every size there is
    /// and compares it; or rekey, which waits until sessions are about to be renewed, sends 10 GB and compares them.
    #[arg(long, value_delimiter = ',', default_value = "tcp1,tcp4,udp64,lossless,rtt")]
    figures: Vec<String>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each figure is measured.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// What the link between the nodes does for them.
    #[arg(long, value_enum, default_value = "offloads")]
    link: Link,
    /// The congestion control of TCP: Linux's default, whatever this machine's is, so that machines can be compared.
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// How many threads carry packets in each node of ours that runs in user space.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What this program also is, in processes of their own.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Part {
    /// One node of ours.
    Node {
        n: u16,
        #[arg(long)]
        namespace: Option<PathBuf>,
        #[arg(long)]
        client_seconds: Option<u64>,
        #[arg(long)]
        behind_vxlan: bool,
        #[arg(long)]
        kernel: bool,
        #[arg(long, default_value_t = 0)]
        idle: u16,
        #[arg(long, default_value = "1")]
        threads: NonZeroUsize,
    },
    /// Counts datagrams until there are none any more.
    Sink { port: u16, seconds: f64 },
    /// Sends datagrams.
    Blast { to: SocketAddrV4, seconds: f64, rate: Option<f64> },
    /// Echoes octets.
    Echo { port: u16 },
    /// Receives a pattern and compares it.
    Verify { port: u16 },
    /// Sends a pattern.
    Pour { to: SocketAddrV4, chunks: u64 },
    /// Receives datagrams of every size and compares them.
    Measure { port: u16 },
    /// Sends datagrams of every size.
    Sizes { to: SocketAddrV4 },
    /// Exchanges octets.
    Ping { to: SocketAddrV4, seconds: f64 },
}

fn main() -> Result<(), Error> {
    let options = Options::parse();
    let Some(part) = &options.part else {
        return harness(&options);
    };
    let time = |seconds: &f64| Duration::from_secs_f64(*seconds);
    let said = match part {
        Part::Node { n, namespace, client_seconds, behind_vxlan, kernel, idle, threads } => {
            let role = match (namespace, client_seconds) {
                (Some(namespace), _) if *behind_vxlan => Role::Kernel(namespace.clone(), Some(TunnelKind::UserSpace)),
                (Some(namespace), _) if *kernel => Role::Kernel(namespace.clone(), None),
                (Some(namespace), _) => Role::Interface(namespace.clone()),
                (None, Some(seconds)) => Role::Client(Duration::from_secs(*seconds)),
                (None, None) => Role::Server,
            };
            tokio::runtime::Runtime::new()?.block_on(node::run(*n, role, *idle, *threads))?
        }
        Part::Sink { port, seconds } => load::sink(*port, time(seconds))?,
        Part::Blast { to, seconds, rate } => load::blast(*to, time(seconds), *rate)?,
        Part::Echo { port } => load::echo(*port)?,
        Part::Verify { port } => load::verify(*port)?,
        Part::Pour { to, chunks } => load::pour(*to, *chunks)?,
        Part::Measure { port } => load::measure(*port)?,
        Part::Sizes { to } => load::sizes(*to)?,
        Part::Ping { to, seconds } => load::ping(*to, time(seconds))?,
    };
    if !said.is_null() {
        println!("{said}");
    }
    Ok(())
}

fn harness(options: &Options) -> Result<(), Error> {
    let is_wanted = |system: &System| options.only.is_empty() || options.only.iter().any(|name| name == system.name());
    if let Some(unknown) = options.only.iter().find(|name| System::ALL.iter().all(|system| system.name() != **name)) {
        let known: Vec<_> = System::ALL.iter().map(|system| system.name()).collect();
        return Err(format!("there is no system {unknown}; there are {}", known.join(", ")).into());
    }
    for program in ["ip", "ping", "ethtool", "iperf3"] {
        systems::find(program).ok_or_else(|| format!("{program} is not installed"))?;
    }
    let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?;
    if !available.split_whitespace().any(|name| name == options.congestion) {
        let congestion = &options.congestion;
        return Err(format!("this kernel has no congestion control {congestion}; it has {}", available.trim()).into());
    }
    let (present, absent): (Vec<System>, Vec<System>) =
        System::ALL.into_iter().filter(is_wanted).partition(|system| system.missing().is_none());
    for system in absent {
        eprintln!("absent: {}, {} is not installed", system.name(), system.missing().unwrap_or_default());
    }
    let scratch = std::env::temp_dir().join(format!("pn-overlay-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let mut measured = BTreeMap::<&str, Vec<Figures>>::new();
    for round in 0..options.rounds {
        for system in &present {
            match measure(*system, options, &scratch) {
                Ok(figures) => {
                    eprintln!("round {round}: {} {figures:?}", system.name());
                    measured.entry(system.name()).or_default().push(figures);
                }
                Err(error) => eprintln!("round {round}: {} failed: {error}", system.name()),
            }
        }
    }
    std::fs::remove_dir_all(&scratch)?;
    let order: Vec<_> = present.iter().map(|system| system.name()).collect();
    println!("{}", if options.json { table::json(&measured).to_string() } else { table::table(&order, &measured) });
    match order.iter().find(|name| !measured.contains_key(**name)) {
        Some(failed) => Err(format!("there is no figure of {failed}; why is said above").into()),
        None => Ok(()),
    }
}

fn measure(system: System, options: &Options, scratch: &std::path::Path) -> Result<Figures, Error> {
    let namespaces = Namespaces::new(options.link)?;
    let running = system.start(&namespaces, scratch, options.threads)?;
    let mut figures = Figures::new();
    if system == System::InProcess {
        let mut client = namespaces.command("node0", &systems::this_program()?);
        client.args(["node", "0", "--client-seconds", &options.seconds.to_string()]);
        let said = ask(&mut client)?;
        let said = said.as_object().into_iter().flatten();
        figures.extend(said.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))));
    } else {
        for figure in &options.figures {
            let seconds = options.seconds;
            match figure.as_str() {
                "tcp1" => tcp(&namespaces, &running, 1, options, &mut figures)?,
                "tcp4" => tcp(&namespaces, &running, 4, options, &mut figures)?,
                "udp64" => {
                    let (_, received) = blast(&namespaces, &running, seconds as f64, None)?;
                    figures.insert("udp64_pps".into(), received);
                }
                "lossless" => drop(figures.insert("udp64_lossless_pps".into(), lossless(&namespaces, &running)?)),
                "rtt" => {
                    let said = pair(&namespaces, &running, &["echo", PORT], |to| {
                        vec!["ping".into(), to, seconds.to_string()]
                    })?
                    .1;
                    for (name, of) in [("rtt_p50_us", "p50_us"), ("rtt_p99_us", "p99_us")] {
                        figures.insert(name.into(), said[of].as_f64().unwrap_or(f64::NAN));
                    }
                }
                "sizes" => {
                    let said = pair(&namespaces, &running, &["measure", PORT], |to| vec!["sizes".into(), to])?;
                    let is_right = said.0["right"].as_u64() == Some(u64::from(load::LARGEST));
                    if !is_right {
                        return Err(format!("other datagrams arrived than were sent: {said:?}").into());
                    }
                    figures.insert("sizes".into(), load::LARGEST.into());
                }
                "rekey" => {
                    std::thread::sleep(SESSION.saturating_sub(BEFORE));
                    let start = std::time::Instant::now();
                    let chunks = (10_000_000_000 / 131_072u64).to_string();
                    let received =
                        pair(&namespaces, &running, &["verify", PORT], |to| vec!["pour".into(), to, chunks])?.0;
                    if received["is_right"] != true {
                        return Err(format!("other octets arrived than were sent: {received}").into());
                    }
                    let took = start.elapsed();
                    if took < BEFORE {
                        return Err(
                            format!("everything had crossed in {took:?}, before the session was renewed").into()
                        );
                    }
                    figures.insert("rekey_octets".into(), received["octets"].as_f64().unwrap_or(0.0));
                    figures.insert("rekey_seconds".into(), took.as_secs_f64());
                }
                other => return Err(format!("there is no figure {other}").into()),
            }
        }
    }
    if !running.daemons.is_empty() {
        let rss = running.daemons.iter().map(netns::Daemon::rss_mb).fold(0.0, f64::max);
        figures.insert("rss_mb".into(), rss);
    }
    Ok(figures)
}

/// How old a WireGuard session is when it is renewed.
const SESSION: Duration = Duration::from_secs(120);

/// How long before that a transfer begins.
const BEFORE: Duration = Duration::from_secs(8);

const PORT: &str = "5300";

/// Has iperf3 send for a time.
fn tcp(
    namespaces: &Namespaces,
    running: &Running,
    streams: u8,
    options: &Options,
    figures: &mut Figures,
) -> Result<(), Error> {
    let mut server = namespaces.command(running.server, "iperf3");
    let mut server = server.args(["-s", "-1", "-p", PORT]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_listening(namespaces, running)?;
    let mut client = namespaces.command(running.client, "iperf3");
    let (time, streams_word) = (options.seconds.to_string(), streams.to_string());
    client.args(["-c", &running.address, "-p", PORT, "-t", &time, "-P", &streams_word, "-J"]);
    client.args(["-C", &options.congestion]);
    let before = netns::busy()?;
    let said = ask(&mut client);
    let busy = netns::busy()? - before;
    server
        .kill()
        .or_else(|error| if error.kind() == std::io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) })?;
    server.wait()?;
    let said = said?;
    let gbps = said["end"]["sum_received"]["bits_per_second"].as_f64().ok_or_else(|| said["error"].to_string())? / 1e9;
    figures.insert(format!("tcp{streams}_gbps"), gbps);
    if streams == 1 {
        figures.insert("cpu_s_per_gbit".into(), busy / (gbps * options.seconds as f64));
        figures.insert("tcp1_retransmits".into(), said["end"]["sum_sent"]["retransmits"].as_f64().unwrap_or(0.0));
    }
    Ok(())
}

/// Blasts datagrams and returns how many a second were sent and arrived.
fn blast(namespaces: &Namespaces, running: &Running, seconds: f64, rate: Option<f64>) -> Result<(f64, f64), Error> {
    let sink = (seconds + 2.0).to_string();
    let (received, sent) = pair(namespaces, running, &["sink", PORT, &sink], |to| {
        ["blast".into(), to, seconds.to_string()].into_iter().chain(rate.map(|rate| rate.to_string())).collect()
    })?;
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    Ok((number(&sent["sent"]) / seconds, number(&received["received"]) / seconds))
}

/// Returns how many datagrams a second arrive at the greatest rate at which less than one of a hundred is lost: the rate is doubled
/// until it is too great, and what lies between is halved until it is known to 5 %.
fn lossless(namespaces: &Namespaces, running: &Running) -> Result<f64, Error> {
    let arrives = |rate: f64| -> Result<Option<f64>, Error> {
        // Once more where it failed: the machine may have been busy with something else.
        for _ in 0..2 {
            let (sent, received) = blast(namespaces, running, 0.5, Some(rate))?;
            if sent > 0.95 * rate && received >= 0.99 * sent {
                return Ok(Some(received));
            }
        }
        Ok(None)
    };
    let (mut best, mut rate) = (0.0, 25e3);
    while let Some(received) = arrives(rate)? {
        (best, rate) = (received, rate * 2.0);
    }
    let (mut good, mut bad) = (rate / 2.0, rate);
    while bad / good > 1.05 {
        let middle = (good * bad).sqrt();
        match arrives(middle)? {
            Some(received) => (best, good) = (received, middle),
            None => bad = middle,
        }
    }
    Ok(best)
}

/// Runs a part of this program on the server and one on the client, and returns what they said.
fn pair(
    namespaces: &Namespaces,
    running: &Running,
    server: &[&str],
    client: impl FnOnce(String) -> Vec<String>,
) -> Result<(Value, Value), Error> {
    let program = systems::this_program()?;
    let server = namespaces.command(running.server, &program).args(server).stdout(Stdio::piped()).spawn()?;
    wait_listening(namespaces, running)?;
    let mut command = namespaces.command(running.client, &program);
    let said = ask(command.args(client(format!("{}:{PORT}", running.address))))?;
    let output = server.wait_with_output()?;
    Ok((serde_json::from_slice(&output.stdout)?, said))
}

/// Waits until somebody listens on the port, TCP or UDP.
fn wait_listening(namespaces: &Namespaces, running: &Running) -> Result<(), Error> {
    let hexadecimal = format!(":{:04X} ", PORT.parse::<u16>()?);
    netns::wait_for("a server", || {
        let mut command = namespaces.command(running.server, "cat");
        let output = command.args(["/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp"]).output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&hexadecimal))
    })
}

/// Runs a command that says JSON.
fn ask(command: &mut Command) -> Result<Value, Error> {
    let output = command.stderr(Stdio::inherit()).output()?;
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{command:?} said {:?}: {error}", String::from_utf8_lossy(&output.stdout)).into())
}
