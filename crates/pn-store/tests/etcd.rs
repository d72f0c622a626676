//! The etcd store against a real etcd.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that fails says why, and figures are for people")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, Followed, NetworkId, NetworkRequest, Node, NodeId, PlanSource as _,
    Project, ProjectId, PublicKey, Region, Slot, Terms, Timestamp,
};
use pn_store::{
    EtcdOptions, EtcdStore, Follower, Key, Outcome, Prefixed, Registry, Revision, Store, StoreErrorKind, StoreExt,
    Transaction, conformance, connect,
};
use tokio::time::{sleep, timeout};

use self::common::Etcd;

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

async fn put(store: &(impl Store + ?Sized), name: &str, value: &str) -> Revision {
    match store.commit(Transaction::new().put(key(name), value)).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Refused => unreachable!("there are no preconditions"),
    }
}

/// Opens a store in a cluster that begins: its members choose a leader first.
async fn until_connected(url: &str) -> Arc<dyn Store> {
    loop {
        match connect(url).await {
            Ok(store) => return store,
            Err(error) => println!("not yet: {error}"),
        }
    }
}

fn url_of(endpoints: &[SocketAddr]) -> String {
    format!("etcd://{}/p", endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn it_obeys_the_laws_of_stores() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = EtcdStore::connect(&[etcd.client.to_string()], EtcdOptions::default()).await.unwrap();
    let stores = Arc::new(AtomicU32::new(0));
    conformance::store(|| async {
        let part = stores.fetch_add(1, Ordering::Relaxed);
        Prefixed::new(store.clone(), key(&format!("law-{part}/")))
    })
    .await;
}

#[tokio::test]
async fn what_is_written_is_what_etcdctl_reads() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = connect(&etcd.url("region")).await.unwrap();
    put(&*store, "a/b", "text").await;
    assert_eq!(etcd.ctl(&["get", "--prefix", ""]), "region/a/b\ntext\n");
    etcd.ctl(&["put", "region/a/c", "theirs"]);
    let (_, entry) = store.get_one(&key("a/c")).await.unwrap();
    assert_eq!(entry.unwrap().value, b"theirs");
    etcd.ctl(&["put", "region/a/x y", "no key of ours"]);
    assert_eq!(store.list_all(&key("a/"), None).await.unwrap_err().kind(), StoreErrorKind::Corrupt);
}

#[tokio::test]
async fn an_etcd_that_stops_ends_watches_and_comes_back() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let store = connect(&etcd.url("p")).await.unwrap();
    let first = put(&*store, "k", "1").await;
    let mut watch = store.watch(&key("k"), first.next()).await.unwrap();
    etcd.kill();
    let error = timeout(Duration::from_secs(30), watch.next()).await.expect("it is said").unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = store.get(&[key("k")]).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (StoreErrorKind::Unavailable, true));

    etcd.restart().await;
    let second = loop {
        // The connection comes back by itself.
        match store.commit(Transaction::new().put(key("k"), "2")).await {
            Ok(Outcome::Committed(revision)) => break revision,
            Ok(Outcome::Refused) => unreachable!("there are no preconditions"),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    };
    let mut watch = store.watch(&key("k"), first.next()).await.unwrap();
    let batch = timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap();
    assert!(batch.revision <= second);
    assert_eq!(batch.events[0].before.as_ref().unwrap().value, b"1");
}

/// A server ends the connection of whoever asks it more often than it likes whether it is there; a server that hangs says nothing.
#[tokio::test]
async fn a_quiet_watch_goes_on_until_the_server_is_gone() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = connect(&etcd.url("p")).await.unwrap();
    let mut watch = store.watch(&key("k"), Revision::ZERO).await.unwrap();
    let quiet = timeout(Duration::from_secs(30), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    etcd.ctl(&["put", "p/k", "1"]);
    let batch = timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap();
    assert_eq!(batch.events.len(), 1);

    etcd.signal("STOP");
    let error = timeout(Duration::from_secs(20), watch.next()).await.expect("it is noticed").unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn history_compacted_by_somebody_else_is_reported() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = connect(&etcd.url("p")).await.unwrap();
    let first = put(&*store, "k", "1").await;
    let last = put(&*store, "k", "2").await;
    etcd.ctl(&["compact", &last.to_string()]);
    let error = match store.watch(&key("k"), first).await {
        Ok(mut watch) => watch.next().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), StoreErrorKind::Compacted);
}

#[tokio::test]
async fn name_and_password_are_asked_for() {
    let Some(etcd) = Etcd::start().await else { return };
    etcd.ctl(&["user", "add", "root:p@ss:word"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let store = connect(&format!("etcd://root:p%40ss%3aword@{}/p", etcd.client)).await.unwrap();
    put(&*store, "k", "1").await;
    for url in [format!("etcd://root:wrong@{}/p", etcd.client), etcd.url("p")] {
        let error = connect(&url).await.unwrap_err();
        let pn_store::ConnectError::Store(error) = error else { panic!("{error}") };
        assert_eq!(error.kind(), StoreErrorKind::Denied, "{error:?}");
        assert!(!format!("{error:?}").contains("wrong"), "passwords are not shown");
    }
}

#[tokio::test]
async fn tls_is_spoken_and_both_sides_are_checked() {
    let certified = |dir: &Path| {
        certificates(dir);
        let file = |name: &str| dir.join(name).display().to_string();
        vec![
            format!("--cert-file={}", file("etcd.crt")),
            format!("--key-file={}", file("etcd.key")),
            format!("--trusted-ca-file={}", file("ca.crt")),
            "--client-cert-auth".to_owned(),
        ]
    };
    let Some(etcd) = Etcd::start_with(certified).await else { return };
    let file = |name: &str| etcd.dir.path().join(name).display().to_string();
    let url = format!("{}?ca={}&cert={}&key={}", etcd.url("p"), file("ca.crt"), file("us.crt"), file("us.key"));
    let store = loop {
        match connect(&url).await {
            Ok(store) => break store,
            // It listens before it answers.
            Err(pn_store::ConnectError::Store(error)) if error.is_retryable() => continue,
            Err(error) => panic!("{error:?}"),
        }
    };
    put(&*store, "k", "1").await;
    for (what, url) in [
        ("cleartext", etcd.url("p")),
        ("no certificate", format!("{}?ca={}", etcd.url("p"), file("ca.crt"))),
        ("another authority", format!("{}?ca={}", etcd.url("p"), file("us.crt"))),
    ] {
        let error = connect(&url).await.unwrap_err();
        assert!(matches!(error, pn_store::ConnectError::Store(_)), "{what}: {error:?}");
    }
}

/// Makes a certificate authority, and certificates for an etcd and for us.
fn certificates(dir: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=authority -days 2"));
    for (name, extra) in [("etcd", "subjectAltName=IP:127.0.0.1"), ("us", "extendedKeyUsage=clientAuth")] {
        openssl(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        std::fs::write(dir.join("extensions"), extra).unwrap();
        let sign = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions";
        openssl(&format!("x509 -req -in {name}.csr -out {name}.crt {sign}"));
    }
}

/// Whichever member the client talks to: each of the three dies once.
#[tokio::test]
async fn a_member_that_dies_is_not_missed() {
    let Some(mut members) = Etcd::start_cluster().await else { return };
    let store = until_connected(&url_of(&members.each_ref().map(|member| member.client))).await;
    let registry = Registry::new(store, Region::default());
    let node = |n: u8| {
        let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
        Node::new(NodeId::from_u128(n.into()), "node".parse().unwrap(), underlay, tunnel, PublicKey::new([n; 32]))
    };
    let mut follower = Follower::new(registry.join(node(1), Duration::from_secs(10)).await.unwrap());
    let (project, network, app) = (ProjectId::from_u128(1), NetworkId::from_u128(1), AppId::from_u128(1));
    let terms =
        Terms { accepted_by: "ada".parse().unwrap(), version: "1".parse().unwrap(), accepted_at: Timestamp::ZERO };
    for change in [
        Change::AddProject(Project::new(project, "p".parse().unwrap())),
        Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)),
        Change::AddApp(App::new(app, project, "a".parse().unwrap())),
        Change::Scale { app, formation: "web:9".parse().unwrap() },
    ] {
        registry.apply(change).await.unwrap();
    }
    for (victim, member) in members.iter_mut().enumerate() {
        member.kill();
        let begun = Instant::now();
        let index = u32::try_from(victim).unwrap() + 1;
        let (container, slot) =
            (ContainerId::from_u128(index.into()), Slot::new(app, ContainerType::web(), index).unwrap());
        registry.apply(Change::Start { container, slot, node: NodeId::from_u128(1) }).await.unwrap();
        println!("written {:?} after a member died", begun.elapsed());
        loop {
            match timeout(Duration::from_secs(30), follower.next()).await.expect("it is followed") {
                Followed::Plan(plan) => {
                    let count = plan.networks.get(&network).map_or(0, |network| network.endpoints.len());
                    if count > victim {
                        break;
                    }
                }
                Followed::Fenced(why) => panic!("the lease lives: {why}"),
                Followed::Lost(_) | Followed::Back | Followed::Confirmed(_) | Followed::Closed | _ => (),
            }
        }
        println!("followed {:?} after a member died", begun.elapsed());
        member.restart().await;
    }
}

/// What a client takes in one message by itself is 4 MB, what this one takes is 64 MB, and a page is 512 keys.
#[tokio::test]
async fn what_is_larger_than_a_message_is_read_in_parts() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = connect(&etcd.url("p")).await.unwrap();
    let value = "x".repeat(1 << 20);
    let keys: Vec<Key> = (0..66).map(|n| key(&format!("k/{n:02}"))).collect();
    let first = put(&*store, "k/00", &value).await;
    for key in &keys[1..6] {
        put(&*store, key.as_str(), &value).await;
    }
    assert_eq!(store.list_all(&key("k/"), None).await.unwrap().1.len(), 6);
    assert_eq!(store.get(&keys[..6]).await.unwrap().entries.iter().flatten().count(), 6);
    let mut watch = store.watch(&key("k/"), first).await.unwrap();
    for _ in 0..6 {
        watch.next().await.unwrap();
    }

    for key in &keys[6..] {
        put(&*store, key.as_str(), &value).await;
    }
    let (_, entries) = store.list_all(&key("k/"), None).await.unwrap();
    assert!(entries.iter().map(|entry| &entry.key).eq(&keys));
    assert_eq!(store.get(&keys).await.unwrap().entries.iter().flatten().count(), 66);
    // Whoever follows reads anew what comes in one message that is too large.
    let error = store.watch(&key("k/"), first).await.unwrap().next().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Compacted, "{error:?}");
}

#[tokio::test]
async fn a_value_that_is_too_large_is_called_so() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = connect(&etcd.url("p")).await.unwrap();
    for size in [1_600_000, 3_000_000, 65 << 20] {
        let error = store.commit(Transaction::new().put(key("k"), vec![b'x'; size])).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (StoreErrorKind::TooLarge, false), "{size}: {error:?}");
    }
}

#[tokio::test]
async fn a_watch_of_a_member_without_a_leader_ends() {
    let Some([one, mut two, mut three]) = Etcd::start_cluster().await else { return };
    let store = until_connected(&one.url("p")).await;
    let mut watch = store.watch(&key("k"), Revision::ZERO).await.unwrap();
    two.kill();
    three.kill();
    let error = timeout(Duration::from_secs(20), watch.next()).await.expect("it is said").unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn the_choice_of_a_leader_is_waited_for() {
    let Some(mut members) = Etcd::start_cluster().await else { return };
    let store = until_connected(&url_of(&members.each_ref().map(|member| member.client))).await;
    members.iter_mut().find(|member| leads(member)).unwrap().kill();
    let begun = Instant::now();
    if let Err(error) = store.get(&[key("k")]).await {
        assert!(begun.elapsed() > EtcdStore::PATIENCE * 4 / 5, "{error:?} after {:?}", begun.elapsed());
    }
}

/// Returns whether a member leads its cluster.
fn leads(member: &Etcd) -> bool {
    let status = member.ctl(&["endpoint", "status", "--write-out=json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status[0]["Status"]["leader"] == status[0]["Status"]["header"]["member_id"]
}

/// The other end of a connection may be gone without a word, and what is sent again and again comes after minutes.
#[tokio::test]
async fn a_connection_that_is_lost_is_not_waited_for() {
    let Some(etcd) = Etcd::start().await else { return };
    let (between, is_lost) = way_to(etcd.client);
    let store = connect(&url_of(&[between])).await.unwrap();
    put(&*store, "k", "1").await;
    is_lost.store(true, Ordering::SeqCst);
    let error = store.get(&[key("k")]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    store.get(&[key("k")]).await.unwrap();
}

/// Makes an address that leads to another one. What is sent by its first connection is lost from when it is said.
fn way_to(to: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let is_lost = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (here, says) = (listener.local_addr().unwrap(), Arc::clone(&is_lost));
    std::thread::spawn(move || {
        for (number, near) in listener.incoming().enumerate() {
            let (near, far) = (near.unwrap(), TcpStream::connect(to).unwrap());
            let ways = [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)];
            for (mut from, mut to) in ways {
                let says = Arc::clone(&says);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = from.read(&mut buffer) {
                        if number > 0 || !says.load(Ordering::SeqCst) {
                            to.write_all(&buffer[..length]).ok();
                        }
                    }
                });
            }
        }
    });
    (here, is_lost)
}

#[tokio::test]
async fn a_member_that_hangs_is_passed_over() {
    let Some(members) = Etcd::start_cluster().await else { return };
    let [one, two, three] = members.each_ref().map(|member| member.client);
    drop(until_connected(&url_of(&[one, two, three])).await);
    let victim = members.iter().find(|member| !leads(member)).unwrap();
    let others: Vec<SocketAddr> = [one, two, three].into_iter().filter(|other| *other != victim.client).collect();
    let url = url_of(&[victim.client, others[0], others[1]]);
    let store = connect(&url).await.unwrap();
    let ttl = Duration::from_secs(5);
    let lease = store.grant(ttl).await.unwrap();
    victim.signal("STOP");
    for _ in 0..4 {
        store.keep_alive(lease.id).await.unwrap();
        sleep(ttl / 3).await;
    }
    store.watch(&key("k"), Revision::ZERO).await.unwrap();
    connect(&url).await.unwrap();
    // A machine that is off takes no connection, as a listener that does not accept the many it has.
    let off = TcpListener::bind("127.0.0.1:0").unwrap();
    let off_at = off.local_addr().unwrap();
    let held: Vec<TcpStream> =
        core::iter::from_fn(|| TcpStream::connect_timeout(&off_at, Duration::from_millis(100)).ok()).collect();
    for _ in 0..2 {
        let store = connect(&url_of(&[off_at, others[0], others[1]])).await.unwrap();
        put(&*store, "k", "1").await;
    }
    drop((off, held));
}

/// Both members are slow, and the one that was asked first answers in the end.
#[tokio::test]
async fn an_answer_that_takes_long_is_waited_for() {
    let Some(etcd) = Etcd::start().await else { return };
    let store = connect(&url_of(&[etcd.client, etcd.client])).await.unwrap();
    etcd.signal("STOP");
    let keys = [key("k")];
    let later = async {
        sleep(Duration::from_millis(2500)).await;
        etcd.signal("CONT");
    };
    let (reading, ()) = tokio::join!(store.get(&keys), later);
    reading.unwrap();
}

#[tokio::test]
async fn a_user_of_the_prefix_alone_needs_no_more() {
    let Some(etcd) = Etcd::start().await else { return };
    for command in [
        "user add root:r",
        "user grant-role root root",
        "user add pn:pw",
        "role add pn",
        "role grant-permission pn --prefix=true readwrite p/",
        "user grant-role pn pn",
        "auth enable",
    ] {
        etcd.ctl(&command.split(' ').collect::<Vec<_>>());
    }
    let store = connect(&format!("etcd://pn:pw@{}/p", etcd.client)).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let put = Transaction::new().put_leased(key("k"), "1", lease.id);
    let Outcome::Committed(revision) = store.commit(put).await.unwrap() else { unreachable!("nothing is asked for") };
    assert_eq!(store.list_all(&Key::all(), None).await.unwrap().1.len(), 1);
    store.watch(&Key::all(), revision).await.unwrap().next().await.unwrap();
    store.keep_alive(lease.id).await.unwrap();
    store.revoke(lease.id).await.unwrap();

    let other = connect(&format!("etcd://pn:pw@{}/q", etcd.client)).await.unwrap();
    assert_eq!(other.get(&[key("k")]).await.unwrap_err().kind(), StoreErrorKind::Denied);
    let error = other.watch(&key("k"), Revision::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Denied, "{error:?}");
}

#[tokio::test]
async fn a_token_of_an_older_revision_is_replaced() {
    let signed = |dir: &Path| {
        let openssl = |arguments: &str| {
            let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        openssl("genrsa -traditional -out jwt.key 2048");
        openssl("rsa -in jwt.key -pubout -out jwt.pub");
        let (public, private) = (dir.join("jwt.pub"), dir.join("jwt.key"));
        let keys = format!("pub-key={},priv-key={}", public.display(), private.display());
        vec![format!("--auth-token=jwt,{keys},sign-method=RS256,ttl=10m")]
    };
    let Some(etcd) = Etcd::start_with(signed).await else { return };
    for command in ["user add root:r", "user grant-role root root", "auth enable"] {
        etcd.ctl(&command.split(' ').collect::<Vec<_>>());
    }
    let store = connect(&format!("etcd://root:r@{}/p", etcd.client)).await.unwrap();
    // Whatever is changed about users and roles makes every token old.
    let change = |n: u8| etcd.ctl(&["--user=root:r", "role", "add", &n.to_string()]);
    change(1);
    store.get(&[key("k")]).await.unwrap();
    change(2);
    put(&*store, "k", "1").await;
    change(3);
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    change(4);
    store.keep_alive(lease.id).await.unwrap();
    change(5);
    let mut watch = store.watch(&key("k"), Revision::ZERO).await.unwrap();
    change(6);
    store.revoke(lease.id).await.unwrap();
    put(&*store, "k", "2").await;
    timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_token_that_has_ended_is_replaced() {
    let Some(etcd) = Etcd::start_with(|_| vec!["--auth-token-ttl=1".to_owned()]).await else { return };
    for command in ["user add root:r", "user grant-role root root", "auth enable"] {
        etcd.ctl(&command.split(' ').collect::<Vec<_>>());
    }
    let url = format!("etcd://root:r@{}/p", etcd.client);
    let mut stores = Vec::new();
    for _ in 0..6 {
        stores.push(connect(&url).await.unwrap());
    }
    let lease = stores[0].grant(Duration::from_secs(60)).await.unwrap().id;
    // A token ends a second or two after it was used. Each store has one of its own, and another call is its first after that.
    sleep(Duration::from_secs(4)).await;
    stores[0].watch(&key("k"), Revision::ZERO).await.unwrap();
    stores[1].keep_alive(lease).await.unwrap();
    stores[2].get(&[key("k")]).await.unwrap();
    put(&*stores[3], "k", "1").await;
    stores[4].grant(Duration::from_secs(60)).await.unwrap();
    stores[5].revoke(lease).await.unwrap();
}

/// Older servers with TLS take 250 streams on one connection, and each watch is one.
#[tokio::test]
async fn many_watches_leave_room_for_calls() {
    let Some(etcd) = Etcd::start_with(|_| vec!["--max-concurrent-streams=250".to_owned()]).await else { return };
    let store = connect(&etcd.url("p")).await.unwrap();
    let before = connections(etcd.client);
    let mut watches = Vec::new();
    for n in 0..260 {
        let watch = store.watch(&key(&format!("k/{n}")), Revision::ZERO).await;
        watches.push(watch.unwrap_or_else(|error| panic!("watch {n}: {error:?}")));
    }
    store.get(&[key("k")]).await.unwrap();
    let revision = put(&*store, "k/259", "1").await;
    assert_eq!(watches[259].next().await.unwrap().revision, revision);
    assert_eq!(connections(etcd.client), before + 3);
    watches.clear();
    let begun = Instant::now();
    while connections(etcd.client) > before {
        assert!(begun.elapsed() < Duration::from_secs(10), "connections are let go");
        sleep(Duration::from_millis(20)).await;
    }
    store.get(&[key("k")]).await.unwrap();
}

/// Counts the connections to an address of this machine, as the kernel lists them.
fn connections(to: SocketAddr) -> usize {
    let remote = format!("0100007F:{:04X}", to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let established = |line: &&str| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next() == Some(remote.as_str()) && columns.next() == Some("01")
    };
    table.lines().filter(established).count()
}
