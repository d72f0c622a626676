//! K1: a session is renewed after two minutes, and nothing that crosses meanwhile is lost.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod cluster;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::Cluster;
use pn_backend_userspace::{UserspaceBackend, probe};
use pn_overlay::DropReason;
use tokio::time::{sleep, timeout};

/// When load begins: shortly before a session is old enough to be renewed, which is after 120 s (WireGuard's
/// `REKEY_AFTER_TIME`).
const NEARLY: Duration = Duration::from_secs(115);
const RENEWED_BY: Duration = Duration::from_secs(130);

/// How often a datagram is sent.
const PACE: Duration = Duration::from_millis(1);

/// TCP as fast as it goes, compared octet by octet, and datagrams of a steady pace, of which every one arrives.
#[tokio::test(flavor = "multi_thread")]
async fn k1_traffic_crosses_the_renewal_of_a_session_with_no_loss() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = (cluster.add(1, 1), cluster.add(1, 2));
    cluster.apply().await;
    let [first, second] = cluster.region.nodes() else { panic!("there are two nodes") };
    let [first, second] = [first, second].map(|node| node.backend.clone());
    let (a, b) = (first.port(a).unwrap(), second.port(b).unwrap());
    let sent: Arc<[u8]> = (0..16_000_000u32).map(|n| (n ^ n >> 9) as u8).collect();
    assert!(probe::tcp(&a, &b, 80, b"hello").await.unwrap() == b"hello");
    let began = Instant::now();
    sleep(NEARLY.saturating_sub(age(&first).await)).await;
    let old = age(&first).await;
    assert!(old >= NEARLY - Duration::from_secs(1) && old < Duration::from_secs(120), "{old:?}");

    let is_over = Arc::new(AtomicBool::new(false));
    let datagrams = tokio::spawn({
        let (is_over, a, b) = (Arc::clone(&is_over), a.clone(), b.clone());
        async move {
            let (sender, receiver) = (a.bind_udp(0).unwrap(), b.bind_udp(53).unwrap());
            let (mut count, mut arrived, mut buffer) = (0u32, BTreeSet::new(), [0; 1000]);
            while !is_over.load(Ordering::Relaxed) {
                sender.send_to(&count.to_be_bytes(), (b.address(), 53)).await.unwrap();
                count += 1;
                while let Ok(received) = timeout(PACE, receiver.recv_from(&mut buffer)).await {
                    assert_eq!(received.unwrap().0, 4);
                    assert!(arrived.insert(u32::from_be_bytes(*buffer.first_chunk().unwrap())), "one came twice");
                }
            }
            while let Ok(received) = timeout(Duration::from_millis(500), receiver.recv_from(&mut buffer)).await {
                assert_eq!(received.unwrap().0, 4);
                assert!(arrived.insert(u32::from_be_bytes(*buffer.first_chunk().unwrap())), "one came twice");
            }
            (count, arrived.len())
        }
    });
    let (mut octets, mut port) = (0, 1000);
    // A little beyond the renewal, so that the new session carries load, too.
    while age(&first).await > Duration::from_secs(2) || age(&first).await < Duration::from_secs(1) {
        assert!(began.elapsed() < RENEWED_BY, "the session is {:?} old", age(&first).await);
        port += 1;
        let received = timeout(Duration::from_secs(20), probe::tcp(&a, &b, port, &sent)).await.unwrap().unwrap();
        assert!(*received == *sent, "other octets arrived");
        octets += received.len();
    }
    is_over.store(true, Ordering::Relaxed);
    let (count, arrived) = datagrams.await.unwrap();
    eprintln!("{octets} octets and {arrived} of {count} datagrams crossed");
    assert_eq!(arrived, count as usize);
    assert!(count > 1000, "{count} datagrams");
    for backend in [first, second] {
        for reason in [DropReason::NoSession, DropReason::Decrypt, DropReason::Replay, DropReason::Unanswered] {
            assert_eq!(backend.drops().get(reason), 0, "{reason}");
        }
    }
}

/// Returns how old the session with the only peer is.
async fn age(backend: &UserspaceBackend) -> Duration {
    backend.peers().await.unwrap().into_iter().find_map(|peer| peer.handshake_age).unwrap()
}
