//! What stays true under load, and for whoever means no good.

use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::BTreeSet;
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

/// Containers that come and go without an end, a thousand generations a second under full load: each generation has two, with
/// addresses of its own. Every query is answered, and with the addresses of one generation: one that was published between the query
/// and its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d17_every_answer_belongs_to_one_generation() {
    let mut model = Model::new();
    model.app(1, 1, &format!("web:{}", 2 * GENERATIONS));
    let sets: Vec<(ZoneSet, [Ipv4Addr; 2])> = (0..GENERATIONS)
        .map(|generation| {
            let running: Vec<_> = model.state.containers(network(1)).map(|container| container.id).collect();
            running.into_iter().for_each(|container| model.apply(Change::Fail(container)));
            // A slot of old would get its old address back.
            let mut addresses = [1, 2].map(|n| {
                let index = 2 * generation + n;
                let container = model.run(1, "web", index);
                model.state.container(container).unwrap().address
            });
            addresses.sort_unstable();
            (model.zones(), addresses)
        })
        .collect();
    let distinct: BTreeSet<Ipv4Addr> = sets.iter().flat_map(|(_, addresses)| *addresses).collect();
    assert_eq!(distinct.len(), 2 * sets.len(), "no generation has an address of another");
    let names = Arc::new(Names::new(1));
    publish(&names, &sets[0].0).await;
    let server = start(DnsServer::builder(network(1), Arc::clone(&names))).await;
    // The last generation of which the publication has begun, and ended.
    let (begun, ended, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let answered = AtomicU64::new(0);
    let changes = if cfg!(debug_assertions) { 2000 } else { 10_000 };
    let took = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (socket, mut query) = (client(&server), eye::query(&expand("ap1.pn1.^ A")));
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut reply = [0; 512];
                while !done.load(Ordering::SeqCst) {
                    let first = ended.load(Ordering::SeqCst);
                    for id in 0..32u8 {
                        query[1] = id;
                        socket.send(&query).unwrap();
                    }
                    for _ in 0..32 {
                        let len = socket.recv(&mut reply).expect("every query is answered");
                        let mut found = eye::addresses(&eye::read(&reply[..len]));
                        found.sort_unstable();
                        let between = first..=begun.load(Ordering::SeqCst);
                        let count = between.clone().filter(|n| sets[*n as usize % sets.len()].1[..] == found).count();
                        // More only where the machine stood still until the generations began again.
                        let again = between.clone().count() > sets.len();
                        assert!(
                            count == 1 || count > 1 && again,
                            "{found:?} are of {count} generations of {between:?}"
                        );
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let (begin, generation) = (Instant::now(), sets.last().unwrap().0.generation.get());
        for n in 1..=changes {
            let (set, _) = &sets[n as usize % sets.len()];
            let generation = pn_core::Generation::new(generation + n);
            begun.store(n, Ordering::SeqCst);
            let published = futures_now(names.publish(&ZoneSet { generation, ..set.clone() }));
            assert!(!published.is_unchanged() && published.into_result().is_ok());
            ended.store(n, Ordering::SeqCst);
            thread::sleep((begin + Duration::from_millis(n)).saturating_duration_since(Instant::now()));
        }
        done.store(true, Ordering::SeqCst);
        begin.elapsed()
    });
    let answered = answered.into_inner();
    println!("{changes} generations and {answered} answers in {took:?}");
    assert!(took < Duration::from_millis(changes + 1000), "not a thousand a second: {changes} in {took:?}");
    assert!(answered > 2 * changes, "{answered} answers are no load");
}

/// How many generations there are before the first comes again.
const GENERATIONS: u32 = 128;

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

/// Asks a good query at a steady rate until told to stop, and returns how many answers came in a second.
fn steady_rate(server: &DnsServer, per_second: u32, stop: &AtomicBool) -> f64 {
    let (socket, mut query) = (client(server), eye::query(&expand("1.web.ap1.pn1.^ A")));
    socket.set_nonblocking(true).unwrap();
    let (begin, mut sent, mut answered, mut reply) = (Instant::now(), 0u32, 0u32, [0; 512]);
    let mut receive = |answered: &mut u32| {
        while let Ok(len) = socket.recv(&mut reply) {
            assert_eq!(eye::describe(&reply[..len]), "NoError aa A 5 10.240.0.1");
            *answered += 1;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let due = (begin.elapsed().as_secs_f64() * f64::from(per_second)) as u32;
        while sent < due {
            query[..2].copy_from_slice(&(sent as u16).to_be_bytes());
            // What the socket does not take is not answered, and counts as such.
            let _ = socket.send(&query);
            sent += 1;
            receive(&mut answered);
        }
        receive(&mut answered);
        thread::sleep(Duration::from_micros(200));
    }
    let took = begin.elapsed();
    let last = Instant::now() + Duration::from_secs(2);
    while answered < sent && Instant::now() < last {
        receive(&mut answered);
        thread::sleep(Duration::from_millis(1));
    }
    f64::from(answered) / took.as_secs_f64()
}

/// Sends random and mutated queries over UDP and TCP, and says what they add to the memory after the first quarter.
fn assault(server: &DnsServer, count: u32) -> u64 {
    let socket = client(server);
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
        if n == count / 4 {
            before = resident();
        }
    }
    resident().saturating_sub(before)
}

/// Random and mutated queries over UDP and TCP: nothing breaks, nothing grows, and good queries are answered at their rate.
async fn hostile_queries(count: u32) {
    let server = start(DnsServer::builder(network(1), names().await)).await;
    let per_second = if cfg!(debug_assertions) { 500 } else { 5000 };
    let rate_while = |work: &mut dyn FnMut()| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let rate = scope.spawn(|| steady_rate(&server, per_second, &stop));
            work();
            stop.store(true, Ordering::Relaxed);
            rate.join().unwrap()
        })
    };
    let alone = rate_while(&mut || thread::sleep(Duration::from_secs(1)));
    let (begin, mut grown) = (Instant::now(), 0);
    let beside = rate_while(&mut || grown = assault(&server, count));
    let took = begin.elapsed();
    println!(
        "{count} hostile queries in {took:?}: {grown} octets more, good answers {alone:.0}/s before and {beside:.0}/s"
    );
    assert!(beside >= 0.9 * alone, "good answers: {alone}/s before, {beside}/s beside hostile queries");
    assert!(grown < 16 << 20, "{grown} octets more");
    // So many sockets meet every thread of the server.
    let good = eye::query(&expand("1.web.ap1.pn1.^ A"));
    for _ in 0..16 {
        assert_eq!(eye::describe(&ask(&client(&server), &good)), "NoError aa A 5 10.240.0.1");
    }
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

/// Connections that never finish a query, 5 000 of them, and each kept open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d13_slow_connections_stop_nobody() {
    let limit = descriptors();
    if limit < SLOW as u64 + 1000 {
        assert_ne!(std::env::var("PN_REQUIRE_ROOT").as_deref(), Ok("1"), "{limit} descriptors: raise `ulimit -n`");
        println!("ignored: {limit} descriptors are too few for {SLOW} connections");
        return;
    }
    let server = start(DnsServer::builder(network(1), names().await)).await;
    let (udp, good) = (client(&server), eye::query(&expand("1.web.ap1.pn1.^ A")));
    // One that keeps asking is not the one to go.
    let mut steady = answered(&server).await;
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let mut stream = connect(&server).await;
        // A length and a part of a query; the rest never comes.
        stream.write_all(&[0, 100, 1, 2, 3][..1 + n % 5]).await.unwrap();
        slow.push(stream);
        if n % 100 == 0 {
            assert_eq!(eye::describe(&ask(&udp, &good)), "NoError aa A 5 10.240.0.1");
            let mut other = connect(&server).await;
            for stream in [&mut steady, &mut other] {
                assert_eq!(ask_tcp(stream, 1, "1.web.ap1.pn1.^").await.unwrap(), address(1), "after {n}");
            }
        }
    }
    assert_eq!(eye::describe(&ask(&udp, &good)), "NoError aa A 5 10.240.0.1");
    server.shutdown().await;
}

const SLOW: usize = 5000;

/// Returns how many descriptors this process may have, after asking for as many as it can get.
fn descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard
}
