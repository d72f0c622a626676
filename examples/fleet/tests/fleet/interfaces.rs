//! Interfaces that something is in the way of, and those that are left of agents that were killed.

use std::process::Command;

use serde_json::Value;

use crate::machines::{fail, is_root, succeed, wait_for};
use crate::platform::{Platform, kept};
use crate::probe::dig;

#[test]
fn a_container_that_nothing_reaches_has_no_name_until_something_does() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.stop_agent(0);
    platform.start_agent(0, &["--backend", "linux"]);
    platform.wait_until_joined();
    platform.shop();
    let (far, _) = platform.container("waf", "web", 2);
    let [blocked, other] = ["blocked", "other"].map(|name| platform.fleet.container(name));
    // Somebody else's interface has the name of ours.
    let foreign = |arguments: &[&str]| succeed(blocked.command("ip").args(["link"]).args(arguments));
    foreign(&["add", "pn0", "type", "veth", "peer", "name", "pn1"]);
    let start = ["start", "my-app-backend", "--app", "my-app", "--node", "node1"];
    let network = platform.json(&["projects-details", "shop"])["network_id"].as_str().unwrap().to_owned();
    let suffix = format!("my-app-backend.{}.{network}.private-network.internal", platform.app("my-app"));
    let name = format!("1.{suffix}");
    let refused = fail(&mut platform.pn(&[&start[..], &["--netns", &blocked.path()]].concat()), 1);
    assert!(refused.contains("has an interface pn0 already, which somebody else made"), "{refused}");

    let containers = platform.json(&["ps", "--app", "my-app"]);
    assert_eq!(containers[0]["status"], "starting", "{containers}");
    assert_eq!(dig(&far, &name), [].into(), "it is answered and nothing reaches it");
    let failures = || {
        let status = platform.json(&["status"]);
        let node = status.as_array().unwrap().iter().find(|node| node["backend"] == "linux").unwrap();
        node["failures"].clone()
    };
    wait_for("`pn status` says why", || {
        let said = failures().to_string();
        if said.contains("has an interface pn0 already") { Ok(()) } else { Err(said) }
    });
    // Whoever shares the node with it is not kept waiting for the name, though the node is not all of what it should be.

    platform.run(&[&start[..], &["--no-wait", "--netns", &other.path()]].concat());
    let _servers = [blocked.serve(3000, "one", &platform.fleet.dir), other.serve(3000, "two", &platform.fleet.dir)];
    let fetch = |n: u8| {
        let url = format!("http://{n}.{suffix}:3000/");
        wait_for("it is reached by its name", || far.fetch(&url))
    };
    assert_eq!(fetch(2), "two");
    assert_eq!(dig(&far, &name), [].into(), "it is answered and nothing reaches it");

    foreign(&["del", "pn0"]);
    assert_eq!(fetch(1), "one");
    wait_for("nothing fails", || match failures() {
        none if none == Value::Array(Vec::new()) => Ok(()),
        some => Err(some.to_string()),
    });
}

#[test]
fn an_interface_that_somebody_deletes_is_made_again() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.stop_agent(1);
    platform.start_agent(1, &["--backend", "linux"]);
    platform.wait_until_joined();
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let _server = backend.serve(3000, "still here", &platform.fleet.dir);
    let url = format!("http://1.my-app-backend.{}:3000/", platform.suffix("my-app"));
    assert_eq!(wait_for("it is reached", || waf.fetch(&url)), "still here");
    for container in [&backend, &waf] {
        succeed(container.command("ip").args(["link", "delete", "pn0"]));
        wait_for("its interface is back", || if container.has_interface() { Ok(()) } else { Err("none".to_owned()) });
        assert_eq!(wait_for("it is reached again", || waf.fetch(&url)), "still here");
    }
}

#[test]
fn what_a_killed_agent_kept_of_containers_that_are_gone_is_let_go() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_sqlite();
    platform.stop_agent(0);
    platform.start_agent(0, &["--backend", "linux"]);
    platform.wait_until_joined();
    platform.shop();
    let containers: Vec<_> = (0..3).map(|_| platform.container("my-app", "my-app-backend", 1)).collect();
    let node = platform.node(1);
    let gone = containers[0].1.clone();
    assert!(containers.iter().all(|(_, id)| kept(&node).contains(id)), "{:?}", kept(&node));
    platform.kill_agent(0);
    platform.run(&["fail", &gone]);
    platform.start_agent(0, &["--backend", "linux"]);
    wait_for("its namespace is let go", || {
        let mounts = succeed(Command::new("cat").arg("/proc/self/mountinfo"));
        if mounts.contains(&gone) || kept(&node).contains(&gone) { Err(format!("{:?}", kept(&node))) } else { Ok(()) }
    });
    assert!(containers[1..].iter().all(|(_, id)| kept(&node).contains(id)), "{:?}", kept(&node));
    assert!(!containers[0].0.has_interface() && containers[1].0.has_interface());
}
