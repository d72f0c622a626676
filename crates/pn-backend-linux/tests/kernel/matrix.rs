//! The reachability matrix: three nodes, three networks with the same addresses, twelve containers in each; everyone tries
//! everyone, by TCP and UDP, on ports picked at random. What may be reached is, and what may not is not, to the last pair.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use crate::hosts;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hosts::{Netns, Plane, Region, is_root};
use nix::sched::{CloneFlags, setns};
use pn_backend_userspace::Port;
use pn_core::ContainerId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Runs something in a namespace, on a thread of its own.
pub(crate) fn within<T: Send + 'static>(
    netns: &Netns,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let path = netns.path();
    std::thread::spawn(move || {
        setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// Who answers at an address and port.
type Answer = Option<String>;

const PATIENCE: Duration = Duration::from_secs(10);

/// Serves TCP and UDP on one port that nobody else has in any network, saying who it is: an address and port is one container.
fn serve(netns: &Netns, who: ContainerId, taken: &BTreeMap<ContainerId, u16>) -> u16 {
    let taken: BTreeSet<u16> = taken.values().copied().collect();
    let sockets = within(netns, move || {
        loop {
            let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
            let at = tcp.local_addr().unwrap();
            if let (false, Ok(udp)) = (taken.contains(&at.port()), UdpSocket::bind(at)) {
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
    let mut ports = BTreeMap::new();
    for container in all.keys() {
        ports.insert(*container, serve(region.netns(*container), *container, &ports));
    }
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
            serve(region.netns(*container), *container, &ports)
        } else {
            let port = backend.port(*container).unwrap();
            let listener = std::iter::repeat_with(|| port.listen(0).unwrap())
                .find(|at| !ports.values().any(|taken| *taken == at.local_addr().port()));
            let (listener, who) = (listener.unwrap(), container.to_string());
            let number = listener.local_addr().port();
            let socket = port.bind_udp(number).unwrap();
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
    let mut asking = Vec::new();
    for container in all.keys() {
        if is_kernel(container) {
            let asked = targets.clone();
            let thread = within(region.netns(*container), move || ask_from_kernel(&asked));
            let answers = tokio::task::spawn_blocking(|| thread.join().unwrap());
            asking.push((*container, answers));
        } else {
            let port = backend.port(*container).unwrap();
            let asked: Vec<SocketAddrV4> =
                all.iter().map(|(to, (_, address))| SocketAddrV4::new(*address, ports[to])).collect();
            asking.push((*container, tokio::spawn(async move { ask_from_user_space(&port, &asked).await })));
        }
    }
    let (mut allowed, mut refused) = (0, 0);
    for (container, answers) in asking {
        let network = all[&container].0;
        for (to, (tcp, udp)) in targets.iter().zip(answers.await.unwrap()) {
            let at = all
                .iter()
                .find(|(other, (of, address))| *of == network && SocketAddr::from((*address, ports[other])) == *to);
            let expected = at.map(|(other, _)| other.to_string());
            // A socket of this process reaches itself, too.
            assert_eq!((&tcp, &udp), (&expected, &expected), "{container} of network {network} to {to}");
            *if expected.is_some() { &mut allowed } else { &mut refused } += 2;
        }
    }
    assert_eq!((allowed, refused), (3 * 12 * 12 * 2, 3 * 12 * 24 * 2));
    region.tear_down().await;
}

/// Asks everybody by TCP and by UDP. A container in user space does not say that nobody listens on a port of it, so all are
/// asked from one socket, which listens until everybody has answered that may, and a little longer.
fn ask_from_kernel(targets: &[SocketAddr]) -> Vec<(Answer, Answer)> {
    let by_tcp: Vec<Answer> = targets.iter().map(|to| ask_tcp(*to)).collect();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(LISTENING)).unwrap();
    let (mut buffer, mut heard) = ([0; 64], BTreeMap::new());
    loop {
        targets.iter().for_each(|to| drop(socket.send_to(b"who?", to)));
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            heard.insert(from, String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
        if targets.iter().zip(&by_tcp).all(|(to, by_tcp)| by_tcp.is_none() || heard.contains_key(to)) {
            return targets.iter().zip(by_tcp).map(|(to, by_tcp)| (by_tcp, heard.remove(to))).collect();
        }
    }
}

/// The same from sockets of this process.
async fn ask_from_user_space(port: &Port, targets: &[SocketAddrV4]) -> Vec<(Answer, Answer)> {
    let mut by_tcp = Vec::new();
    for to in targets {
        let ask = async {
            let mut stream = port.connect((*to.ip(), to.port())).await.ok()?;
            let mut said = String::new();
            stream.read_to_string(&mut said).await.ok()?;
            Some(said)
        };
        by_tcp.push(tokio::time::timeout(PATIENCE, ask).await.unwrap());
    }
    let socket = port.bind_udp(0).unwrap();
    let (mut buffer, mut heard) = ([0; 64], BTreeMap::new());
    loop {
        for to in targets {
            socket.send_to(b"who?", *to).await.unwrap();
        }
        while let Ok(received) = tokio::time::timeout(LISTENING, socket.recv_from(&mut buffer)).await {
            let (len, from) = received.unwrap();
            heard.insert(from, String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
        if targets.iter().zip(&by_tcp).all(|(to, by_tcp)| by_tcp.is_none() || heard.contains_key(&(*to).into())) {
            return targets.iter().zip(by_tcp).map(|(to, by_tcp)| (by_tcp, heard.remove(&(*to).into()))).collect();
        }
    }
}

/// How long an answer may take before everybody is asked again.
const LISTENING: Duration = Duration::from_millis(500);
