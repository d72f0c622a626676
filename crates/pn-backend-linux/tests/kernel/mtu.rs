//! Path MTU: what a full packet is over every combination of families, that it passes, and what happens to one octet more.

use crate::hosts;

use hosts::{Families, Region, is_root, network};
use pn_core::{Change, ContainerId, Ipv6Prefix};

#[tokio::test(flavor = "multi_thread")]
async fn m5_full_packets_pass_over_ipv4_and_one_octet_more_is_too_big() {
    full_packets_pass(Families::default(), &[(1500, 1390), (9000, 8890)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m5_full_packets_pass_over_an_ipv6_underlay() {
    let families = Families { is_underlay_ipv6: true, is_tunnel_ipv6: false };
    full_packets_pass(families, &[(1500, 1370), (9000, 8870)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m5_full_packets_pass_between_ipv6_tunnel_addresses() {
    let families = Families { is_underlay_ipv6: false, is_tunnel_ipv6: true };
    full_packets_pass(families, &[(1500, 1370), (9000, 8870)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m5_full_packets_pass_over_ipv6_alone() {
    let families = Families { is_underlay_ipv6: true, is_tunnel_ipv6: true };
    full_packets_pass(families, &[(1500, 1350), (9000, 8850)]).await;
}

/// Tries packets over each of some underlay MTUs, with what the largest has to be there.
async fn full_packets_pass(families: Families, expected: &[(u16, u32)]) {
    if !is_root() {
        return;
    }
    let mut region = Region::start_over(families, 2, |_, builder| builder).await;
    region.add_network(3, |request| request.families = pn_core::Families::DualStack);
    let (a, b, c) = (region.add(1, 1).await, region.add(1, 2).await, region.add(1, 1).await);
    let (d, e) = (region.add(3, 1).await, region.add(3, 2).await);
    for (mtu, full) in expected {
        for n in 0..2 {
            let mut node = region.state.node(region.hosts[n].id).expect("it is known").clone();
            node.underlay_mtu = *mtu;
            region.change(Change::UpdateNode(node));
            region.hosts[n].netns.sh(&format!("ip link set eth0 mtu {mtu}"));
        }
        region.apply().await;
        for (from, to) in [(a, b), (b, a), (a, c), (d, e)] {
            check(&region, from, &region.address(to).to_string(), *full, 28);
        }
        let address = Ipv6Prefix::of_network(network(3)).address(region.address(e));
        check(&region, d, &address.to_string(), *full, 48);
        for (n, host) in region.hosts.iter().enumerate() {
            // Every hop says the same.
            let links = host.sh_in(&network(1).to_string(), "ip -o link");
            for line in links.lines().filter(|line| !line.contains(" lo:")) {
                assert!(line.contains(&format!("mtu {full} ")), "node {n}: {line}");
            }
            let overhead = if families.is_tunnel_ipv6 { 70 } else { 50 };
            if host.has_transport() {
                let tunnel = host.sh_in("transport", "ip -o link show tunnel0");
                assert!(tunnel.contains(&format!("mtu {} ", full + overhead)), "node {n}: {tunnel}");
            }
        }
    }
    // A container that says its link carries more than it does loses what is too large; nobody cuts it to pieces.
    region.netns(a).sh("ip link set pn0 mtu 9500");
    let full = expected.last().map_or(0, |(_, full)| *full);
    let ping = |octets: u32| format!("ping -c 1 -W 1 -M do -s {} {}", octets - 28, region.address(b));
    assert!(region.netns(a).works(&ping(full)) && !region.netns(a).works(&ping(full + 1)));
    for host in &region.hosts {
        let transport = host.has_transport().then(|| "transport".to_owned());
        for place in [network(1), network(3)].iter().map(ToString::to_string).chain(transport) {
            assert_eq!(fragments(&host.sh_in(&place, FRAGMENTS)), 0, "{place} cuts packets to pieces");
        }
        assert_eq!(fragments(&host.netns.sh(FRAGMENTS)), 0, "the host cuts packets to pieces");
    }
    region.tear_down().await;
}

/// Sends a full packet, and one octet more.
pub(crate) fn check(region: &Region, from: ContainerId, to: &str, full: u32, headers: u32) {
    let ping =
        |octets: u32, how: &str| region.netns(from).run(&format!("ping -c 1 -W 10 {how} -s {} {to}", octets - headers));
    assert!(ping(full, "-M do").status.success(), "{full} octets do not pass from {from} to {to}");
    let refused = ping(full + 1, "-W 0.1 -M do");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    let is_told = said.contains(&format!("mtu={full}")) || said.contains(&format!("mtu: {full}"));
    assert!(!refused.status.success() && is_told, "{from} to {to}: {said}");
    // Who lets it be fragmented sends fragments inside the network, and no larger packets through the tunnel.
    assert!(ping(full + 1000, "-W 10 -M dont").status.success(), "fragments do not pass from {from} to {to}");
}

/// Prints how many fragments a namespace has made, of IPv4 and of IPv6.
const FRAGMENTS: &str = "grep ^Ip: /proc/net/snmp | tail -1 | cut -d \" \" -f 20; grep Ip6FragCreates /proc/net/snmp6 | tr -s \"\\t \" \" \" | cut -d \" \" -f 2";

fn fragments(said: &str) -> u64 {
    said.split_whitespace().map(|count| count.parse::<u64>().unwrap_or(u64::MAX)).sum()
}
