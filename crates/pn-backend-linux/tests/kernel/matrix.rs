//! The reachability matrix: three nodes, three networks with the same addresses, twelve containers in each; everyone tries
//! everyone, by TCP and UDP, on ports picked at random. What may be reached is, and what may not is not, to the last pair.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use crate::hosts;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hosts::{Netns, Plane, Region, is_root};
use nix::sched::{CloneFlags, setns};
use pn_core::ContainerId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Runs something in a namespace, on a thread of its own.
fn within<T: Send + 'static>(netns: &Netns, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    let path = netns.path();
    std::thread::spawn(move || {
        setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// Who answers at an address and port.
type Answer = Option<String>;

const PATIENCE: Duration = Duration::from_secs(10);

/// Serves TCP and UDP on one port, saying who it is.
fn serve(netns: &Netns, who: ContainerId) -> u16 {
    let sockets = within(netns, || {
        loop {
            let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
                return (tcp, udp);
            }
        }
    });
    let (tcp, udp) = sockets.join().unwrap();
    let port = tcp.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            drop(stream.and_then(|mut stream| stream.write_all(who.to_string().as_bytes())));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            drop(udp.send_to(who.to_string().as_bytes(), from));
        }
    });
    port
}

fn ask_tcp(to: SocketAddr) -> Answer {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    let mut said = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_string(&mut said).ok()?;
    Some(said)
}

fn ask_udp(to: SocketAddr) -> Answer {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut buffer = [0; 64];
    // A port that nobody has is refused at once, by ICMP; a datagram that is lost is sent again.
    for _ in 0..5 {
        socket.send(b"who?").ok()?;
        match socket.recv(&mut buffer) {
            Ok(len) => return Some(String::from_utf8_lossy(&buffer[..len]).into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return None,
            Err(_) => {}
        }
    }
    panic!("{to} neither answers nor refuses");
}

/// Fills three networks on three nodes, four containers of each on each, and returns who listens where.
async fn fill(region: &mut Region) -> BTreeMap<ContainerId, (u128, Ipv4Addr)> {
    region.add_network(3, |_| ());
    let mut all = BTreeMap::new();
    for network in 1..=3 {
        for n in 0..12 {
            let container = region.add(network, n % 3 + 1).await;
            all.insert(container, (network, region.address(container)));
        }
    }
    region.apply().await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_matrix_of_kernel_nodes_is_the_models() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(3).await;
    let all = fill(&mut region).await;
    let ports: BTreeMap<ContainerId, u16> =
        all.keys().map(|container| (*container, serve(region.netns(*container), *container))).collect();
    let targets: Vec<SocketAddr> =
        all.iter().map(|(container, (_, address))| SocketAddr::from((*address, ports[container]))).collect();
    let asking: Vec<_> = all
        .keys()
        .map(|container| {
            let targets = targets.clone();
            let ask = move || targets.iter().map(|to| (*to, ask_tcp(*to), ask_udp(*to))).collect::<Vec<_>>();
            (*container, within(region.netns(*container), ask))
        })
        .collect();
    let (mut allowed, mut refused) = (0, 0);
    for (container, answers) in asking {
        let network = all[&container].0;
        for (to, tcp, udp) in answers.join().unwrap() {
            let at = all
                .iter()
                .find(|(other, (of, address))| *of == network && SocketAddr::from((*address, ports[other])) == to);
            let expected = at.map(|(other, _)| other.to_string());
            assert_eq!((&tcp, &udp), (&expected, &expected), "{container} of network {network} to {to}");
            *if expected.is_some() { &mut allowed } else { &mut refused } += 2;
        }
    }
    println!("{allowed} pairs allowed and reached, {refused} forbidden and refused");
    assert_eq!((allowed, refused), (3 * 12 * 12 * 2, 3 * 12 * 24 * 2));
    region.tear_down().await;
}

/// The same with one node in user space: its containers are sockets of this process.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_in_the_kernel_and_in_user_space_mix() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    region.add_user_space_node(3);
    let all = fill(&mut region).await;
    let Plane::UserSpace(backend) = &region.hosts[2].plane else { unreachable!("the third is in user space") };
    let is_kernel = |container: &ContainerId| region.state.container(*container).unwrap().node != region.hosts[2].id;
    let mut ports = BTreeMap::new();
    for container in all.keys() {
        let port = if is_kernel(container) {
            serve(region.netns(*container), *container)
        } else {
            let port = backend.port(*container).unwrap();
            let (number, who) = (20_000 + (container.as_u128() as u16), container.to_string());
            let (listener, socket) = (port.listen(number).unwrap(), port.bind_udp(number).unwrap());
            let says = who.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok((_, SocketAddr::V4(from))) = socket.recv_from(&mut buffer).await {
                    drop(socket.send_to(says.as_bytes(), from).await);
                }
            });
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    drop(stream.write_all(who.as_bytes()).await);
                }
            });
            number
        };
        ports.insert(*container, port);
    }
    let targets: Vec<SocketAddr> =
        all.iter().map(|(container, (_, address))| SocketAddr::from((*address, ports[container]))).collect();
    let (mut allowed, mut refused) = (0, 0);
    for (container, (network, _)) in &all {
        // By UDP, to those that may be reached; what may not be is tried by TCP below.
        for (other, (_, address)) in all.iter().filter(|(other, (of, _))| of == network && *other != container) {
            let to = std::net::SocketAddrV4::new(*address, ports[other]);
            let answer = if is_kernel(container) {
                let asking = within(region.netns(*container), move || ask_udp(to.into()));
                tokio::task::spawn_blocking(|| asking.join().unwrap()).await.unwrap()
            } else {
                let socket = backend.port(*container).unwrap().bind_udp(0).unwrap();
                let mut buffer = [0; 64];
                let mut answer = None;
                while answer.is_none() {
                    socket.send_to(b"who?", to).await.unwrap();
                    let received = tokio::time::timeout(Duration::from_secs(2), socket.recv_from(&mut buffer)).await;
                    answer = received
                        .ok()
                        .map(|received| String::from_utf8_lossy(&buffer[..received.unwrap().0]).into_owned());
                }
                answer
            };
            assert_eq!(answer, Some(other.to_string()), "{container} of network {network} to {to} by UDP");
        }
        let answers: Vec<Answer> = if is_kernel(container) {
            let targets = targets.clone();
            let asking = within(region.netns(*container), move || targets.into_iter().map(ask_tcp).collect());
            tokio::task::spawn_blocking(|| asking.join().unwrap()).await.unwrap()
        } else {
            let port = backend.port(*container).unwrap();
            let mut answers = Vec::new();
            for to in &targets {
                let SocketAddr::V4(to) = to else { unreachable!("IPv4") };
                let answer = async {
                    let mut stream = port.connect((*to.ip(), to.port())).await.ok()?;
                    let mut said = String::new();
                    stream.read_to_string(&mut said).await.ok()?;
                    Some(said)
                };
                answers.push(tokio::time::timeout(PATIENCE, answer).await.unwrap());
            }
            answers
        };
        for (to, tcp) in targets.iter().zip(answers) {
            let at = all
                .iter()
                .find(|(other, (of, address))| of == network && SocketAddr::from((*address, ports[other])) == *to);
            let expected = at.map(|(other, _)| other.to_string());
            // A socket of this process reaches itself, too.
            assert_eq!(tcp, expected, "{container} of network {network} to {to}");
            *if expected.is_some() { &mut allowed } else { &mut refused } += 1;
        }
    }
    assert_eq!((allowed, refused), (3 * 12 * 12, 3 * 12 * 24));
    region.tear_down().await;
}
