//! TCP throughput, small datagrams and round-trip time between in-process sockets: across two nodes and on one.

#![expect(clippy::print_stdout, reason = "it is a program, and this is what it says")]

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::{Table, presets};
use pn_backend_userspace::{Loopback, Port};
use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, NetworkId, NetworkRequest, Project, ProjectId, Slot, Terms,
    Timestamp,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Measures the in-process sockets of the user-space backend.
#[derive(Debug, Parser)]
struct Options {
    /// How long each measurement takes.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

struct Figures {
    tcp_gbps: f64,
    udp64_pps: f64,
    rtt_p50_us: f64,
    rtt_p99_us: f64,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let time = Duration::from_secs(options.seconds);
    let ports = ports().await?;
    let mut measured = Vec::new();
    for (place, from, to) in [("across nodes", &ports.1[0], &ports.1[2]), ("on one node", &ports.1[0], &ports.1[1])] {
        let (rtt_p50_us, rtt_p99_us) = round_trips(from, to, time).await?;
        let (tcp_gbps, udp64_pps) = (stream(from, to, time).await?, datagrams(from, to, time).await?);
        measured.push((place, Figures { tcp_gbps, udp64_pps, rtt_p50_us, rtt_p99_us }));
    }
    if options.json {
        let figures = measured.iter().map(|(place, f)| {
            let figures = json!({
                "tcp1_gbps": f.tcp_gbps, "udp64_pps": f.udp64_pps, "rtt_p50_us": f.rtt_p50_us, "rtt_p99_us": f.rtt_p99_us,
            });
            ((*place).to_owned(), figures)
        });
        println!("{}", json!({"figures": figures.collect::<serde_json::Map<_, _>>()}));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["in-process sockets", "TCP Gbit/s", "64 B UDP /s", "TCP RTT p50 µs", "p99 µs"]);
    for (place, f) in measured {
        let (tcp, udp) = (format!("{:.2}", f.tcp_gbps), format!("{:.0}", f.udp64_pps));
        table.add_row([place.to_owned(), tcp, udp, format!("{:.0}", f.rtt_p50_us), format!("{:.0}", f.rtt_p99_us)]);
    }
    println!("{table}");
    Ok(())
}

/// Starts two nodes with two containers on the first and one on the second.
async fn ports() -> Result<(Loopback, Vec<Port>), Error> {
    let mut region = Loopback::start(2, None).await?;
    let (project, app) = (ProjectId::from_u128(1), AppId::from_u128(1));
    let terms = Terms { accepted_by: "me".parse()?, version: "1".parse()?, accepted_at: Timestamp::ZERO };
    region.change(Change::AddProject(Project::new(project, "bench".parse()?)))?;
    region.change(Change::EnablePrivateNetwork(NetworkRequest::new(project, NetworkId::from_u128(1), terms)))?;
    region.change(Change::AddApp(App::new(app, project, "bench".parse()?)))?;
    region.change(Change::Scale { app, formation: "web:3".parse()? })?;
    for (n, node) in [(1, 0), (2, 0), (3, 1)] {
        let slot = Slot::new(app, ContainerType::web(), n)?;
        let node = region.nodes()[node].id;
        region.change(Change::Start { container: ContainerId::from_u128(n.into()), slot, node })?;
    }
    region.apply().await?;
    let ports = (1..=3).map(|n| region.port(ContainerId::from_u128(n))).collect::<Result<_, _>>()?;
    Ok((region, ports))
}

/// Returns Gbit/s of payload that arrived.
async fn stream(from: &Port, to: &Port, time: Duration) -> Result<f64, Error> {
    let listener = to.listen(0)?;
    let (mut sender, accepted) = tokio::try_join!(from.connect(listener.local_addr().to_string()), listener.accept())?;
    let mut receiver = accepted.0;
    let sending = tokio::spawn(async move {
        let octets = vec![7; 128 * 1024];
        while sender.write_all(&octets).await.is_ok() {}
    });
    let mut buffer = vec![0; 256 * 1024];
    let (start, mut received) = (Instant::now(), 0);
    while start.elapsed() < time {
        received += receiver.read(&mut buffer).await?;
    }
    let seconds = start.elapsed().as_secs_f64();
    sending.abort();
    Ok(received as f64 * 8.0 / seconds / 1e9)
}

/// Returns how many datagrams of 64 octets arrive in a second while the sender sends as fast as it may.
async fn datagrams(from: &Port, to: &Port, time: Duration) -> Result<f64, Error> {
    let (sender, receiver) = (from.bind_udp(0)?, to.bind_udp(0)?);
    let target = SocketAddrV4::new(to.address(), receiver.local_addr().port());
    let sending = tokio::spawn(async move { while sender.send_to(&[7; 64], target).await.is_ok() {} });
    let (start, mut received, mut buffer) = (Instant::now(), 0u64, [0; 64]);
    while start.elapsed() < time {
        receiver.recv_from(&mut buffer).await?;
        received += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    sending.abort();
    Ok(received as f64 / seconds)
}

/// Returns the median and the 99th percentile of a one-octet TCP round trip, in microseconds.
async fn round_trips(from: &Port, to: &Port, time: Duration) -> Result<(f64, f64), Error> {
    let listener = to.listen(0)?;
    let (mut client, accepted) = tokio::try_join!(from.connect(listener.local_addr().to_string()), listener.accept())?;
    let mut server = accepted.0;
    let echo = tokio::spawn(async move {
        while let Ok(octet) = server.read_u8().await {
            if server.write_u8(octet).await.is_err() {
                return;
            }
        }
    });
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let sent = Instant::now();
        client.write_u8(7).await?;
        client.read_u8().await?;
        times.push(sent.elapsed());
    }
    echo.abort();
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    Ok((at(0.5), at(0.99)))
}
