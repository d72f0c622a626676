//! Our name server beside every other that is installed: the same zone, the same questions, in turns.
//!
//! Each server serves one zone on a port of its own. They are started one after the other, weighed, and then asked in rounds,
//! so that what else the machine does meets all of them. `echo` sends datagrams back with the same system calls as ours and
//! does nothing else: nobody who answers datagrams in batches is faster.

#![expect(clippy::print_stdout, reason = "it is a program, and this is what it says")]

mod client;
mod ours;
mod peers;
mod process;
mod update;
mod zone;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use self::client::{Load, Run};
use self::peers::{Server, Updates, find};
use self::process::{LevelBuffers, Running, Setup};

/// Measures name servers side by side.
#[derive(Debug, Parser)]
struct Options {
    /// Only these servers, by name and with commas: pn-dns, echo, nsd, knot, bind, unbound, dnsmasq, pdns.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How many seconds each measurement of a round takes.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How many names the zone has.
    #[arg(long, default_value_t = 100_000)]
    names: u32,
    /// Changes of which each server's visibility is measured in a round, idle and under load, for a second at most; 0 leaves it
    /// out.
    #[arg(long, default_value_t = 200)]
    updates: u32,
    /// Server and client on any processor, with a thread for each; otherwise each has one of its own.
    #[arg(long)]
    unpinned: bool,
    /// Only load and weigh.
    #[arg(long)]
    load_only: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Be one of our servers instead (the harness starts itself so).
    #[arg(long, hide = true)]
    serve: Option<String>,
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    address: SocketAddr,
}

/// What was measured of a server: every figure of every round.
#[derive(Debug, Default)]
struct Figures(BTreeMap<&'static str, Vec<f64>>);

impl Figures {
    fn add(&mut self, figure: &'static str, value: f64) {
        self.0.entry(figure).or_default().push(value);
    }

    fn median(&self, figure: &str) -> Option<f64> {
        quantile(self.0.get(figure)?, 0.5)
    }
}

fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get((values.len() as f64 * share) as usize).copied()
}

/// The figures, in the order in which they are shown.
const FIGURES: [(&str, &str, usize); 14] = [
    ("qps", "answers/s", 0),
    ("dnsperf_qps", "by dnsperf", 0),
    ("rate", "steady rate", 0),
    ("p50_us", "p50 µs", 0),
    ("p99_us", "p99 µs", 0),
    ("ours_p99_us", "ours there", 0),
    ("lost", "lost", 0),
    ("rss_mb", "memory MB", 0),
    ("load_s", "load s", 2),
    ("update_ms", "update p50 ms", 2),
    ("update_p99_ms", "p99 ms", 2),
    ("loaded_update_ms", "loaded p50 ms", 2),
    ("loaded_update_p99_ms", "p99 ms", 2),
    ("lost_in_updates", "lost then", 0),
];

fn main() -> io::Result<()> {
    let options = Options::parse();
    if options.rounds.saturating_mul(options.updates) > zone::WAITING / 2 {
        let most = zone::WAITING / 2;
        return Err(io::Error::other(format!("rounds times updates may be {most} at most")));
    }
    match options.serve.as_deref() {
        None => measure(&options),
        Some("echo") => ours::echo(options.address),
        Some("pn-dns-state") => ours::serve_state(options.address, options.names),
        Some(_) => ours::serve(options.address, options.names),
    }
}

fn measure(options: &Options) -> io::Result<()> {
    let level = LevelBuffers::level()?;
    let directory = std::env::temp_dir().join(format!("pn-benches-dns-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let measured = measure_in(options, &directory);
    std::fs::remove_dir_all(&directory)?;
    let (figures, absent) = measured?;
    if options.json {
        let servers: Map<String, Value> =
            figures.iter().map(|(server, figures)| (server.name().to_owned(), to_json(figures))).collect();
        println!(
            "{}",
            json!({
                "servers": servers,
                "absent": absent,
                "names": options.names,
                "pinned": !options.unpinned,
                "level_buffers": level.is_some(),
            })
        );
        return Ok(());
    }
    let threads = if options.unpinned {
        "server and client anywhere"
    } else {
        "one processor for the server, one for the client"
    };
    let buffers = match level {
        Some(_) => "receive buffers of one size",
        None => "receive buffers as each server asks for them (root levels them)",
    };
    println!(
        "{} names, {} rounds of {} s, {threads}, {buffers}, medians",
        options.names, options.rounds, options.seconds
    );
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(std::iter::once("server").chain(FIGURES.map(|(_, title, _)| title)));
    for (server, figures) in &figures {
        let shown = FIGURES.map(|(figure, _, digits)| {
            figures.median(figure).map_or("–".to_owned(), |value| format!("{value:.digits$}"))
        });
        table.add_row(std::iter::once(server.name().to_owned()).chain(shown));
    }
    println!("{table}");
    if !absent.is_empty() {
        println!("not here: {}", absent.join(", "));
    }
    Ok(())
}

fn to_json(figures: &Figures) -> Value {
    let values = FIGURES.iter().filter_map(|(figure, ..)| Some(((*figure).to_owned(), json!(figures.median(figure)?))));
    Value::Object(values.collect())
}

type Measured = (Vec<(Server, Figures)>, Vec<String>);

fn measure_in(options: &Options, directory: &Path) -> io::Result<Measured> {
    let is_wanted = |server: &Server| options.only.is_empty() || options.only.iter().any(|name| name == server.name());
    let (here, absent): (Vec<Server>, Vec<Server>) =
        Server::ALL.into_iter().filter(is_wanted).partition(|server| server.is_installed());
    let mut absent: Vec<String> = absent.iter().map(|server| server.name().to_owned()).collect();
    if find("dnsperf").is_none() {
        absent.push("dnsperf".to_owned());
    }
    let plan = zone::plan(options.names);
    let questions = zone::queries(&plan, 200_000);
    zone::write(&plan, &questions, directory)?;
    let (known, address) = zone::last(&plan);
    drop(plan);
    let mut questions = client::encode(&questions);
    if !options.unpinned {
        pin(CLIENT);
    }
    let threads = if options.unpinned { std::thread::available_parallelism()?.get() } else { 1 };
    let processor = (!options.unpinned).then_some(SERVER);
    let setup = Setup {
        zone_files: directory,
        names: options.names,
        threads,
        processor,
        known: (&known, address),
        with_state: false,
    };
    let mut servers = Vec::new();
    for server in here {
        match Running::start(server, setup) {
            Ok(running) => {
                let mut figures = Figures::default();
                if server != Server::Echo {
                    figures.add("load_s", running.load_s);
                    figures.add("rss_mb", running.memory_mb());
                }
                servers.push((running, figures));
            }
            Err(error) => absent.push(format!("{} ({error})", server.name())),
        }
        if options.load_only {
            servers.iter_mut().for_each(|(running, _)| drop(running.pipe.take()));
        }
    }
    if !options.load_only {
        rounds(options, directory, &mut questions, &mut servers)?;
    }
    if options.updates > 0 && !options.load_only {
        if let Some((ours, _)) = servers.iter_mut().find(|(running, _)| running.server == Server::PnDns) {
            *ours = Running::start(Server::PnDns, Setup { with_state: true, ..setup })?;
        }
        updates(options, &mut questions, &mut servers)?;
    }
    let measured = servers.into_iter().map(|(running, figures)| (running.server, figures)).collect();
    Ok((measured, absent))
}

fn rounds(
    options: &Options,
    directory: &Path,
    questions: &mut [Vec<u8>],
    servers: &mut [(Running, Figures)],
) -> io::Result<()> {
    let duration = Duration::from_secs_f64(options.seconds);
    for _ in 0..options.rounds {
        for (running, figures) in &mut *servers {
            let run = client::blast(running.address, questions, duration)?;
            check(running.server, run)?;
            figures.add("qps", run.per_second());
            if let Some(dnsperf) = find("dnsperf")
                && let Some(per_second) = dnsperf_qps(&dnsperf, running.address, directory, options)
            {
                figures.add("dnsperf_qps", per_second);
            }
        }
        // A steady rate that each of the others bears, and ours beside it; for ours and the echo, that of the best.
        let is_other = |running: &Running| !matches!(running.server, Server::PnDns | Server::Echo);
        let best = servers.iter().filter(|(running, _)| is_other(running));
        let best = best.filter_map(|(_, figures)| figures.median("qps")).fold(0.0, f64::max);
        let ours = servers.iter().find(|(running, _)| running.server == Server::PnDns);
        let ours = ours.map(|(running, _)| running.address);
        for (running, figures) in &mut *servers {
            let own = figures.median("qps").unwrap_or_default();
            let rate = STEADY * if best > 0.0 { own.min(best) } else { own };
            let run = client::steadily(running.address, questions, rate, duration)?;
            figures.add("rate", rate);
            figures.add("p50_us", run.p50_us);
            figures.add("p99_us", run.p99_us);
            figures.add("lost", run.lost as f64);
            if let Some(ours) = ours.filter(|_| is_other(running)) {
                figures.add("ours_p99_us", client::steadily(ours, questions, rate, duration)?.p99_us);
            }
        }
    }
    Ok(())
}

/// Refuses figures of a server that does not answer what it should.
fn check(server: Server, run: Run) -> io::Result<()> {
    let misses = run.nxdomain as f64 / run.received.max(1) as f64;
    if server == Server::Echo || run.other == 0 && (0.05..0.15).contains(&misses) {
        return Ok(());
    }
    Err(io::Error::other(format!("{} answers wrongly: {run:?}", server.name())))
}

fn updates(options: &Options, questions: &mut [Vec<u8>], servers: &mut [(Running, Figures)]) -> io::Result<()> {
    let mut next = 0;
    for _ in 0..options.rounds {
        let (idle, loaded) = (next..next + options.updates, next + options.updates..next + 2 * options.updates);
        next = loaded.end;
        for (running, figures) in servers.iter_mut().filter(|(running, _)| running.server.updates() != Updates::None) {
            let idle = update::visible_ms(running, idle.clone(), None)?;
            // Enough to keep the server busy, and so little that a question does not wait long behind others.
            let mut load = Load::new(running.address, (4, 16), questions)?;
            let loaded = update::visible_ms(running, loaded.clone(), Some(&mut load))?;
            let run = load.finish();
            check(running.server, run)?;
            figures.add("lost_in_updates", run.lost as f64);
            for (times, p50, p99) in
                [(idle, "update_ms", "update_p99_ms"), (loaded, "loaded_update_ms", "loaded_update_p99_ms")]
            {
                figures.add(p50, quantile(&times, 0.5).unwrap_or(f64::NAN));
                figures.add(p99, quantile(&times, 0.99).unwrap_or(f64::NAN));
            }
        }
    }
    Ok(())
}

fn dnsperf_qps(program: &Path, address: SocketAddr, directory: &Path, options: &Options) -> Option<f64> {
    let mut command = Command::new(program);
    command.args([
        "-s",
        &address.ip().to_string(),
        "-p",
        &address.port().to_string(),
        "-c",
        "8",
        "-q",
        "200",
        "-T",
        "1",
    ]);
    command.args(["-l", &format!("{}", options.seconds.ceil()), "-d"]).arg(directory.join("queries"));
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.contains("Queries per second"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Keeps this process, and what it starts from now on, to one processor.
fn pin(processor: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    // Where there is only one, that is it.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// The processors of server and client, where each has its own.
const SERVER: usize = 0;
const CLIENT: usize = 1;

/// The part of its most that a server is asked at a steady rate.
const STEADY: f64 = 0.8;
