//! A network with IPv6 that has a node in the kernel and one in user space.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use pn_backend_userspace::TunPort;
use pn_core::{Families, Ipv6Prefix};
use pn_overlay::DropReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::hosts::{Plane, Region, is_root, network};
use crate::matrix::within;
use crate::mtu::check;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_crosses_between_a_node_in_the_kernel_and_one_in_user_space() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(1).await;
    region.add_user_space_node(2);
    region.add_network(3, |request| request.families = Families::DualStack);
    let (kernel, tun, socket) = (region.add(3, 1).await, region.add(3, 2).await, region.add(3, 2).await);
    region.apply().await;
    let Plane::UserSpace(backend) = &region.hosts[1].plane else { unreachable!("the second is in user space") };
    backend.attach(tun, TunPort::in_netns(region.netns(tun).path())).await.unwrap();
    let prefix = Ipv6Prefix::of_network(network(3));
    let addresses =
        |container| [region.address(container).into(), IpAddr::from(prefix.address(region.address(container)))];

    for (from, to) in [(kernel, tun), (tun, kernel)] {
        for (to, headers) in addresses(to).into_iter().zip([28, 48]) {
            check(&region, from, &to.to_string(), 1390, headers);
        }
    }
    // The bridge knows where its neighbours are, and says so again.
    region.netns(kernel).sh("ip -6 neigh flush dev pn0");
    assert!(region.netns(kernel).works(&format!("ping -6 -c 1 -W 10 {}", addresses(tun)[1])));

    let port = backend.port(socket).unwrap();
    let body: Vec<u8> = (0..1_000_000u32).map(|n| (n / 251 * 7 + n) as u8).collect();
    for (own, other) in addresses(socket).into_iter().zip(addresses(kernel)) {
        // From the kernel to a socket of this process, and back.
        let listener = port.listen(0).unwrap();
        let to = SocketAddr::new(own, listener.local_addr().port());
        let sent = body.clone();
        let client = within(region.netns(kernel), move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let (mut stream, from) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        assert_eq!(from.ip(), other);
        let mut received = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap().unwrap();
        stream.write_all(&received).await.unwrap();
        drop(stream);
        assert!(tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap() == body, "{own}");

        // A connection the other way, and datagrams in pieces.
        let server = within(region.netns(kernel), move || {
            let (tcp, udp) = (TcpListener::bind((other, 0)).unwrap(), UdpSocket::bind((other, 0)).unwrap());
            udp.set_read_timeout(Some(PATIENCE)).unwrap();
            (tcp, udp)
        });
        let (tcp, udp) = server.join().unwrap();
        let (to_tcp, to_udp) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            tcp.accept().unwrap().0.write_all(b"welcome").unwrap();
            let mut buffer = vec![0; 70_000];
            let (len, from) = udp.recv_from(&mut buffer).unwrap();
            udp.send_to(&buffer[..len], from).unwrap();
        });
        let mut welcome = String::new();
        let mut stream = timeout(PATIENCE, port.connect(to_tcp)).await.unwrap().unwrap();
        timeout(PATIENCE, stream.read_to_string(&mut welcome)).await.unwrap().unwrap();
        assert_eq!(welcome, "welcome");
        let datagrams = port.bind_udp(0).unwrap();
        datagrams.send_to(&body[..60_000], to_udp).await.unwrap();
        let mut buffer = vec![0; 70_000];
        let (len, from) = timeout(PATIENCE, datagrams.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert!(from == to_udp && buffer[..len] == body[..60_000], "{len} octets from {from}");
        serving.join().unwrap();
    }
    for reason in [DropReason::ForgedSource, DropReason::UnknownDestination, DropReason::TooBig] {
        assert_eq!(backend.drops().get(reason), 0, "{reason}");
    }
    region.tear_down().await;
}
