//! `pn-agent`: keeps one node's data plane and names what the store says they are.

#![expect(clippy::print_stderr, reason = "it is a program, and this is where it complains")]

mod applied;
mod data_plane;
mod drained;
mod interfaces;
mod join;
mod key_file;
mod report;

use std::error::Error as StdError;
use std::io::IsTerminal as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use pn_core::{DnsBackend, Label, Region};
use pn_dns::Names;
use pn_overlay::{Agent, AgentOptions, Leave};
use pn_store::{Clock as _, Follower, Registry, Reporter, SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::applied::Told;
use crate::data_plane::DataPlane;
use crate::interfaces::Interfaces;

/// What the agent can end with.
pub(crate) type Error = Box<dyn StdError + Send + Sync>;

/// Keeps one node's data plane and names what the store says they are. One runs on every node.
#[derive(Debug, Parser)]
#[command(name = "pn-agent", version, max_term_width = 100, after_help = EXAMPLES)]
struct Options {
    /// Where the state is kept.
    #[arg(long, env = "PN_STORE", hide_env_values = true, help = STORE)]
    store: String,
    /// What to call the node.
    #[arg(long)]
    node: Label,
    /// Where other nodes reach it, by UDP: ADDRESS or ADDRESS:PORT; port 51820 unless it is given.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = underlay)]
    underlay: SocketAddr,
    /// What carries packets.
    #[arg(long, default_value = "userspace")]
    backend: Backend,
    /// The node's private key, which is made if it is not there. By default in the user's data directory.
    #[arg(long, value_name = "PATH")]
    key_file: Option<PathBuf>,
    /// Who answers names that are not ours; several may be given. Without one they are refused.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = upstream)]
    dns_upstream: Vec<SocketAddr>,
    /// The MTU of the underlay, in octets.
    #[arg(long, default_value_t = 1500)]
    underlay_mtu: u16,
    /// How long the node's names are answered after the agent fell silent, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    lease: u64,
    /// Leave the data plane standing when the agent is stopped; only a kernel can do that.
    #[arg(long)]
    leave_running: bool,
}

/// What carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// This process, with a TUN interface for each container.
    Userspace,
    /// The Linux kernel.
    Linux,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // What boringtun calls an error is a session that nobody uses any more.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,boringtun=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", pn_examples::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Error> {
    if options.leave_running && options.backend == Backend::Userspace {
        return Err("--leave-running needs --backend linux: this process carries the packets itself".into());
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let key_file = match options.key_file {
        Some(path) => path,
        None => default_key_file(&options.node)?,
    };
    let registry = Registry::new(pn_store::connect(&options.store).await?, Region::default());
    let key = key_file::load_or_make(&key_file)?;
    let wanted = join::Wanted {
        label: options.node,
        underlay: options.underlay,
        underlay_mtu: options.underlay_mtu,
        public_key: key.key.public_key(),
    };
    let node = join::find_or_plan(&registry, &wanted).await?;
    key.keep(&key_file)?;
    let names = Arc::new(Names::new(SystemClock.random()));
    // What another process of this node still holds is seen here, before anything is written.
    let data_plane =
        DataPlane::build(options.backend, node.id, options.underlay, key.key, names.clone(), &options.dns_upstream)
            .await?;
    let session = join::join(&registry, node, &wanted, Duration::from_secs(options.lease)).await?;
    let node = session.node();
    info!(%node, registration = session.registration(), "joined");

    let follower = Follower::new(session);
    let progress = follower.progress();
    let reporter = Reporter::new(progress.clone());
    let servers: Vec<Arc<dyn DnsBackend>> = vec![names.clone()];
    let (overlay, applied) = Told::new(data_plane.overlay());
    let (agent, handle) = Agent::new(node, Arc::new(overlay), servers, AgentOptions::new(SystemClock.random()));
    let mut running = tokio::spawn(agent.run(follower));
    let interfaces =
        Interfaces { registry: registry.clone(), node, data_plane: data_plane.clone(), agent: handle.clone(), applied };
    let beside = [
        tokio::spawn(report::age(names, handle.subscribe())),
        tokio::spawn(report::log(handle.subscribe())),
        tokio::spawn(report::run(reporter, handle.clone(), data_plane.clone())),
        tokio::spawn(interfaces.run()),
        tokio::spawn(drained::run(registry.clone(), handle.clone())),
    ];
    notify(&[sd_notify::NotifyState::Ready]);

    let leave = if options.leave_running { Leave::Running } else { Leave::Nothing };
    tokio::select! {
        status = &mut running => {
            let why = status?.fenced.unwrap_or_else(|| "there is nothing more to follow".to_owned());
            return Err(format!("the agent ended: {why}").into());
        }
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    info!(?leave, "stopping");
    if leave == Leave::Nothing {
        // Other nodes take the names back while the ways are still there.
        if let Err(error) = progress.leave().await {
            warn!(%error, "the lease ends by itself");
        }
    }
    handle.shutdown(leave);
    running.await?;
    if leave == Leave::Nothing {
        data_plane.detach_all().await?;
    }
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

/// Tells the service manager, where one wants to know.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        warn!(%error, "the service manager cannot be told");
    }
}

fn default_key_file(node: &Label) -> Result<PathBuf, Error> {
    let home = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let data = home("XDG_DATA_HOME").or_else(|| Some(home("HOME")?.join(".local/share")));
    let data = data.ok_or("neither XDG_DATA_HOME nor HOME says where data is kept: give --key-file PATH")?;
    Ok(data.join("private-networks").join(format!("{node}.key")))
}

fn underlay(text: &str) -> Result<SocketAddr, String> {
    address(text, 51820)
}

fn upstream(text: &str) -> Result<SocketAddr, String> {
    address(text, 53)
}

fn address(text: &str, port: u16) -> Result<SocketAddr, String> {
    let bare = || text.parse::<IpAddr>().map(|address| SocketAddr::new(address, port));
    text.parse().or_else(|_| bare()).map_err(|_| format!("{text:?} is no IP address, with or without a port"))
}

const STORE: &str = "Where the state is kept: sqlite:PATH, or etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/PREFIX";

const EXAMPLES: &str = "\
Examples:
  pn-agent --store etcd://10.0.0.1:2379/pn --node node-a --underlay 10.0.0.2
  pn-agent --store sqlite:/var/lib/pn/state.sqlite --node here --underlay 127.0.0.1
RUST_LOG sets what is logged, for example RUST_LOG=debug.";
