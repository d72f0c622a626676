//! Packets between containers on hosts that are namespaces, asserted with `ping`, `curl`, `dig` and captures.

use crate::hosts;

use hosts::{Region, eventually, is_root, network, sh};
use pn_core::Name;

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_two_hosts_reach_each_other_by_name_and_nothing_is_in_clear() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (a, b, c) = (region.add(1, 1).await, region.add(1, 2).await, region.add(1, 1).await);
    let stranger = region.add(2, 1).await;
    region.apply().await;
    let capture = format!("/tmp/{}.pcap", region.switch().0);
    let mut tcpdump = region.switch().spawn(&format!("tcpdump -i br0 --immediate-mode -U -w {capture}"));
    eventually("a capture", || std::fs::metadata(&capture).is_ok_and(|file| file.len() > 0));

    for (from, to) in [(a, b), (b, a), (a, c), (c, b)] {
        assert!(region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to))), "{from} to {to}");
    }
    let secret = "the-secret-that-nobody-may-see-on-the-wire";
    let page = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{secret}", secret.len());
    let web = format!("/tmp/{}.http", region.switch().0);
    std::fs::write(&web, page).expect("a file is written");
    let _web = region.netns(b).spawn(&format!("socat TCP-LISTEN:80,fork,reuseaddr SYSTEM:\"cat {web}\""));
    let name = Name::container(network(1), &region.state.container(b).expect("it runs").slot);
    let dig = |from, options: &str| region.netns(from).sh(&format!("dig @169.254.53.53 +tries=2 {options} {name}"));
    assert_eq!(dig(a, "+short").trim(), region.address(b).to_string());
    assert_eq!(dig(a, "+short +tcp").trim(), region.address(b).to_string());
    assert!(dig(stranger, "").contains("NXDOMAIN"), "a name is known in another network");
    let curl = format!("curl -s --max-time 10 --resolve {name}:80:$(dig +short @169.254.53.53 {name}) http://{name}/");
    eventually("a page", || region.netns(a).run(&curl).stdout == secret.as_bytes());

    // The other network has the same addresses: at the peer's there is nobody.
    let ping = format!("ping -c 1 -W 1 {}", region.address(b));
    assert!(!region.netns(stranger).works(&ping), "networks are not apart");

    let fields = "-T fields -e ip.src -e ip.dst -e udp.dstport -e _ws.col.Protocol";
    let seen = || sh(&format!("tshark -r {capture} -Y 'not arp and not icmpv6 and not igmp' {fields} 2>/dev/null"));
    eventually("the capture of it", || seen().lines().count() > 10);
    tcpdump.0.kill().expect("it runs");
    for line in seen().lines() {
        assert!(line.ends_with("WireGuard") && line.contains("51820"), "on the wire: {line}");
    }
    let octets = std::fs::read(&capture).expect("the capture is a file");
    assert!(!octets.windows(secret.len()).any(|window| window == secret.as_bytes()), "the secret is on the wire");
    drop((std::fs::remove_file(&capture), std::fs::remove_file(&web)));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_with_ipv6_reaches_by_it_and_nobody_speaks_for_another() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    region.add_network(3, |request| request.families = pn_core::Families::DualStack);
    let (a, b, c) = (region.add(3, 1).await, region.add(3, 2).await, region.add(3, 1).await);
    region.apply().await;
    let prefix = pn_core::Ipv6Prefix::of_network(network(3));
    let address = |container| prefix.address(region.address(container));
    for (from, to) in [(a, b), (b, a), (a, c), (c, a), (c, b)] {
        assert!(region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to))), "{from} to {to}");
        assert!(region.netns(from).works(&format!("ping -6 -c 1 -W 10 {}", address(to))), "{from} to {to} by IPv6");
    }
    let mtu = region.state.plan().networks[&network(3)].mtu - 48;
    assert!(region.netns(a).works(&format!("ping -6 -c 1 -W 10 -M do -s {mtu} {}", address(b))));
    assert!(!region.netns(a).works(&format!("ping -6 -c 1 -W 2 -M do -s {} {}", mtu + 1, address(b))));
    let drops = async || region.hosts[0].linux().status().await.expect("it can be read").drops;
    assert_eq!(drops().await["forged_source"], 0, "nothing was forged so far");
    // With an address that is not its own, a container is heard by nobody, whom it asks or answers.
    let forged = prefix.address(region.address(c));
    region.netns(c).sh("ip link set pn0 down");
    region.netns(a).sh(&format!("ip addr add {forged}/64 dev pn0 nodad"));
    let ping = format!("ping -6 -c 1 -W 1 -I {forged} {}", address(b));
    assert!(!region.netns(a).works(&ping), "it is spoken to as another");
    assert!(!region.netns(b).works(&format!("ping -6 -c 1 -W 1 {forged}")), "another answers");
    assert!(drops().await["forged_source"] > 0);
    region.apply().await;
    assert!(
        region.netns(c).works(&format!("ping -6 -c 1 -W 10 {}", address(b))),
        "the forged address was not taken away"
    );
    region.tear_down().await;
}
