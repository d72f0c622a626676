use std::process::Command;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::{Event, Precondition};

async fn open_in(dir: &TempDir) -> SqliteStore {
    SqliteStore::open(dir.path().join("state.db")).await.unwrap()
}

#[tokio::test]
async fn it_obeys_the_laws_of_stores() {
    let dirs = std::sync::Mutex::new(Vec::new());
    crate::conformance::store(|| async {
        let dir = tempfile::tempdir().unwrap();
        let store = open_in(&dir).await;
        dirs.lock().unwrap().push(dir);
        store
    })
    .await;
}

#[tokio::test]
async fn two_connections_to_one_file_obey_them_too() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open_in(&dir).await, open_in(&dir).await);
    let claims = async |store: SqliteStore, who: &'static str| {
        let mut won = 0;
        for round in 0..50 {
            let claim: Key = format!("claim/{round:02}").parse().unwrap();
            let transaction = Transaction::new().when(Precondition::Absent(claim.clone())).put(claim, who);
            won += u32::from(store.commit(transaction).await.unwrap() != Outcome::Refused);
        }
        won
    };
    let (won, also) = tokio::join!(claims(one, "one"), claims(two, "two"));
    assert_eq!(won + also, 50);
}

/// Another process, in which the same test runs, writes; this one watches.
/// An agent and the command line, which begin at once where there is no store yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn many_open_a_new_file_at_once() {
    for _ in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.sqlite");
        let opening: Vec<_> = (0..8).map(|_| tokio::spawn(SqliteStore::open(path.clone()))).collect();
        for opened in opening {
            opened.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn watches_wake_across_processes() {
    const FILE: &str = "PN_STORE_TEST_FILE";
    const ROUNDS: usize = 40;
    let ping = |n: usize| format!("ping/{n:02}").parse::<Key>().unwrap();
    let pong = |n: usize| format!("pong/{n:02}").parse::<Key>().unwrap();
    let put = async |store: &SqliteStore, key| {
        assert_ne!(store.commit(Transaction::new().put(key, "")).await.unwrap(), Outcome::Refused);
    };
    if let Some(file) = std::env::var_os(FILE) {
        let store = SqliteStore::open(file).await.unwrap();
        let mut watch = store.watch(&"ping/".parse().unwrap(), Revision::new(1)).await.unwrap();
        for n in 0..ROUNDS {
            let batch = watch.next().await.unwrap();
            assert_eq!(batch.events.iter().map(|Event { key, .. }| key).collect::<Vec<_>>(), [&ping(n)]);
            put(&store, pong(n)).await;
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open_in(&dir).await;
    let mut watch = store.watch(&"pong/".parse().unwrap(), Revision::new(1)).await.unwrap();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite::tests::watches_wake_across_processes"])
        .env(FILE, dir.path().join("state.db"))
        .spawn()
        .unwrap();
    let mut taken = Vec::new();
    for n in 0..ROUNDS {
        let begun = Instant::now();
        put(&store, ping(n)).await;
        let batch = timeout(Duration::from_secs(30), watch.next()).await.expect("the other process wakes").unwrap();
        assert_eq!(batch.events[0].key, pong(n));
        taken.push(begun.elapsed());
    }
    assert!(other.wait().unwrap().success());
    taken.sort_unstable();
    // There and back again, and two commits.
    let median = taken[ROUNDS / 2];
    println!("there and back again: median {median:?}, 95th percentile {:?}", taken[ROUNDS * 95 / 100]);
    assert!(median < Duration::from_millis(100), "each watch wakes in less than 50 ms: {taken:?}");
}

#[tokio::test]
async fn a_lease_of_a_process_that_is_gone_is_ended_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let key: Key = "alive".parse().unwrap();
    let gone = open_in(&dir).await;
    let lease = gone.grant(Duration::from_millis(300)).await.unwrap();
    let Outcome::Committed(revision) =
        gone.commit(Transaction::new().put_leased(key.clone(), "", lease.id)).await.unwrap()
    else {
        panic!("nothing stands against it");
    };
    drop(gone);
    let store = open_in(&dir).await;
    let mut watch = store.watch(&key, revision.next()).await.unwrap();
    let batch = timeout(Duration::from_secs(20), watch.next()).await.expect("it ends").unwrap();
    assert!(batch.events[0].before.is_some() && batch.events[0].after.is_none());
}

#[tokio::test]
async fn history_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_in(&dir).await;
    let key: Key = "k".parse().unwrap();
    store.write("fill", |db| db.execute("UPDATE store SET revision = 8190", []).map_err(Fault::from)).await.unwrap();
    for _ in 0..300 {
        store.commit(Transaction::new().put(key.clone(), "")).await.unwrap();
    }
    let kept =
        store.read("count", |db| Ok(db.query_row("SELECT min(revision) FROM change", [], |row| row.get::<_, u64>(0))?));
    assert!(kept.await.unwrap() > 200, "what is 8 192 revisions old is forgotten");
    let mut watch = store.watch(&key, Revision::new(1)).await.unwrap();
    assert_eq!(watch.next().await.unwrap_err().kind(), StoreErrorKind::Compacted);
}

#[tokio::test]
async fn what_is_no_store_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let open = async |path: PathBuf| SqliteStore::open(path).await.unwrap_err();
    assert_eq!(open(dir.path().join("no/such/dir")).await.kind(), StoreErrorKind::Unavailable);
    let text = dir.path().join("text");
    std::fs::write(&text, "this is a text and not a database, and long enough to tell").unwrap();
    assert_eq!(open(text).await.kind(), StoreErrorKind::Corrupt);
    let newer = dir.path().join("newer");
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let error = open(newer.clone()).await;
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    assert!(error.to_string().contains("a file of form 9: this release reads 1"), "{error}");
    let tables = Connection::open(newer).unwrap().query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0));
    assert_eq!(tables, Ok(0), "nothing was written");
}
