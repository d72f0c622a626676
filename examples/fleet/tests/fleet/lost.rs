//! The store is away, emptied or has forgotten; a node is cut off.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machines::{Running, alone, is_root, text, wait_for};
use crate::platform::{LEASE, Pair, Platform, start_etcd};
use crate::probe::dig;

#[test]
fn traffic_goes_on_without_the_store_and_changes_follow_when_it_is_back() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    let Pair { waf, name, stream, .. } = platform.pair();
    let (machine, etcd) = platform.etcd.take().unwrap();
    etcd.kill();
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        assert_eq!(dig(&waf, &name).len(), 1, "L4: names are answered without the store");
        std::thread::sleep(Duration::from_millis(100));
    }
    platform.etcd = Some((machine.clone(), start_etcd(&platform.fleet, &machine)));
    let (_, id) = platform.container("my-app", "my-app-backend", 2);
    assert!(platform.run(&["ps", "--app", "my-app"]).contains(&id));
    stream.assert_intact();
}

#[test]
fn a_deleted_store_is_held_and_restored() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    let Pair { waf, name, stream, .. } = platform.pair();
    let file = platform.fleet.dir.join("backup");
    platform.run(&["backup", file.to_str().unwrap()]);
    let plan = platform.run(&["plan", "node1"]);

    platform.etcdctl(&["del", "--prefix", ""]);
    wait_for("the breaker reports", || {
        let status = platform.json(&["status"]);
        let held = status.as_array().unwrap().iter().filter(|node| !node["held"].is_null()).count();
        if held == 2 { Ok(()) } else { Err(status.to_string()) }
    });
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(dig(&waf, &name).len(), 1, "L3: what was deleted by accident is answered still");
    platform.run(&["restore", file.to_str().unwrap()]);
    assert_eq!(platform.run(&["plan", "node1"]), plan);
    wait_for("nothing is held", || {
        let status = platform.json(&["status"]);
        let fine = status.as_array().unwrap().iter().all(|node| node["held"].is_null() && node["alive"] == true);
        if fine { Ok(()) } else { Err(status.to_string()) }
    });
    stream.assert_intact();
}

#[test]
fn history_that_is_gone_is_not_missed() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.shop();
    let (_, first) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
    assert_eq!(dig(&waf, &name).len(), 1);
    platform.kill_agent(1);
    platform.run(&["fail", &first]);
    let (_, _) = platform.container("my-app", "my-app-backend", 1);
    let status: Value = serde_json::from_str(&platform.etcdctl(&["endpoint", "status", "-w", "json"])).unwrap();
    platform.etcdctl(&["compact", &status[0]["Status"]["header"]["revision"].to_string()]);
    platform.start_agent(1, &[]);
    wait_for("it has caught up", || {
        let planned: BTreeSet<String> = platform.run(&["resolve", &name]).lines().map(str::to_owned).collect();
        let found = waf.command("dig").args(["+short", "+tries=1", "+time=1", &name]).output().unwrap();
        let found: BTreeSet<String> = text(&found.stdout).lines().map(str::to_owned).collect();
        if found == planned { Ok(()) } else { Err(format!("{found:?} instead of {planned:?}")) }
    });
}

#[test]
fn a_node_that_is_cut_off_loses_its_names_and_rejoins_as_it_was() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let mut platform = Platform::with_etcd(2);
    platform.stop_agent(0);
    let log = platform.fleet.dir.join("log");
    platform.agents[0] = Some(Running::start(platform.agent(0).stderr(File::create(&log).unwrap())));
    platform.wait_until_joined();
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
    assert_eq!(dig(&waf, &name).len(), 1);
    let registration = || {
        let nodes = platform.json(&["nodes"]);
        nodes.as_array().unwrap().iter().find(|node| node["name"] == "node1").unwrap()["registration"].as_u64().unwrap()
    };
    let before = registration();
    let interfaces = || text(&backend.command("ip").args(["-oneline", "link"]).output().unwrap().stdout);
    let interfaces_before = interfaces();
    platform.machines[0].cable("down");
    let begun = Instant::now();
    wait_for("its names vanish", || if dig(&waf, &name).is_empty() { Ok(()) } else { Err("still there".to_owned()) });
    let took = begun.elapsed();
    println!("names vanished after {took:?}");
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    platform.machines[0].cable("up");
    wait_for("it has rejoined", || if dig(&waf, &name).len() == 1 { Ok(()) } else { Err("no name".to_owned()) });
    assert_eq!(registration(), before + 1, "it is there anew");
    assert_eq!(interfaces(), interfaces_before, "nothing was taken down for it");
    assert!(!std::fs::read_to_string(&log).unwrap().contains("fenced"), "nor was it said to be");
}
