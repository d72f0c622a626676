//! What is wrong is refused with its own message, and nothing is written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use pn_store::{Key, Operation, StoreExt as _, Transaction};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::machines::{Fleet, fail, is_root};
use crate::platform::{Platform, etcdctl, start_etcd};

/// What a store holds, but for what agents say of themselves.
fn holds(url: &str) -> BTreeMap<Key, Vec<u8>> {
    let runtime = Runtime::new().unwrap();
    let store = runtime.block_on(pn_store::connect(url)).unwrap();
    let (_, entries) = runtime.block_on(store.list_all(&Key::all(), None)).unwrap();
    let entries = entries.into_iter().filter(|entry| !entry.key.as_str().starts_with("status/"));
    entries.map(|entry| (entry.key, entry.value)).collect()
}

fn put(url: &str, key: &Key, value: &[u8]) {
    let runtime = Runtime::new().unwrap();
    let store = runtime.block_on(pn_store::connect(url)).unwrap();
    let put = Operation::Put { key: key.clone(), value: value.to_vec(), lease: None };
    runtime.block_on(store.commit(Transaction { operations: vec![put], ..Transaction::new() })).unwrap();
}

#[track_caller]
fn check(command: &mut Command, status: i32, message: &str) {
    let complaint = fail(command, status);
    assert!(complaint.contains(message), "{command:?}: {complaint}");
}

#[test]
fn bad_input_says_what_is_wrong_and_changes_nothing() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_sqlite();
    platform.shop();
    let before = holds(&platform.store);
    let refused = |arguments: &[&str], status: i32, message: &str| {
        check(&mut platform.pn(arguments), status, message);
        assert_eq!(holds(&platform.store), before, "{arguments:?}");
    };
    refused(&["--store", "mysql://x", "projects"], 1, "\"mysql://x\" is no store");
    refused(
        &["--store", "etcd://127.0.0.1:1/pn", "projects"],
        1,
        "cannot connect to 127.0.0.1:1: the store cannot be reached",
    );
    refused(
        &["--store", "sqlite:/nowhere/at/all", "projects"],
        1,
        "cannot open /nowhere/at/all: the store cannot be reached",
    );
    refused(&["ps"], 2, "--app");
    refused(&["frobnicate"], 2, "frobnicate");
    refused(&["ps", "--app", "none"], 1, "there is no app none");
    refused(&["projects-add", "shop"], 1, "there is a project shop already");
    refused(&["scale", "web:1", "Web:2", "--app", "my-app"], 1, "differ only by case");
    refused(&["private-networks-domain-names", "--app", "my-app", "--per-page", "51"], 1, "1 to 50");
    let start = ["start", "my-app-backend", "--app", "my-app", "--node", "node1", "--netns"];
    refused(&[&start[..], &["/nowhere"]].concat(), 1, "no network namespace at /nowhere");
    refused(&[&start[..], &["/etc/passwd"]].concat(), 1, "/etc/passwd is not a network namespace");
    refused(&["start", "my-app-backend", "--app", "my-app", "--node", "node9"], 1, "there is no node node9");
    refused(&["start", "worker", "--app", "my-app", "--node", "node1"], 1, "has no type worker");
    refused(&["create", "records", "--project", "shop", "--hds"], 1, "HDS");
    refused(&["resolve", "1.web.nowhere"], 2, "1.web.nowhere");
    refused(&["confirm"], 1, "no node holds anything back");
    refused(&["stop", "ct-00000000-0000-4000-8000-000000000000"], 1, "does not exist");
    refused(&["stop", "backend"], 2, "backend");
}

#[test]
fn a_backup_that_is_damaged_is_not_restored() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_sqlite();
    platform.shop();
    let before = holds(&platform.store);
    let path = platform.fleet.dir.join("backup");
    let file = path.to_str().unwrap();
    platform.run(&["backup", file]);
    check(&mut platform.pn(&["backup", file]), 1, "cannot write");
    let whole = fs::read(&path).unwrap();
    let other = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|part| part == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    for (damaged, message) in [
        (other(b"my-app-backend", b"my-app-backenD"), "the backup is damaged: its checksum is"),
        (whole[..whole.len() / 2].to_vec(), "the backup is cut off or has something added"),
        (b"something else\n".to_vec(), "not a backup"),
        (Vec::new(), "not a backup"),
    ] {
        fs::write(&path, damaged).unwrap();
        check(&mut platform.pn(&["restore", file]), 1, message);
        assert_eq!(holds(&platform.store), before);
    }
    check(&mut platform.pn(&["restore", "/nowhere"]), 1, "cannot open /nowhere");
}

#[test]
fn records_of_a_newer_release_are_left_alone() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_sqlite();
    platform.shop();
    let holding = holds(&platform.store);
    let (key, record) = holding
        .iter()
        .find(|(key, _)| key.as_str().ends_with("/record") && key.as_str().starts_with("project/"))
        .unwrap();
    let mut newer: Value = serde_json::from_slice(record).unwrap();
    newer["version"] = 99.into();
    put(&platform.store, key, newer.to_string().as_bytes());
    let before = holds(&platform.store);
    let message = "a document of version 99: this release reads versions 1 to";
    let file = platform.fleet.dir.join("backup");
    for arguments in [
        &["projects"][..],
        &["projects-add", "other"],
        &["scale", "web:1", "--app", "my-app"],
        &["backup", file.to_str().unwrap()],
    ] {
        let complaint = fail(&mut platform.pn(arguments), 1);
        assert!(complaint.contains(message) && complaint.contains(key.as_str()), "{arguments:?}: {complaint}");
    }
    assert!(!file.exists(), "half a backup is none");
    let mut agent = platform.machines[0].command(env!("CARGO_BIN_EXE_pn-agent"));
    agent.args(["--store", &platform.store, "--node", "node2", "--underlay", "10.9.0.1:51821", "--key-file"]);
    agent.arg(platform.fleet.dir.join("node2.key"));
    check(&mut agent, 1, message);
    assert_eq!(holds(&platform.store), before);
    assert!(!platform.fleet.dir.join("node2.key").exists());
}

#[test]
fn an_agent_that_cannot_be_says_why_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_sqlite();
    let before = holds(&platform.store);
    let key = platform.fleet.dir.join("other.key");
    let agent = |store: &str, node: &str| {
        let mut agent = platform.machines[0].command(env!("CARGO_BIN_EXE_pn-agent"));
        agent.args(["--store", store, "--node", node, "--underlay", "10.9.0.1:51821", "--key-file"]).arg(&key);
        agent
    };
    let refused = |mut agent: Command, status: i32, message: &str| {
        check(&mut agent, status, message);
        assert_eq!(holds(&platform.store), before, "{message}");
    };
    let store = platform.store.as_str();
    refused(agent("mysql://x", "node2"), 1, "\"mysql://x\" is no store");
    refused(agent("etcd://127.0.0.1:1/pn", "node2"), 1, "cannot connect to 127.0.0.1:1: the store cannot be reached");
    refused(agent(store, "node1"), 1, "another agent with another key is node node1, and alive");
    refused(agent(store, "no name"), 2, "no name");
    let mut left = agent(store, "node2");
    left.arg("--leave-running");
    refused(left, 1, "--leave-running needs --backend linux");
    assert!(!key.exists(), "a key that nobody uses is not made");
    fs::write(&key, "no key\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    refused(agent(store, "node2"), 1, "does not hold a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(agent(store, "node2"), 1, "may be read by others (mode 0644)");
}

#[test]
fn wrong_credentials_are_refused() {
    if !is_root() {
        return;
    }
    let mut fleet = Fleet::new();
    let machine = fleet.machine("etcd", 100);
    let _etcd = start_etcd(&fleet, &machine);
    for arguments in [
        &["user", "add", "root:right"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(&machine, arguments);
    }
    let url = |user: &str| format!("etcd://{user}{}:2379/pn", machine.address);
    let pn = |user: &str| {
        let mut pn = machine.command(env!("CARGO_BIN_EXE_pn"));
        pn.args(["--store", &url(user), "projects-add", "shop"]);
        pn
    };
    let message = "the store refuses these credentials";
    check(&mut pn("root:wrong@"), 1, message);
    check(&mut pn("nobody:right@"), 1, message);
    check(&mut pn(""), 1, message);
    let mut agent = machine.command(env!("CARGO_BIN_EXE_pn-agent"));
    agent.args(["--store", &url("root:wrong@"), "--node", "node1", "--underlay", "10.9.0.100"]);
    agent.arg("--key-file").arg(fleet.dir.join("key"));
    check(&mut agent, 1, message);
    assert!(!fleet.dir.join("key").exists());
    assert_eq!(etcdctl(&machine, &["--user", "root:right", "get", "--prefix", ""]), "");
    assert!(pn("root:right@").status().unwrap().success());
}
