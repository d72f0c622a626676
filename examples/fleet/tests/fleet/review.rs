//! What operators look at before they decide.

use serde_json::Value;

use crate::machines::{fail, is_root, wait_for};
use crate::platform::{Pair, Platform};
use crate::probe::dig;

#[test]
fn what_agents_have_is_compared_and_rebuilds_what_was_lost() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    let Pair { backend_id, waf, name, stream, .. } = platform.pair();
    let plan = platform.run(&["plan", "node1"]);
    assert!(plan.contains("+ network pn-") && plan.contains("+ 1.my-app-backend.ap-"), "{plan}");
    let diff = platform.run(&["plan", "node1", "--diff"]);
    assert!(diff.starts_with("0 differences from generation "), "{diff}");

    for prefix in ["app", "container", "network", "head", "claim/vni", "member", "project"] {
        platform.etcdctl(&["del", "--prefix", &format!("pn/{prefix}/")]);
    }
    wait_for("it is held", || {
        let status = platform.json(&["status"]);
        let held = status.as_array().unwrap().iter().filter(|node| !node["held"].is_null()).count();
        if held == 2 { Ok(()) } else { Err(status.to_string()) }
    });
    // What would go is what is there and not planned any more.
    let diff = platform.run(&["plan", "node1", "--diff"]);
    assert!(diff.contains("- network pn-") && diff.contains("- 1.my-app-backend.ap-"), "{diff}");
    let lines = platform.json(&["plan", "node1", "--diff"]);
    assert_eq!(lines.as_array().unwrap().len() + 1, diff.lines().count());
    assert_eq!(dig(&waf, &name).len(), 1, "L3");

    let proposed = platform.run(&["rebuild"]);
    assert!(proposed.contains(&backend_id) && proposed.contains("what projects and apps were called"), "{proposed}");
    let json = platform.json(&["rebuild"]);
    assert_eq!((&json["answered"], &json["silent"]), (&Value::from(2), &Value::from(0)));
    assert_eq!(json["missing"].as_array().unwrap().len(), 1 + 1 + 2 + 2, "project, network, apps, containers: {json}");
    assert_eq!(platform.json(&["projects"]), Value::Array(Vec::new()), "it is a proposal");
    platform.run(&["rebuild", "--confirm"]);
    for node in ["node1", "node2"] {
        wait_for("plan and node agree", || {
            let diff = platform.run(&["plan", node, "--diff"]);
            if diff.starts_with("0 differences") { Ok(()) } else { Err(diff) }
        });
    }
    assert_eq!(platform.run(&["plan", "node1"]), plan);
    let apps = platform.json(&["apps"]);
    assert!(apps[0]["name"].as_str().unwrap().starts_with("recovered-ap-"), "{apps}");
    stream.assert_intact();

    platform.stop_agent(0);
    let complaint = fail(&mut platform.pn(&["plan", "node1", "--diff"]), 1);
    assert!(complaint.contains("what node node1 has applied is not known: its agent does not run"), "{complaint}");
}
