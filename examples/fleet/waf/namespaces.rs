//! Hosts, containers and a client as network namespaces, and what runs in them.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use tokio::process::{Child, Command};
use tokio::sync::RwLock;

use crate::Error;

/// What every namespace of this example is called with, so that the next start finds what a crash has left.
const PREFIX: &str = "pn-waf-";

/// Where the nodes of this example keep their namespaces.
pub(crate) const DIRECTORY: &str = "/run/pn-waf";

/// Read while something is made: what was begun ends, even where nobody waits for it any more.
static MAKING: RwLock<()> = RwLock::const_new(());

/// Waits until nothing is being made.
pub(crate) async fn quiet() {
    drop(MAKING.write().await);
}

/// Removes everything of this example, from this run or one before that was not allowed to end. It goes on after an error, and
/// returns the first.
pub(crate) async fn clean_up() -> Result<(), Error> {
    let listed = sh("ip netns list").await?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let mut done = Ok(());
    for name in names.filter(|name| name.starts_with(PREFIX)) {
        // Nobody but this example has processes in them; some end while they are listed.
        let removed = sh(&format!("ip netns pids {name} | xargs -r kill -9 2>/dev/null ; ip netns del {name}")).await;
        done = done.and(removed.map(drop));
    }
    let unmounted = sh(&format!("umount -q -l {DIRECTORY}/*/* ; rm -rf {DIRECTORY}")).await;
    done.and(unmounted.map(drop))
}

/// Makes a namespace and returns its name.
pub(crate) async fn add(name: &str) -> Result<String, Error> {
    let name = format!("{PREFIX}{name}");
    sh(&format!("ip netns add {name} && ip -n {name} link set lo up")).await?;
    Ok(name)
}

/// Makes an Ethernet switch in a namespace.
pub(crate) async fn add_switch(name: &str) -> Result<String, Error> {
    let name = add(name).await?;
    sh(&format!("ip -n {name} link add br0 type bridge && ip -n {name} link set br0 up")).await?;
    Ok(name)
}

/// Plugs a namespace into a switch, as `eth0`.
pub(crate) async fn plug(name: &str, switch: &str, address: &str) -> Result<(), Error> {
    let port = name.strip_prefix(PREFIX).unwrap_or(name);
    sh(&format!(
        "ip -n {switch} link add {port} type veth peer name eth0 netns {name} && ip -n {switch} link set {port} master br0 up \
         && ip -n {name} addr add {address} dev eth0 && ip -n {name} link set eth0 up"
    ))
    .await
    .map(drop)
}

/// Has a namespace pass on what is not for it.
pub(crate) async fn route(name: &str) -> Result<(), Error> {
    sh(&format!("ip netns exec {name} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'")).await.map(drop)
}

pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/netns/{name}"))
}

/// Runs a command line, to its end in any case, and returns what it says.
pub(crate) async fn sh(line: &str) -> Result<String, Error> {
    let making = MAKING.read().await;
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null());
    let ran = tokio::spawn(async move {
        let _making = making;
        command.output().await
    });
    let output = ran.await??;
    if !output.status.success() {
        return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command in a namespace, whatever comes of it.
pub(crate) async fn run(name: &str, command: &[&str]) -> Result<Output, Error> {
    let mut running = Command::new("ip");
    running.args(["netns", "exec", name]).args(command).stdin(Stdio::null()).kill_on_drop(true);
    Ok(running.output().await?)
}

/// Starts a command in a namespace. It ends with what is returned.
pub(crate) fn spawn(name: &str, command: &[&str]) -> Result<Child, Error> {
    let mut spawned = Command::new("ip");
    spawned.args(["netns", "exec", name]).args(command).stdin(Stdio::null());
    Ok(spawned.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?)
}

/// Listens in a namespace. A socket stays where it was opened, so a thread that goes there is enough.
pub(crate) async fn listen(name: &str, address: &'static str) -> Result<tokio::net::TcpListener, Error> {
    let path = path(name);
    let listener = tokio::task::spawn_blocking(move || {
        let opened = std::thread::spawn(move || {
            nix::sched::setns(std::fs::File::open(path)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
            TcpListener::bind(address)
        });
        opened.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
    });
    let listener = listener.await??;
    listener.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(listener)?)
}
