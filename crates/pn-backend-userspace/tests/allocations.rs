//! Packets between sockets in this process cross without a piece of the heap for each, which a count of every piece shows.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster::Cluster;
use pn_backend_userspace::{Direction, Port, UnderlayTap};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// Longer than anything here takes; what hangs fails.
const LIMIT: Duration = Duration::from_secs(60);

/// The system's allocator, which counts what drivers ask of it, and what others do.
struct Counting;

static BY_DRIVERS: AtomicU64 = AtomicU64::new(0);
static BY_OTHERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread that ends is nobody's any more.
    let is_driver = IS_DRIVER.try_with(Cell::get).unwrap_or(false);
    if is_driver { &BY_DRIVERS } else { &BY_OTHERS }.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: everything is the system's allocator's answer to the same request.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is this function's own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `System` gave out the piece.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`, and `System` gave out the piece.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Tells drivers from other threads: they are who sees datagrams.
#[derive(Debug)]
struct Teller;

impl UnderlayTap for Teller {
    fn datagram(&self, _: Direction, _: SocketAddr, _: &[u8]) {
        IS_DRIVER.set(true);
    }
}

/// Sends datagrams, as many at a time as a receiver has room for, and receives them.
async fn datagrams(from: &Port, to: &Port, count: usize, len: usize) {
    const WINDOW: usize = 50;
    let (sender, receiver) = (from.bind_udp(0).unwrap(), to.bind_udp(0).unwrap());
    let target = SocketAddrV4::new(to.address(), receiver.local_addr().port());
    let (payload, mut buffer) = (vec![7; len], vec![0; len]);
    for _ in 0..count / WINDOW {
        for _ in 0..WINDOW {
            sender.send_to(&payload, target).await.unwrap();
        }
        for _ in 0..WINDOW {
            let (received, from) = timeout(LIMIT, receiver.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!((received, from), (len, sender.local_addr()));
        }
    }
}

/// Sends octets over a new connection.
async fn stream(from: &Port, to: &Port, octets: usize) {
    let listener = to.listen(0).unwrap();
    let (sender, accepted) =
        timeout(LIMIT, async { tokio::join!(from.connect(listener.local_addr()), listener.accept()) }).await.unwrap();
    let (mut sender, (mut receiver, _)) = (sender.unwrap(), accepted.unwrap());
    let (payload, mut buffer) = (vec![7; octets], vec![0; octets]);
    let both = async { tokio::join!(sender.write_all(&payload), receiver.read_exact(&mut buffer)) };
    let (sent, received) = timeout(LIMIT, both).await.unwrap();
    sent.unwrap();
    received.unwrap();
}

#[tokio::test]
async fn nothing_is_allocated_for_a_packet() {
    let mut cluster = Cluster::start_with_tap(2, Some(Arc::new(Teller))).await;
    let (a, neighbour, far) = (cluster.add(1, 1), cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let [a, neighbour, far] = [a, neighbour, far].map(|container| cluster.port(container));
    for (what, to) in [("between nodes", &far), ("on one node", &neighbour)] {
        for len in [64, 1300] {
            // Until every buffer is as large as it gets.
            datagrams(&a, to, 1000, len).await;
            let before = [&BY_DRIVERS, &BY_OTHERS].map(|count| count.load(Ordering::Relaxed));
            datagrams(&a, to, 10_000, len).await;
            let [drivers, others] = [&BY_DRIVERS, &BY_OTHERS].map(|count| count.load(Ordering::Relaxed));
            let asked = [drivers - before[0], others - before[1]];
            assert!(asked[0] < 100 && asked[1] < 200, "{what}, {len} octets: {asked:?} for 10 000 datagrams");
        }
        stream(&a, to, 1_000_000).await;
        let before = BY_DRIVERS.load(Ordering::Relaxed);
        stream(&a, to, 10_000_000).await;
        let asked = BY_DRIVERS.load(Ordering::Relaxed) - before;
        assert!(asked < 200, "{what}: {asked} for 10 MB over TCP");
    }
}
