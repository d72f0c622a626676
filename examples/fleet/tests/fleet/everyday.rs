//! What a day brings: from nothing to a page, on many machines and on one, in the kernel and in user space.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::machines::{Machine, PATIENCE, Running, alone, fail, is_root, succeed, text, wait_for};
use crate::platform::Platform;
use crate::probe::dig;
use crate::stream::Stream;

#[test]
fn from_nothing_to_curl_between_machines_with_pn_alone() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(3);
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (other, _) = platform.container("my-app", "my-app-backend", 2);
    let (waf, _) = platform.container("waf", "web", 3);
    let dir = platform.fleet.dir.clone();
    let _servers = [backend.serve(3000, "one", &dir), other.serve(3000, "two", &dir)];

    let names = platform.names("my-app");
    let suffix = platform.suffix("my-app");
    for (n, page) in [(1, "one"), (2, "two")] {
        let url = format!("http://{n}.my-app-backend.{suffix}:3000/");
        wait_for("the backend answers", || match waf.fetch(&url) {
            Ok(body) if body == page => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    // What the product lists is what resolves, on every node.
    let expected =
        ["my-app-backend.", "1.my-app-backend.", "2.my-app-backend."].map(|label| format!("{label}{suffix}"));
    assert_eq!(names.iter().collect::<BTreeSet<_>>(), expected.iter().collect());
    for name in &names {
        let planned: BTreeSet<String> = platform.run(&["resolve", name]).lines().map(str::to_owned).collect();
        for container in [&backend, &other, &waf] {
            assert_eq!(dig(container, name), planned, "{name}");
        }
    }
    // Nothing leads out of the network, or in.
    assert!(waf.fetch("http://10.9.0.100:2379/health").is_err());
    let status = platform.json(&["status"]);
    assert!(status.as_array().unwrap().iter().all(|node| node["failures"] == Value::Array(Vec::new())), "{status}");
}

#[test]
fn one_machine_needs_a_file_and_nothing_else() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_sqlite();
    platform.shop();
    let (backend, id) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 1);
    let _server = backend.serve(3000, "hello", &platform.fleet.dir.clone());
    let name = platform.suffix("my-app");
    let url = format!("http://my-app-backend.{name}:3000/");
    wait_for("the backend answers", || {
        waf.fetch(&url).and_then(|body| if body == "hello" { Ok(()) } else { Err(body) })
    });

    // Stopped, it has no name; drained, it is gone.
    platform.run(&["stop", &id]);
    wait_for("its name is gone", || match dig(&waf, &format!("1.my-app-backend.{name}")) {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    });
    wait_for("the container is gone", || {
        let left = platform.json(&["ps", "--app", "my-app"]);
        if left == Value::Array(Vec::new()) { Ok(()) } else { Err(left.to_string()) }
    });
    wait_for("its interface is gone", || if backend.has_interface() { Err("pn0 is there".to_owned()) } else { Ok(()) });
}

#[test]
fn the_kernel_and_user_space_mix_in_one_network() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.stop_agent(1);
    platform.start_agent(1, &["--backend", "linux"]);
    platform.wait_until_joined();
    platform.shop();
    let (in_user_space, _) = platform.container("my-app", "my-app-backend", 1);
    let (in_the_kernel, _) = platform.container("my-app", "my-app-backend", 2);
    let dir = platform.fleet.dir.clone();
    let _servers = [in_user_space.serve(3000, "one", &dir), in_the_kernel.serve(3000, "two", &dir)];
    let suffix = platform.suffix("my-app");
    for (from, to, page) in [(&in_the_kernel, 1, "one"), (&in_user_space, 2, "two")] {
        let url = format!("http://{to}.my-app-backend.{suffix}:3000/");
        wait_for("they reach each other", || match from.fetch(&url) {
            Ok(body) if body == page => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let status = platform.json(&["status"]);
    let of = |key: &str| status.as_array().unwrap().iter().map(|node| node[key].to_string()).collect::<Vec<_>>();
    assert_ne!(of("backend")[0], of("backend")[1], "{status}");
    let encryption = |backend: &str| {
        let node = status.as_array().unwrap().iter().find(|node| node["backend"] == backend).unwrap();
        node["encryption"].as_str().unwrap().to_owned()
    };
    assert_eq!(encryption("userspace"), "WireGuard in this process");
    assert_eq!(encryption("linux"), by_the_kernel(&platform.machines[1]));
    // N9: how much fits is told before anything does not.
    let of_the_kernel = status.as_array().unwrap().iter().find(|node| node["backend"] == "linux").unwrap();
    let limits = &of_the_kernel["limits"];
    assert_eq!(limits["containers_of_a_network"], 1022, "{status}");
    assert!(limits["neighbours"].as_u64().is_some_and(|limit| limit > 0), "{status}");
    // Stopped in good order, an agent leaves nothing in the kernel.
    let node = platform.node(2);
    platform.stop_agent(1);
    let nodes = platform.json(&["nodes"]);
    let left = nodes.as_array().unwrap().iter().find(|known| known["id"] == node.as_str()).unwrap();
    assert_eq!(left["alive"], false, "its names go at once: {nodes}");
    let left = std::fs::read_dir(Path::new("/run/private-networks").join(&node));
    let left: Vec<_> = left.into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    let links = succeed(platform.machines[1].command("ip").args(["-br", "link"]));
    assert_eq!(links.lines().count(), 2, "only lo and eth0 are to be left: {links}");
}

/// What encrypts for the kernel's data plane, as `ip` tells.
fn by_the_kernel(machine: &Machine) -> &'static str {
    let make = |what| machine.command("ip").args(["link", what, "probe0", "type", "wireguard"]).output().unwrap();
    if make("add").status.success() {
        assert!(make("del").status.success());
        return "WireGuard in the kernel";
    }
    "WireGuard and VXLAN in this process, behind bridges"
}

#[test]
fn a_service_says_how_it_is_and_can_leave_the_data_plane_standing() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_sqlite();
    platform.stop_agent(0);
    let manager = platform.fleet.dir.join("notify");
    let socket = UnixDatagram::bind(&manager).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut said = [0; 100];
        let len = socket.recv(&mut said).expect("the service manager is told");
        text(&said[..len]).trim().to_owned()
    };
    let start = |platform: &mut Platform| {
        let mut agent = platform.agent(0);
        agent.args(["--backend", "linux", "--leave-running"]).env("NOTIFY_SOCKET", &manager);
        platform.agents[0] = Some(Running::start(&mut agent));
        assert_eq!(told(), "READY=1");
    };
    start(&mut platform);
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 1);
    let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
    let stream = Stream::start(&backend, &waf, &name, &platform.fleet.dir);
    platform.stop_agent(0);
    assert_eq!(told(), "STOPPING=1");
    stream.assert_intact();
    start(&mut platform);
    wait_for("names are answered again", || {
        let answer = waf.command("dig").args(["+short", "+tries=1", "+time=1", &name]).output().unwrap();
        if answer.stdout.starts_with(b"10.240.0.") { Ok(()) } else { Err(text(&answer.stdout)) }
    });
    stream.assert_intact();

    // One that leaves nothing takes away what was left.
    platform.stop_agent(0);
    platform.start_agent(0, &["--backend", "linux"]);
    platform.wait_until_joined();
    platform.stop_agent(0);
    let left = platform.machines[0].command("ip").args(["-br", "link"]).output().unwrap();
    assert_eq!(text(&left.stdout).lines().count(), 2, "only lo and eth0: {}", text(&left.stdout));
}

#[test]
fn apps_move_into_a_private_network_and_a_project_is_taken_apart() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_sqlite();
    platform.shop();
    platform.run(&["projects-add", "old"]);
    platform.run(&["create", "legacy", "--project", "old"]);
    platform.run(&["create", "records", "--project", "old", "--hds"]);
    let refused = fail(&mut platform.pn(&["private-networks-domain-names", "--app", "legacy"]), 1);
    assert!(refused.contains("its project old has none"), "{refused}");
    let refused = fail(&mut platform.pn(&["project-set", "shop", "--app", "records"]), 1);
    assert!(refused.contains("has health-data hosting (HDS)"), "{refused}");
    let refused = fail(&mut platform.pn(&["create", "more-records", "--project", "shop", "--hds"]), 1);
    assert!(refused.contains("has health-data hosting (HDS)"), "{refused}");
    platform.run(&["project-set", "shop", "--app", "legacy"]);
    platform.run(&["scale", "worker:1", "--app", "legacy"]);

    let started = platform.json(&["start", "worker", "--app", "legacy", "--node", "node1", "--no-wait"]);
    let (id, address) = (started["id"].as_str().unwrap(), started["address"].as_str().unwrap());
    let network = platform.json(&["projects-details", "shop"])["network_id"].as_str().unwrap().to_owned();
    let name = format!("1.worker.{}.{network}.private-network.internal", platform.app("legacy"));
    assert!(!platform.names("legacy").contains(&name), "it is not ready");
    platform.run(&["ready", id]);
    assert!(platform.names("legacy").contains(&name));
    assert_eq!(platform.run(&["resolve", &name]).trim(), address);
    let details = platform.json(&["projects-details", "shop"]);
    assert_eq!((&details["used_ips"][0], &details["max_ips"]), (&Value::from(address), &Value::from(1022)));

    let refused = fail(&mut platform.pn(&["project-set", "old", "--app", "legacy"]), 1);
    assert!(refused.contains("has 1 containers: it must have none"), "{refused}");
    let refused = fail(&mut platform.pn(&["projects-disable-private-network", "shop"]), 1);
    assert!(refused.contains("has 3 apps: it must have none"), "{refused}");
    platform.run(&["fail", id]);
    for app in ["legacy", "my-app", "waf"] {
        platform.run(&["destroy", "--app", app]);
    }
    platform.run(&["projects-disable-private-network", "shop"]);
    platform.run(&["projects-remove", "shop"]);
    let projects = platform.json(&["projects"]);
    assert_eq!((projects.as_array().unwrap().len(), &projects[0]["name"]), (1, &Value::from("old")));
}

#[test]
fn two_command_lines_race_for_the_same_slots() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let platform = Platform::with_etcd(1);
    platform.shop();
    platform.run(&["scale", "my-app-backend:100", "--app", "my-app"]);
    let start = ["start", "my-app-backend", "--app", "my-app", "--node", "node1", "--no-wait"];
    let racers: Vec<_> =
        (0..200).map(|_| platform.pn(&start).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()).collect();
    let won = racers.into_iter().map(|mut racer| racer.wait().unwrap()).filter(|status| status.success()).count();
    assert_eq!(won, 100);
    let containers = platform.json(&["ps", "--app", "my-app"]);
    let of = |key: &str| containers.as_array().unwrap().iter().map(|c| c[key].to_string()).collect::<BTreeSet<_>>();
    assert_eq!((of("address").len(), of("name").len()), (100, 100));
}

#[test]
fn other_names_are_asked_upstream_and_ours_never() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_sqlite();
    // It has an answer to everything, so that what it is asked shows.
    let mut upstream = platform.machines[0].command("dnsmasq");
    upstream.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file="]);
    upstream.args(["--port=5300", "--listen-address=127.0.0.1", "--bind-interfaces", "--address=/#/192.0.2.7"]);
    let _upstream = Running::start(&mut upstream);
    platform.shop();
    for backend in ["userspace", "linux"] {
        platform.stop_agent(0);
        platform.start_agent(0, &["--backend", backend, "--dns-upstream", "127.0.0.1:5300"]);
        platform.wait_until_joined();
        let (container, id) = platform.container("my-app", "my-app-backend", 1);
        let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
        let ask = |arguments: &[&str]| {
            succeed(
                container
                    .command("dig")
                    .args(["+noall", "+comments", "+answer", "+tries=2", "+time=2"])
                    .args(arguments),
            )
        };
        for transport in ["+notcp", "+tcp"] {
            wait_for("upstream answers", || match ask(&[transport, "www.example.com"]) {
                answer if answer.contains("192.0.2.7") => Ok(()),
                other => Err(other),
            });
            assert_eq!(ask(&[transport, &name]).matches("IN\tA").count(), 1);
            let none = ask(&[transport, &name.replacen('1', "9", 1)]);
            assert!(none.contains("NXDOMAIN") && !none.contains("192.0.2.7"), "{none}");
        }
        platform.run(&["fail", &id]);
    }
    platform.stop_agent(0);
}
