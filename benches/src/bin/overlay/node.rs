//! One node of ours, as a process of its own: with an interface in a container's namespace, or with sockets in this process.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_backend_userspace::{Port, TunPort, UserspaceBackend};
use pn_core::*;
use pn_overlay::PrivateKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Error, load};

/// The underlay addresses of the two nodes, and the addresses of the container on each.
pub(crate) const UNDERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 99, 1), Ipv4Addr::new(10, 0, 99, 2)];
pub(crate) const CONTAINER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 240, 0, 1), Ipv4Addr::new(10, 240, 0, 2)];

/// The port that a server in this process listens on.
const PORT: u16 = 5000;

/// What a node does once it runs.
#[derive(Debug)]
pub(crate) enum Role {
    /// It gives its container an interface in a namespace, and goes on until it is killed.
    Interface(PathBuf),
    /// The kernel's data plane, its container's namespace, and who encrypts; otherwise the same.
    Kernel(PathBuf, Option<TunnelKind>),
    /// Its container has sockets in this process: it answers those of the other.
    Server,
    /// Its container has sockets in this process: it measures for a time.
    Client(Duration),
}

/// Makes a region of two nodes with a container each, and of idle nodes that have containers of the same network.
fn state(idle: u16) -> Result<State, Error> {
    let mut state = State::new(Region::default());
    let mut apply = |change| state.apply(Timestamp::ZERO, change).map(drop);
    for n in 0..idle + 2 {
        let [high, low] = (n + 1).to_be_bytes();
        let (underlay, port) = match UNDERLAY.get(usize::from(n)) {
            Some(address) => (*address, 51820),
            // Nobody is there.
            None => (Ipv4Addr::new(10, 0, 99, 99), 1000 + n),
        };
        apply(Change::AddNode(Node::new(
            NodeId::from_u128(u128::from(n) + 1),
            format!("node-{n}").parse()?,
            SocketAddr::from((underlay, port)),
            Ipv4Addr::new(100, 64, high, low).into(),
            key(n).public_key(),
        )))?;
    }
    let (project, app) = (ProjectId::from_u128(1), AppId::from_u128(1));
    let terms = Terms { accepted_by: "me".parse()?, version: "1".parse()?, accepted_at: Timestamp::ZERO };
    apply(Change::AddProject(Project::new(project, "bench".parse()?)))?;
    apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, NetworkId::from_u128(1), terms)))?;
    apply(Change::AddApp(App::new(app, project, "bench".parse()?)))?;
    apply(Change::Scale { app, formation: format!("web:{}", idle + 2).parse()? })?;
    for n in 1..=u32::from(idle) + 2 {
        let (slot, id) = (Slot::new(app, ContainerType::web(), n)?, u128::from(n));
        apply(Change::Start { container: ContainerId::from_u128(id), slot, node: NodeId::from_u128(id) })?;
    }
    Ok(state)
}

fn key(n: u16) -> PrivateKey {
    let mut octets = [7; 32];
    // The lowest three and the highest bits of a key do not count.
    octets[1..3].copy_from_slice(&n.to_be_bytes());
    PrivateKey::from_bytes(octets)
}

/// Runs node 0 or 1.
pub(crate) async fn run(n: u16, role: Role, idle: u16, threads: NonZeroUsize) -> Result<Value, Error> {
    let id = u128::from(n) + 1;
    let listen = SocketAddr::from((UNDERLAY[usize::from(n)], 51820));
    if let Role::Kernel(namespace, tunnel) = role {
        return kernel(n, listen, namespace, tunnel, idle).await;
    }
    let builder = UserspaceBackend::builder(NodeId::from_u128(id)).listen(listen).private_key(key(n));
    let backend = builder.threads(threads).build().await?;
    backend.apply(&state(idle)?.node_plan(NodeId::from_u128(id))).await.into_result()?;
    let container = ContainerId::from_u128(id);
    match role {
        Role::Interface(namespace) => {
            backend.attach(container, TunPort::in_netns(namespace)).await?;
            wait_for_the_end().await?;
            let drops: Vec<_> = backend.drops().iter().collect();
            // What was renewed is younger than the process.
            let sessions: Vec<_> = backend.peers().await?.into_iter().filter_map(|peer| peer.handshake_age).collect();
            eprintln!("node {n}: {drops:?}, sessions are {sessions:?} old");
            Ok(Value::Null)
        }
        Role::Kernel(..) => Err("it has its own data plane".into()),
        Role::Server => serve(&backend.port(container)?).await,
        Role::Client(time) => measure(&backend.port(container)?, time).await,
    }
}

/// Runs a node in the kernel.
async fn kernel(
    n: u16,
    listen: SocketAddr,
    namespace: PathBuf,
    tunnel: Option<TunnelKind>,
    idle: u16,
) -> Result<Value, Error> {
    let id = u128::from(n) + 1;
    let (node, container) = (NodeId::from_u128(id), ContainerId::from_u128(id));
    let directory = std::env::temp_dir().join(format!("pn-linux-{}", std::process::id()));
    let mut builder = LinuxBackend::builder(node).listen(listen).private_key(key(n)).directory(&directory);
    if let Some(tunnel) = tunnel {
        builder = builder.tunnel(tunnel);
    }
    let backend = builder.build().await?;
    backend.attach(container, namespace).await?;
    backend.apply(&state(idle)?.node_plan(node)).await.into_result()?;
    wait_for_the_end().await?;
    let drops: Vec<_> = backend.drops().iter().collect();
    eprintln!("node {n}: {:?} {:?} {drops:?}", backend.tunnel(), backend.status().await?.drops);
    backend.apply(&NodePlan::empty(node, Generation::new(u64::MAX))).await.into_result()?;
    backend.detach(container).await?;
    std::fs::remove_dir_all(&directory)?;
    Ok(Value::Null)
}

/// Says that it is ready, and waits until the harness closes the pipe, or takes itself away.
async fn wait_for_the_end() -> Result<(), Error> {
    println!("ready");
    std::io::stdout().flush()?;
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// Echoes what begins with 1 and counts what begins with 0, until the harness closes the pipe.
async fn serve(port: &Port) -> Result<Value, Error> {
    let listener = port.listen(PORT)?;
    let udp = port.bind_udp(PORT)?;
    println!("ready");
    std::io::stdout().flush()?;
    tokio::spawn(async move {
        // The count goes back with every datagram that asks for it.
        let (mut buffer, mut count) = ([0; 64], 0u64);
        while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
            match (len, from) {
                (1, SocketAddr::V4(from)) => drop(udp.send_to(&count.to_be_bytes(), from).await),
                _ => count += 1,
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let echoes = stream.read_u8().await? == 1;
                let (mut buffer, mut count) = (vec![0; 256 * 1024], 0u64);
                loop {
                    let len = stream.read(&mut buffer).await?;
                    if len == 0 {
                        return stream.write_u64(count).await;
                    }
                    count += len as u64;
                    if echoes {
                        stream.write_all(&buffer[..len]).await?;
                    }
                }
            });
        }
    });
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(Value::Null)
}

async fn measure(port: &Port, time: Duration) -> Result<Value, Error> {
    let to = (CONTAINER[1], PORT);
    let mut stream = port.connect(to).await?;
    stream.write_u8(1).await?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let sent = Instant::now();
        stream.write_u8(7).await?;
        stream.read_u8().await?;
        times.push(sent.elapsed());
    }
    drop(stream);
    let round_trips = load::percentiles(times);
    let cpu = crate::netns::busy()?;
    let one = transfer(port, 1, time).await?;
    let cpu = crate::netns::busy()? - cpu;
    let four = transfer(port, 4, time).await?;
    let datagrams = datagrams(port, time).await?;
    Ok(json!({
        "tcp1_gbps": one, "tcp4_gbps": four, "udp64_pps": datagrams, "rtt_p50_us": round_trips["p50_us"],
        "rtt_p99_us": round_trips["p99_us"], "cpu_s_per_gbit": cpu / (one * time.as_secs_f64()),
    }))
}

/// Returns Gbit/s of payload that arrived.
async fn transfer(port: &Port, streams: usize, time: Duration) -> Result<f64, Error> {
    let start = Instant::now();
    let mut senders = Vec::new();
    for _ in 0..streams {
        let mut stream = port.connect((CONTAINER[1], PORT)).await?;
        senders.push(tokio::spawn(async move {
            stream.write_u8(0).await?;
            let octets = vec![7; 128 * 1024];
            while start.elapsed() < time {
                stream.write_all(&octets).await?;
            }
            stream.shutdown().await?;
            stream.read_u64().await
        }));
    }
    let mut received = 0;
    for sender in senders {
        received += sender.await??;
    }
    Ok(received as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
}

/// Returns how many datagrams of 64 octets arrive in a second.
async fn datagrams(port: &Port, time: Duration) -> Result<f64, Error> {
    let (socket, to) = (port.bind_udp(0)?, std::net::SocketAddrV4::new(CONTAINER[1], PORT));
    let start = Instant::now();
    while start.elapsed() < time {
        socket.send_to(&[7; 64], to).await?;
    }
    let mut buffer = [0; 64];
    for _ in 0..10 {
        socket.send_to(&[0], to).await?;
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(500), socket.recv_from(&mut buffer)).await {
            answer?;
            return Ok(u64::from_be_bytes(buffer[..8].try_into()?) as f64 / time.as_secs_f64());
        }
    }
    Err("the other node did not say how many datagrams arrived".into())
}
