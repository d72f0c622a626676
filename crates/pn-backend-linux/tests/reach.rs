//! Packets between containers on hosts that are namespaces, asserted with `ping`, `curl`, `dig` and captures.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

mod hosts;

use hosts::{Region, is_root};

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_two_hosts_reach_each_other() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (a, b) = (region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    println!("{}", region.netns(a).sh("ip -d addr; ip route; ip neigh"));
    println!(
        "{}",
        region.hosts[0].sh_in(&hosts::network(1).to_string(), "ip -d addr; bridge fdb; ip neigh; nft list ruleset")
    );
    println!("{}", region.hosts[0].sh_in("transport", "ip -d addr; ip route; nft list ruleset"));
    let to = region.address(b);
    let out = region.netns(a).run(&format!("ping -c 3 -W 5 {to}"));
    println!("{}", String::from_utf8_lossy(&out.stdout));
    println!("{}", region.hosts[0].sh_in("transport", "nft list counters; ip -s link"));
    println!("{}", region.hosts[1].sh_in("transport", "nft list counters; ip -s link"));
    println!("{}", region.hosts[0].sh_in(&hosts::network(1).to_string(), "nft list counters"));
    println!("{}", region.hosts[1].sh_in(&hosts::network(1).to_string(), "nft list counters"));
    assert!(out.status.success());
    region.tear_down().await;
}
