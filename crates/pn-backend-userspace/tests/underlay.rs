//! Underlays that lose, repeat, reorder and change their ways, of both IP versions.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;
mod namespace;
mod way;

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use namespace::{Namespace, octets, transfer};
use pn_backend_userspace::{Port, TunPort, probe};
use pn_overlay::DropReason;
use tokio::time::timeout;
use way::{Nodes, Quality, Way};

const LIMIT: Duration = Duration::from_secs(30);

/// TCP and UDP, by IPv4 and IPv6, over underlays of both versions that are bad in every way, between interfaces.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_underlay_loses_repeats_and_reorders_arrives_once_and_in_order() {
    if !namespace::is_root() {
        return;
    }
    for (listen, quality) in underlays() {
        let mut nodes = Nodes::start(listen).await;
        let way = Way::between(nodes.addresses(), quality);
        nodes.go(&way).await;
        let [at_first, at_second] = [0, 1].map(|n| addresses(&nodes.port(n)));
        let inside = [0; 2].map(|_| Namespace::new());
        for (n, inside) in inside.iter().enumerate() {
            nodes.backends[n].attach(nodes.containers[n], TunPort::in_netns(inside.path())).await.unwrap();
        }
        for (from, to) in at_first.into_iter().zip(at_second) {
            transfer(&inside[0], &inside[1], to, 80, 1_000_000).await;
            transfer(&inside[1], &inside[0], from, 80, 1_000_000).await;
            let sender = inside[0].run(move || UdpSocket::bind((from, 0)).unwrap()).await;
            let receiver = inside[1].run(move || UdpSocket::bind((to, 53)).unwrap()).await;
            let arrived = tokio::task::spawn_blocking(move || datagrams(&sender, &receiver));
            check(timeout(LIMIT, arrived).await.unwrap().unwrap(), quality, &format!("{listen} {quality:?} {to}"));
        }
        let replays = nodes.backends.iter().map(|backend| backend.drops().get(DropReason::Replay)).sum::<u64>();
        assert_eq!(replays > 0, quality.repeats, "{listen} {quality:?}: {replays} were delivered twice");
    }
}

/// The same between sockets of this process.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_underlay_loses_repeats_and_reorders_arrives_at_sockets_of_this_process() {
    for (listen, quality) in underlays() {
        let mut nodes = Nodes::start(listen).await;
        let way = Way::between(nodes.addresses(), quality);
        nodes.go(&way).await;
        let [a, b] = [0, 1].map(|n| nodes.port(n));
        let sent = octets(1_000_000, 5);
        for to in addresses(&b) {
            let what = format!("{listen} {quality:?} {to}");
            let received = timeout(LIMIT, probe::tcp_to(&a, &b, (to, 80).into(), &sent)).await.expect(&what).unwrap();
            assert!(received == sent, "{what}: {} octets arrived, or others", received.len());
            check(echo(&a, &b, to, DATAGRAMS, async |_| ()).await, quality, &what);
        }
    }
}

/// Every underlay there is to try.
fn underlays() -> impl Iterator<Item = (&'static str, Quality)> {
    ["127.0.0.1:0", "[::1]:0"].into_iter().flat_map(|listen| Quality::BAD.map(|quality| (listen, quality)))
}

fn addresses(port: &Port) -> [IpAddr; 2] {
    [port.address().into(), port.ipv6().unwrap().into()]
}

/// Checks how many datagrams arrived: what is not lost does, and is lost with any of its pieces.
fn check(arrived: BTreeSet<u32>, quality: Quality, what: &str) {
    let least = if quality.loses { DATAGRAMS * 9 / 10 } else { DATAGRAMS };
    assert!(arrived.len() >= least as usize, "{what}: {} of {DATAGRAMS} datagrams", arrived.len());
}

/// Sends numbered datagrams of many sizes, each once the one before is there or seems lost, and returns the numbers of those
/// that arrived.
fn datagrams(sender: &UdpSocket, receiver: &UdpSocket) -> BTreeSet<u32> {
    let body = |number: u32| octets(number as usize * 37 % 4000, number.into());
    let (to, mut arrived, mut buffer) = (receiver.local_addr().unwrap(), BTreeSet::new(), [0; 5000]);
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for number in 0..DATAGRAMS {
        sender.send_to(&[&number.to_be_bytes()[..], &body(number)].concat(), to).unwrap();
        while !arrived.contains(&number)
            && let Ok((len, _)) = receiver.recv_from(&mut buffer)
        {
            let (number, rest) = buffer[..len].split_first_chunk().unwrap();
            let number = u32::from_be_bytes(*number);
            assert!(rest == body(number), "{number} is not as it was sent");
            assert!(arrived.insert(number), "{number} came twice");
        }
    }
    arrived
}

/// How many datagrams are sent at a time.
const DATAGRAMS: u32 = 300;

/// Sends numbered datagrams and has them echoed, some at a time; calls `at` after each that came back.
async fn echo(from: &Port, to: &Port, at_address: IpAddr, count: u32, mut at: impl AsyncFnMut(u32)) -> BTreeSet<u32> {
    let (client, server) = (from.bind_udp(7).unwrap(), to.bind_udp(7).unwrap());
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = server.recv_from(&mut buffer).await {
            server.send_to(&buffer[..len], from).await.unwrap();
        }
    });
    let (mut back, mut buffer) = (BTreeSet::new(), [0; 2000]);
    for n in 0..count {
        client.send_to(&[&n.to_be_bytes()[..], &[n as u8; 1000]].concat(), (at_address, 7)).await.unwrap();
        // As many are on their way as every queue has room for.
        while n + 1 == count || back.len() + 32 < n as usize {
            let Ok(received) = timeout(Duration::from_secs(1), client.recv_from(&mut buffer)).await else {
                break;
            };
            let number = u32::from_be_bytes(*buffer.first_chunk().unwrap());
            assert!(buffer[4..received.unwrap().0].iter().all(|octet| *octet == number as u8));
            assert!(back.insert(number), "{number} came twice");
            at(number).await;
            if back.len() == count as usize {
                break;
            }
        }
    }
    echo.abort();
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_change_and_roam_under_load_lose_nothing() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut nodes = Nodes::start(listen).await;
        let ways = [0; 3].map(|_| Way::between(nodes.addresses(), Quality::GOOD));
        nodes.go(&ways[0]).await;
        let [a, b] = [0, 1].map(|n| nodes.port(n));
        // The first node is told of another way; to the second the first moves without a word.
        let back = echo(&a, &b, b.address().into(), 5000, async |number| {
            if number % 250 == 0 {
                nodes.redirect(0, ways[number as usize / 250 % 3].addresses[0]).await;
            }
        });
        assert_eq!(timeout(LIMIT, back).await.unwrap().len(), 5000, "{listen}");
    }
}

/// TCP as fast as it goes between interfaces, and datagrams of a steady pace of which every one arrives, while one node's way to
/// the other changes a hundred times, and the other notices by itself.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_change_and_roam_under_full_load_lose_nothing() {
    if !namespace::is_root() {
        return;
    }
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut nodes = Nodes::start(listen).await;
        let ways = [0; 3].map(|_| Way::between(nodes.addresses(), Quality::GOOD));
        nodes.go(&ways[0]).await;
        let to = addresses(&nodes.port(1))[0];
        let inside = [0; 2].map(|_| Namespace::new());
        for (n, inside) in inside.iter().enumerate() {
            nodes.backends[n].attach(nodes.containers[n], TunPort::in_netns(inside.path())).await.unwrap();
            // What one way still has when another is taken is overtaken, and is no more than what replays are told apart in.
            let (done, said) = inside.try_run("sysctl", &["-w", "net.ipv4.tcp_rmem=4096 131072 262144"]);
            assert!(done, "{said}");
        }
        let receiver = inside[1].run(move || UdpSocket::bind((to, 53)).unwrap()).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let sender = inside[0].spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                (0u32..).take_while(|_| !is_over.load(Ordering::Relaxed)).fold(0, |count, n| {
                    socket.send_to(&n.to_be_bytes(), (to, 53)).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                    count + 1
                })
            }
        });
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let arrived = std::thread::spawn(move || {
            let mut octets = [0; 4];
            let numbers = std::iter::from_fn(|| receiver.recv(&mut octets).ok().map(|_| u32::from_be_bytes(octets)));
            numbers.fold((BTreeSet::new(), 0), |(mut set, count), number| {
                set.insert(number);
                (set, count + 1)
            })
        });
        let changes = async {
            for n in 1..=100 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                nodes.redirect(0, ways[n % 3].addresses[0]).await;
            }
            is_over.store(true, Ordering::Relaxed);
        };
        let load = async {
            let mut octets = 0;
            while !is_over.load(Ordering::Relaxed) {
                transfer(&inside[0], &inside[1], to, 80, 20_000_000).await;
                octets += 20_000_000u64;
            }
            octets
        };
        let ((), octets) = tokio::join!(changes, load);
        let (sent, (arrived, count)) = (sender.join().unwrap(), arrived.join().unwrap());
        eprintln!("{listen}: {octets} octets and {count} of {sent} datagrams crossed");
        assert_eq!((arrived.len(), count), (sent, sent), "{listen}");
        for backend in &nodes.backends {
            for reason in [DropReason::NoSession, DropReason::Decrypt, DropReason::Replay, DropReason::Unanswered] {
                assert_eq!(backend.drops().get(reason), 0, "{listen}: {reason}");
            }
        }
    }
}
