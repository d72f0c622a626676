//! The laws of stores, to be run on every implementation and every wrapper.
//!
//! A law that is broken panics and says which. Laws need an empty store each, or one in whose place nobody else writes.

use core::num::NonZeroUsize;
use core::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{
    Batch, Entry, Event, Key, Listing, Outcome, Precondition, Revision, Store, StoreErrorKind, StoreExt, Transaction,
    Watch,
};

/// Checks every law, each on a store of its own.
///
/// # Panics
/// Where a law is broken.
pub async fn store<S: Store + Clone + 'static, F: Future<Output = S>>(make: impl Fn() -> F) {
    transactions_are_atomic_and_conditional(&make().await).await;
    what_makes_no_sense_is_refused(&make().await).await;
    readings_are_as_of_one_revision(&make().await).await;
    pages_are_as_of_one_revision(&make().await).await;
    a_watch_has_neither_gap_nor_repeat(&make().await).await;
    a_watch_says_that_history_is_gone(&make().await).await;
    leases_take_their_keys_with_them(&make().await).await;
    a_lease_kept_alive_lives(&make().await).await;
    of_two_writers_one_wins(make().await).await;
}

/// Checks that a transaction is made whole or not at all, and only where its preconditions hold.
///
/// # Panics
/// Where it is not.
pub async fn transactions_are_atomic_and_conditional(store: &impl Store) {
    let [a, b, c] = ["x/a", "x/b", "x/c"].map(key);
    let first = committed(store, Transaction::new().put(a.clone(), "1").put(b.clone(), "1")).await;
    assert_eq!(texts(store, "x/").await, [("x/a", "1"), ("x/b", "1")].map(owned));

    let refuse = async |precondition: Precondition| {
        let transaction = Transaction::new().put(a.clone(), "wrong").delete(b.clone()).when(precondition.clone());
        let transaction = transaction.when(Precondition::Present(a.clone()));
        let outcome = store.commit(transaction).await.expect("a refusal is no error");
        assert_eq!(outcome, Outcome::Refused, "{precondition:?} does not hold");
        assert_eq!(texts(store, "x/").await, [("x/a", "1"), ("x/b", "1")].map(owned), "nothing of it was done");
    };
    refuse(Precondition::Absent(a.clone())).await;
    refuse(Precondition::Present(c.clone())).await;
    refuse(Precondition::At(a.clone(), first.next())).await;
    refuse(Precondition::At(c.clone(), first)).await;
    refuse(Precondition::NoneSince(key("x/"), Revision::new(first.get() - 1))).await;

    let transaction = Transaction::new()
        .when(Precondition::Absent(c.clone()))
        .when(Precondition::Present(a.clone()))
        .when(Precondition::At(b.clone(), first))
        .when(Precondition::NoneSince(key("x/"), first))
        .when(Precondition::NoneSince(key("y/"), Revision::ZERO));
    let second = committed(store, transaction.put(a.clone(), "2").delete(b.clone()).put(c.clone(), "2")).await;
    assert!(second > first, "revisions grow");
    assert_eq!(texts(store, "x/").await, [("x/a", "2"), ("x/c", "2")].map(owned));
    let (_, entry) = store.get_one(&a).await.expect("it was put");
    assert_eq!(entry.expect("it was put").revision, second, "an entry says which transaction put it");

    let nothing = store.commit(Transaction::new().delete(b)).await.expect("deleting what is not there is success");
    assert!(matches!(nothing, Outcome::Committed(_)));
    committed(store, Transaction::new().delete_prefix(key("x/")).put(key("y/a"), "1")).await;
    assert_eq!(texts(store, "x/").await, []);
    assert_eq!(texts(store, "").await, [("y/a", "1")].map(owned));
    // A value may be anything.
    let octets: Vec<u8> = (0..=255).collect();
    committed(store, Transaction::new().put(key("y/a"), octets.clone()).put(key("y/b"), "")).await;
    let values = store.list_all(&key("y/"), None).await.expect("the store works").1;
    assert_eq!(values.into_iter().map(|entry| entry.value).collect::<Vec<_>>(), [octets, Vec::new()]);
}

/// Checks that what no store takes is an error and changes nothing.
///
/// # Panics
/// Where it does.
pub async fn what_makes_no_sense_is_refused(store: &impl Store) {
    let [a, b] = ["x/a", "x/b"].map(key);
    for transaction in [
        Transaction::new().put(a.clone(), "1").delete(a.clone()),
        Transaction::new().put(b.clone(), "1").put(a.clone(), "1").put(a.clone(), "2"),
        Transaction::new().put(a.clone(), "1").delete_prefix(key("x/")),
    ] {
        let error = store.commit(transaction).await.expect_err("one key twice");
        assert_eq!(error.kind(), StoreErrorKind::Invalid);
    }
    let many = (0..=Transaction::MAX).fold(Transaction::new(), |many, n| many.put(key(&format!("x/{n}")), ""));
    assert_eq!(store.commit(many).await.expect_err("too much").kind(), StoreErrorKind::TooLarge);
    assert_eq!(texts(store, "").await, []);
    let most = (0..Transaction::MAX).fold(Transaction::new(), |most, n| {
        most.put(key(&format!("x/{n}")), "").when(Precondition::Absent(key(&format!("x/{n}"))))
    });
    committed(store, most).await;
    assert_eq!(texts(store, "x/").await.len(), Transaction::MAX);
}

/// Checks that several keys are read as of one revision.
///
/// # Panics
/// Where they are not.
pub async fn readings_are_as_of_one_revision(store: &impl Store) {
    let keys = ["x/a", "x/b", "x/c"].map(key);
    let revision = committed(store, Transaction::new().put(keys[2].clone(), "3").put(keys[0].clone(), "1")).await;
    let reading = store.get(&keys).await.expect("the store works");
    assert!(reading.revision >= revision);
    let values: Vec<_> = reading.entries.into_iter().map(|entry| entry.map(|entry| entry.value)).collect();
    assert_eq!(values, [Some(b"1".to_vec()), None, Some(b"3".to_vec())]);
}

/// Checks that pages are in order, without gap or repeat, as of the revision of the first.
///
/// # Panics
/// Where they are not.
pub async fn pages_are_as_of_one_revision(store: &impl Store) {
    let names: Vec<String> = (0..25).map(|n| format!("x/{n:02}")).collect();
    for name in &names {
        committed(store, Transaction::new().put(key(name), "old").put(key(&format!("y{name}")), "")).await;
    }
    committed(store, Transaction::new().put(key("w"), "").put(key("x"), "").put(key("x0"), "")).await;
    let limit = NonZeroUsize::new(10).expect("10 is not zero");
    let first = store.list(&Listing::new(key("x/")).limit(limit)).await.expect("the store works");
    assert!(!first.is_last && first.entries.len() == 10);
    // What happens between two pages is not in them.
    committed(store, Transaction::new().put(key("x/11"), "new").delete(key("x/12")).put(key("x/115"), "new")).await;
    committed(store, Transaction::new().put(key("x/11"), "newer").put(key("x/12"), "newer").delete(key("x/13"))).await;
    let (mut seen, mut page) = (Vec::new(), first);
    let at = page.revision;
    loop {
        seen.extend(page.entries);
        if page.is_last {
            break;
        }
        let after = seen.last().expect("a page that is not the last has entries").key.clone();
        page = store.list(&Listing::new(key("x/")).limit(limit).at(at).after(after)).await.expect("the store works");
        assert_eq!(page.revision, at);
    }
    let expected: Vec<_> = names.iter().map(|name| (name.clone(), "old".to_owned())).collect();
    assert_eq!(seen.iter().map(text).collect::<Vec<_>>(), expected);
    let now = texts(store, "x/").await;
    assert_eq!(now.len(), 25);
    assert!(now.contains(&owned(("x/11", "newer"))) && now.contains(&owned(("x/115", "new"))));
    let exact = store.list(&Listing::new(key("x/")).limit(NonZeroUsize::new(25).expect("25 is not zero"))).await;
    assert!(exact.expect("the store works").is_last, "nothing is beyond");
}

/// Checks that a watch tells every change of its prefix once, whole and in order, with what was before.
///
/// # Panics
/// Where it does not.
pub async fn a_watch_has_neither_gap_nor_repeat(store: &impl Store) {
    let [a, b] = ["x/a", "x/b"].map(key);
    let mut revisions = Vec::new();
    revisions.push(committed(store, Transaction::new().put(a.clone(), "1").put(b.clone(), "1")).await);
    // One from the past, one from what is next.
    let mut early = store.watch(&key("x/"), revisions[0]).await.expect("the store works");
    let mut late = store.watch(&key("x/"), revisions[0].next()).await.expect("the store works");
    revisions.push(committed(store, Transaction::new().put(a.clone(), "2").delete(b.clone())).await);
    committed(store, Transaction::new().put(key("y/a"), "1").put(key("x"), "1")).await;
    revisions.push(committed(store, Transaction::new().delete_prefix(key("x/")).put(key("y/a"), "2")).await);
    for n in 0..300 {
        revisions.push(committed(store, Transaction::new().put(a.clone(), n.to_string())).await);
    }
    let first = next(&mut early).await;
    let told = |batch: &Batch| batch.events.iter().map(change).collect::<Vec<_>>();
    assert_eq!(told(&first), ["x/a: None → Some(\"1\")", "x/b: None → Some(\"1\")"]);
    assert_eq!(first.revision, revisions[0]);
    for watch in [&mut early, &mut late] {
        let expected = [
            vec!["x/a: Some(\"1\") → Some(\"2\")", "x/b: Some(\"1\") → None"],
            vec!["x/a: Some(\"2\") → None"],
            vec!["x/a: None → Some(\"0\")"],
        ];
        for (expected, revision) in expected.into_iter().zip(&revisions[1..]) {
            let batch = next(watch).await;
            assert_eq!((told(&batch), batch.revision), (expected.iter().map(ToString::to_string).collect(), *revision));
        }
        for (n, revision) in (1..300).zip(&revisions[4..]) {
            let batch = next(watch).await;
            let expected = vec![format!("x/a: Some(\"{}\") → Some(\"{n}\")", n - 1)];
            assert_eq!((told(&batch), batch.revision), (expected, *revision));
        }
        assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err(), "nothing else happened");
    }
}

/// Checks that a watch that cannot go on says so, and once only.
///
/// # Panics
/// Where it does not.
pub async fn a_watch_says_that_history_is_gone(store: &impl Store) {
    let a = key("x/a");
    let first = committed(store, Transaction::new().put(a.clone(), "1")).await;
    let second = committed(store, Transaction::new().put(a.clone(), "2")).await;
    let third = committed(store, Transaction::new().put(a.clone(), "3")).await;
    store.compact(third).await.expect("the store works");

    let gone = async |from: Revision| match store.watch(&key("x/"), from).await {
        Ok(mut watch) => {
            let error = timeout(PATIENCE, watch.next()).await.expect("it is said").expect_err("history is gone");
            timeout(PATIENCE, watch.next()).await.expect("it has ended").expect_err("it has ended");
            error.kind()
        }
        Err(error) => error.kind(),
    };
    assert_eq!(gone(first).await, StoreErrorKind::Compacted);
    assert_eq!(gone(second).await, StoreErrorKind::Compacted);
    // A revision that this store never had: what was there is somebody else's history.
    assert_eq!(gone(Revision::new(third.get() + 1_000_000)).await, StoreErrorKind::Compacted);
    let error = store.list(&Listing::new(key("x/")).at(first)).await.expect_err("history is gone");
    assert_eq!(error.kind(), StoreErrorKind::Compacted);
    let then = store.list(&Listing::new(key("x/")).at(third)).await.expect("it is there");
    assert_eq!(then.entries.iter().map(text).collect::<Vec<_>>(), [owned(("x/a", "3"))]);
    let mut watch = store.watch(&key("x/"), third).await.expect("it is there");
    assert_eq!(next(&mut watch).await.revision, third);
}

/// Checks that what was put under a lease is deleted with it, however it ends.
///
/// # Panics
/// Where it is not.
pub async fn leases_take_their_keys_with_them(store: &impl Store) {
    let [a, b, c] = ["x/a", "x/b", "x/c"].map(key);
    let lease = store.grant(TTL).await.expect("the store works");
    let transaction = Transaction::new().put_leased(a.clone(), "1", lease.id).put_leased(b.clone(), "1", lease.id);
    let revision = committed(store, transaction.put_leased(c.clone(), "1", lease.id)).await;
    // What is put again without it is free of it.
    committed(store, Transaction::new().put(c.clone(), "2")).await;
    let (_, entry) = store.get_one(&a).await.expect("the store works");
    assert_eq!(entry.expect("it was put").lease, Some(lease.id));
    let mut watch = store.watch(&key("x/"), Revision::new(revision.get() + 2)).await.expect("the store works");
    let ended = next(&mut watch).await;
    let told: Vec<_> = ended.events.iter().map(change).collect();
    assert_eq!(told, ["x/a: Some(\"1\") → None", "x/b: Some(\"1\") → None"]);
    assert_eq!(texts(store, "x/").await, [("x/c", "2")].map(owned));
    let error = store.keep_alive(lease.id).await.expect_err("it has ended");
    assert_eq!(error.kind(), StoreErrorKind::LeaseEnded);
    let under = Transaction::new().put_leased(a.clone(), "1", lease.id);
    assert_eq!(store.commit(under).await.expect_err("it has ended").kind(), StoreErrorKind::LeaseEnded);
    store.revoke(lease.id).await.expect("it has ended, which is success");

    let lease = store.grant(Duration::from_secs(600)).await.expect("the store works");
    committed(store, Transaction::new().put_leased(a.clone(), "1", lease.id)).await;
    store.revoke(lease.id).await.expect("the store works");
    assert_eq!(texts(store, "x/").await, [("x/c", "2")].map(owned));
}

/// Checks that a lease that is kept alive does not end.
///
/// # Panics
/// Where it does.
pub async fn a_lease_kept_alive_lives(store: &impl Store) {
    let lease = store.grant(TTL).await.expect("the store works");
    committed(store, Transaction::new().put_leased(key("x/a"), "1", lease.id)).await;
    let until = Instant::now() + 2 * lease.ttl;
    while Instant::now() < until {
        sleep(lease.ttl / 5).await;
        store.keep_alive(lease.id).await.expect("it lives");
    }
    assert_eq!(texts(store, "x/").await, [("x/a", "1")].map(owned));
    store.revoke(lease.id).await.expect("the store works");
}

/// Checks that of several writers that exclude each other exactly one wins each time.
///
/// # Panics
/// Where none or two do.
pub async fn of_two_writers_one_wins<S: Store + Clone + 'static>(store: S) {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 20;
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut won = 0;
            for round in 0..ROUNDS {
                let claim = key(&format!("claim/{round:02}"));
                let transaction = Transaction::new().when(Precondition::Absent(claim.clone()));
                let transaction = transaction.put(claim, writer.to_string());
                let outcome = store.commit(transaction).await.expect("the store works");
                won += usize::from(outcome != Outcome::Refused);
            }
            won
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut won = 0;
    for writer in writers {
        won += writer.await.expect("writers do not panic");
    }
    assert_eq!(won, ROUNDS, "one for each round");
    assert_eq!(texts(&store, "claim/").await.len(), ROUNDS);
}

/// How long something may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Short, and no shorter than what etcd grants.
const TTL: Duration = Duration::from_secs(1);

fn key(text: &str) -> Key {
    text.parse().expect("the text is a key")
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn text(entry: &Entry) -> (String, String) {
    (entry.key.to_string(), String::from_utf8_lossy(&entry.value).into_owned())
}

fn change(event: &Event) -> String {
    let value = |entry: &Option<Entry>| entry.as_ref().map(|entry| text(entry).1);
    format!("{}: {:?} → {:?}", event.key, value(&event.before), value(&event.after))
}

async fn texts(store: &impl Store, prefix: &str) -> Vec<(String, String)> {
    let (_, entries) = store.list_all(&key(prefix), None).await.expect("the store works");
    entries.iter().map(text).collect()
}

async fn committed(store: &impl Store, transaction: Transaction) -> Revision {
    match store.commit(transaction).await.expect("the store works") {
        Outcome::Committed(revision) => revision,
        Outcome::Refused => panic!("the preconditions hold"),
    }
}

async fn next(watch: &mut Box<dyn Watch>) -> Batch {
    timeout(PATIENCE, watch.next()).await.expect("there is more").expect("the watch goes on")
}
