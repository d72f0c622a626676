//! What stays true under load, and for whoever means no good.

use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::net::{TcpStream as BlockingTcp, UdpSocket as BlockingUdp};
use std::time::Instant;

use fastrand::Rng;
use pn_core::Change;

use super::*;
use crate::fixture::Model;
use crate::wire::eye;

/// Asks over UDP until there is a reply: one datagram may be lost where the machine is busy.
fn ask(socket: &BlockingUdp, query: &[u8]) -> Vec<u8> {
    let mut reply = [0; 4096];
    for _ in 0..100 {
        socket.send(query).unwrap();
        while let Ok(len) = socket.recv(&mut reply) {
            // Replies to other queries of this socket come late, maybe with this id.
            if len > query.len() && reply[..2] == query[..2] && reply[12..query.len()] == query[12..] {
                return reply[..len].to_vec();
            }
        }
    }
    panic!("no reply to any of 100 queries");
}

fn client(server: &DnsServer) -> BlockingUdp {
    let socket = BlockingUdp::bind("127.0.0.1:0").unwrap();
    socket.connect(server.local_addr()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// A rolling restart that never ends: each generation has exactly one container of each of two types, with addresses that
/// belong to this generation alone. No answer is empty, and none has parts of two generations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d17_every_answer_belongs_to_one_generation() {
    let mut model = Model::new();
    model.app(1, 1, "web:2");
    // Generations take turns: the slots of even ones have lower addresses than those of odd ones.
    let sets: Vec<(ZoneSet, [Ipv4Addr; 2])> = (0..64)
        .map(|_| {
            let running: Vec<_> = model.state.containers(network(1)).map(|container| container.id).collect();
            let [a, b] = [1, 2].map(|index| {
                if let Some(container) = running.get(index as usize - 1) {
                    model.apply(Change::Fail(*container));
                }
                model.run(1, "web", index)
            });
            let addresses = [a, b].map(|container| model.state.container(container).unwrap().address);
            (model.zones(), addresses)
        })
        .collect();
    let allowed: Vec<[Ipv4Addr; 2]> = sets.iter().map(|(_, addresses)| *addresses).collect();
    let names = Arc::new(Names::new(1));
    publish(&names, &sets[0].0).await;
    let server = start(DnsServer::builder(network(1), Arc::clone(&names))).await;
    let (done, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let changes = if cfg!(debug_assertions) { 1000 } else { 10_000 };
    thread::scope(|scope| {
        for _ in 0..2 {
            let (server, allowed, done, asked) = (&server, &allowed, &done, &asked);
            scope.spawn(move || {
                let (socket, query) = (client(server), eye::query(&expand("ap1.pn1.^ A")));
                while !done.load(Ordering::Relaxed) {
                    let message = eye::read(&ask(&socket, &query));
                    let mut found = eye::addresses(&message);
                    found.sort_unstable();
                    let one = |addresses: &[Ipv4Addr; 2]| {
                        let mut addresses = *addresses;
                        addresses.sort_unstable();
                        found == addresses
                    };
                    assert!(allowed.iter().any(one), "{found:?} are of no generation");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Generations of the same contents, a thousand a second.
        let (begin, first) = (Instant::now(), sets.last().unwrap().0.generation.get());
        for n in 0..changes {
            let (set, _) = &sets[n as usize % sets.len()];
            let generation = pn_core::Generation::new(first + 1 + n);
            let published = futures_now(names.publish(&ZoneSet { generation, ..set.clone() }));
            assert!(published.into_result().is_ok());
            thread::sleep((begin + Duration::from_millis(n + 1)).saturating_duration_since(Instant::now()));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(asked.into_inner() > 100);
}

/// Runs a future that does not wait.
fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut future = core::pin::pin!(future);
    match future.as_mut().poll(&mut core::task::Context::from_waker(core::task::Waker::noop())) {
        core::task::Poll::Ready(value) => value,
        core::task::Poll::Pending => panic!("it waits"),
    }
}

/// Makes a query of one kind of badness or another.
fn hostile(rng: &mut Rng) -> Vec<u8> {
    let names = ["ap1.pn1.^", "1.web.ap1.pn1.^", "ap2.pn2.^", "example.com", "1.0.240.10.in-addr.arpa", "^"];
    let types = ["A", "AAAA", "ANY", "SOA", "AXFR", "PTR", "SRV", "65280"];
    let options = ["", "+do", "+payload=65535", "+version=9", "+nsid", "+cookie=0102030405060708"];
    let pick = |rng: &mut Rng, of: &[&'static str]| of[rng.usize(..of.len())];
    let text = format!("{} {} {}", pick(rng, &names), pick(rng, &types), pick(rng, &options));
    let mut query = match rng.u8(..4) {
        0 => (0..rng.usize(..600)).map(|_| rng.u8(..)).collect(),
        _ => eye::query(&expand(&text)),
    };
    for _ in 0..rng.usize(..4) {
        if !query.is_empty() {
            let at = rng.usize(..query.len());
            query[at] = rng.u8(..);
        }
    }
    if rng.u8(..4) == 0 {
        query.truncate(rng.usize(..=query.len()));
    }
    query
}

/// Resident memory of this process, in octets.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Random and mutated queries over UDP and TCP: nothing breaks, nothing grows, and good queries are answered as before.
async fn hostile_queries(count: u32) {
    let names = names().await;
    let server = start(DnsServer::builder(network(1), Arc::clone(&names))).await;
    let (socket, mut good) = (client(&server), eye::query(&expand("1.web.ap1.pn1.^ A")));
    good[..2].copy_from_slice(&[0xbe, 0xef]);
    let tcp = || {
        let stream = BlockingTcp::connect(server.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let (mut stream, mut rng) = (tcp(), Rng::with_seed(count.into()));
    let mut before = 0;
    for n in 0..count {
        let query = hostile(&mut rng);
        if n % 2 == 0 {
            // An empty datagram ends a batch's read in some kernels' tools, not here.
            socket.send(&query).unwrap();
        } else {
            use std::io::{Read, Write};
            // Now and then a length that lies, which ends the connection one way or the other.
            let lies = rng.u8(..16) == 0;
            let len = if lies { rng.u16(..) } else { query.len() as u16 };
            let sent = stream.write_all(&[&len.to_be_bytes(), &query[..]].concat());
            if lies || sent.is_err() {
                stream = tcp();
            } else if n % 64 == 1 {
                // What came back is read before it fills the buffers.
                stream.set_nonblocking(true).unwrap();
                while stream.read(&mut [0; 65536]).is_ok_and(|len| len > 0) {}
                stream.set_nonblocking(false).unwrap();
            }
        }
        if n % 500 == 0 {
            assert_eq!(eye::describe(&ask(&socket, &good)), "NoError aa A 5 10.240.0.1");
        }
        if n == count / 4 {
            before = resident();
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} octets more");
    assert_eq!(eye::describe(&ask(&socket, &good)), "NoError aa A 5 10.240.0.1");
    assert_eq!(answered(&server).await.peer_addr().unwrap(), server.local_addr());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_queries_break_nothing() {
    hostile_queries(50_000).await;
}

/// The long variant: `cargo test --release -p pn-dns -- --ignored a_million`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes a minute; the short variant is above"]
async fn a_million_hostile_queries_break_nothing() {
    hostile_queries(1_000_000).await;
}

/// Connections that never finish a query. As many as descriptors allow, up to 5 000, and each kept open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d13_slow_connections_stop_nobody() {
    let server = start(DnsServer::builder(network(1), names().await)).await;
    let (limit, _) = nix_limit();
    let count = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(400).min(5000);
    assert!(count >= 500, "{limit} descriptors are too few for this test: raise `ulimit -n`");
    let udp = client(&server);
    let good = eye::query(&expand("1.web.ap1.pn1.^ A"));
    let mut slow = Vec::new();
    for n in 0..count {
        let mut stream = connect(&server).await;
        // A length and a part of a query; the rest never comes.
        stream.write_all(&[0, 100, 1, 2, 3][..1 + n % 5]).await.unwrap();
        slow.push(stream);
        if n % 100 == 0 {
            assert_eq!(eye::describe(&ask(&udp, &good)), "NoError aa A 5 10.240.0.1");
            let mut stream = connect(&server).await;
            assert_eq!(ask_tcp(&mut stream, 1, "1.web.ap1.pn1.^").await.unwrap(), address(1), "after {n}");
        }
    }
    // One that keeps asking is not the one to go.
    let mut steady = answered(&server).await;
    for n in 0..300 {
        slow.push(connect(&server).await);
        if n % 50 == 0 {
            assert_eq!(ask_tcp(&mut steady, 1, "1.web.ap1.pn1.^").await.unwrap(), address(1));
        }
        if slow.len() + 400 > usize::try_from(limit).unwrap_or(usize::MAX) {
            slow.truncate(100);
        }
    }
    assert_eq!(eye::describe(&ask(&udp, &good)), "NoError aa A 5 10.240.0.1");
    server.shutdown().await;
}

/// Returns how many descriptors this process may have, after asking for as many as it can get.
fn nix_limit() -> (u64, u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    getrlimit(Resource::RLIMIT_NOFILE).unwrap()
}
