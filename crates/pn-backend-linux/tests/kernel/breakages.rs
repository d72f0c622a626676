//! What others can break in our namespaces, and whose packets it cuts off.

/// Where something is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    /// In the network's namespace.
    Network,
    /// Where the tunnel is.
    Transport,
    /// In the first container.
    Container,
}

/// Whose packets do not come through while it is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cuts {
    Nothing,
    /// Those to the other host.
    Remote,
    /// Those on this host.
    Local,
    Both,
}

use Cuts::{Both, Local, Nothing, Remote};
use Where::{Container, Network, Transport};

/// The first container is 10.240.0.1 here, the second 10.240.0.2 on the other host, the third 10.240.0.3 here. By IPv6 they are
/// fd00::af0:1, fd00::af0:2 and fd00::af0:3.
const BREAKAGES: [(Where, &str, Cuts); 70] = [
    (Network, "ip link del vxlan0", Remote),
    (Network, "ip link set vxlan0 nomaster", Remote),
    (Network, "ip link set vxlan0 down", Remote),
    (Network, "ip link set vxlan0 mtu 500", Nothing),
    (Network, "ip link set vxlan0 type vxlan learning", Nothing),
    (Network, "ip link set vxlan0 type vxlan ttl 7", Nothing),
    (Network, "ip link set vxlan0 type vxlan remote 100.64.0.9", Nothing),
    (
        Network,
        "ip link del vxlan0; ip link add vxlan0 mtu 1390 type vxlan id $VNI local 100.64.0.1 dstport 4789 nolearning df set",
        Remote,
    ),
    (Network, "ip link del vxlan0; ip link add vxlan0 type dummy || ip link add vxlan0 type bridge", Remote),
    (Network, "ip link del br0", Both),
    (Network, "ip link set br0 down", Both),
    (Network, "ip link set br0 mtu 500", Nothing),
    (Network, "ip link set br0 type bridge stp_state 1", Nothing),
    (Network, "ip link set br0 type bridge mcast_snooping 1", Nothing),
    (Network, "ip link set br0 type bridge group_fwd_mask 8", Nothing),
    (Network, "ip link set br0 type bridge nf_call_iptables 1", Nothing),
    (Network, "ip link del p0af00001", Both),
    (Network, "ip link set p0af00001 nomaster", Both),
    (Network, "ip link set p0af00001 down", Both),
    (Network, "ip link set p0af00001 alias somebody", Nothing),
    (Network, "ip link set p0af00001 type bridge_slave hairpin on", Nothing),
    (Network, "ip link set p0af00001 type bridge_slave isolated on", Nothing),
    (Network, "ip link set p0af00001 type bridge_slave learning on", Nothing),
    (Network, "ip link set p0af00001 type bridge_slave flood on mcast_flood on bcast_flood on", Nothing),
    (Network, "ip link set p0af00001 type bridge_slave guard on", Nothing),
    (Network, "ip link set p0af00001 type bridge_slave proxy_arp_wifi off", Nothing),
    (Network, "bridge link set dev p0af00001 locked on", Nothing),
    (Network, "bridge link set dev vxlan0 learning on flood on", Nothing),
    (Network, "bridge link set dev vxlan0 neigh_suppress off", Nothing),
    (Network, "bridge link set dev vxlan0 isolated on; bridge link set dev p0af00001 isolated on", Remote),
    (Network, "bridge fdb del 02:00:0a:f0:00:02 dev vxlan0 self", Remote),
    (Network, "bridge fdb del 02:00:0a:f0:00:02 dev vxlan0 master", Remote),
    (Network, "bridge fdb del 02:00:0a:f0:00:03 dev p0af00003 master", Local),
    (Network, "bridge fdb replace 02:00:0a:f0:00:02 dev vxlan0 dst 100.64.0.9 self", Remote),
    (Network, "bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 100.64.0.9 self permanent", Nothing),
    (Network, "bridge fdb add 02:00:0a:f0:00:77 dev vxlan0 dst 100.64.0.2 self permanent", Nothing),
    (Network, "ip neigh del 10.240.0.2 dev br0", Nothing),
    (Network, "ip neigh replace 10.240.0.2 lladdr 02:00:00:00:00:01 dev br0 nud permanent", Nothing),
    (Network, "ip neigh del fd00::af0:2 dev br0", Nothing),
    (Network, "ip neigh replace fd00::af0:2 lladdr 02:00:00:00:00:01 dev br0 nud permanent", Nothing),
    (Network, "ip neigh add fd00::af0:77 lladdr 02:00:0a:f0:00:77 dev br0 nud permanent", Nothing),
    (Network, "ip addr flush dev br0", Nothing),
    (Network, "ip addr add 192.0.2.77/32 dev br0", Nothing),
    (Network, "ip addr add 2001:db8::77/128 dev br0", Nothing),
    (Network, "ip route flush dev br0", Nothing),
    (Network, "nft flush ruleset", Nothing),
    (Network, "nft flush table bridge private_network", Both),
    (Network, "nft delete table bridge private_network", Nothing),
    (Network, "nft flush chain bridge private_network prerouting", Both),
    (Network, "nft insert rule bridge private_network prerouting accept", Nothing),
    (Network, "nft flush set bridge private_network sources", Both),
    (Network, "nft flush set bridge private_network sources6", Nothing),
    (Network, "nft flush set bridge private_network nd_answers", Nothing),
    (Network, "nft flush set bridge private_network prefixes6", Nothing),
    (Transport, "nft flush ruleset", Nothing),
    (Transport, "nft flush set inet private_network senders46", Nothing),
    (Transport, "nft flush table inet private_network", Remote),
    (Transport, "nft delete table inet private_network", Nothing),
    (Transport, "ip link del tunnel0", Remote),
    (Transport, "ip link set tunnel0 down", Remote),
    (Transport, "ip route del default", Remote),
    (Transport, "ip link set tunnel0 mtu 1300", Nothing),
    // Below what IPv6 needs, it is gone from the device, and comes back with the MTU.
    (Transport, "ip link set tunnel0 mtu 900", Nothing),
    (Container, "ip link del pn0", Both),
    (Container, "ip link set pn0 down", Both),
    (Container, "ip link set pn0 mtu 1300", Nothing),
    (Container, "ip addr del 10.240.0.1/22 dev pn0", Both),
    (Container, "ip addr del fd00::af0:1/64 dev pn0", Nothing),
    (Container, "ip -6 route flush dev pn0", Nothing),
    (Container, "ip link set pn0 down; ip link set pn0 address 02:00:00:00:00:77; ip link set pn0 up", Both),
];

/// What others can break of a TAP interface that is in the VXLAN device's place.
const OF_THE_INTERFACE: [(Where, &str, Cuts); 4] = [
    (Network, "ip link del vxlan0; ip tuntap add vxlan0 mode tap; ip link set vxlan0 mtu 1390 master br0 up", Remote),
    (Network, "ip link del vxlan0; ip tuntap add vxlan0 mode tun", Remote),
    (Network, "ip link set vxlan0 down; ip link set vxlan0 name other0", Remote),
    (Network, "bridge fdb add 02:00:0a:f0:00:77 dev vxlan0 master static", Nothing),
];

/// Returns what can be broken where VXLAN is the kernel's, or ends in this process.
pub(crate) fn breakages(has_transport: bool) -> Vec<(Where, &'static str, Cuts)> {
    if has_transport {
        return BREAKAGES.to_vec();
    }
    let of_the_device = |line: &str| line.contains("type vxlan") || line.contains(" self");
    let others = BREAKAGES.into_iter().filter(|(place, line, _)| *place != Transport && !of_the_device(line));
    others.chain(OF_THE_INTERFACE).collect()
}

/// What the network's, the tunnel's and the container's namespaces are, for `ip`, `bridge` and `nft`.
pub(crate) const LOOKS: [(Where, &str); 16] = [
    (Network, "ip -o -d link"),
    (Network, "ip -br addr"),
    (Network, "ip route show table all proto 112"),
    (Network, "ip neigh show nud permanent"),
    (Network, "ip -6 neigh show nud permanent"),
    (Network, "bridge -d link"),
    (Network, "bridge fdb | grep -e dst -e static | sort"),
    (Network, "nft -s list ruleset"),
    (Transport, "ip -o -d link"),
    (Transport, "ip -br addr"),
    (Transport, "ip route show table all proto 112"),
    (Transport, "nft -s list ruleset"),
    (Container, "ip -o -d link"),
    (Container, "ip -br addr"),
    (Container, "ip route"),
    (Container, "ip -6 route"),
];

/// Says what there is, as those print it who run a command line somewhere, but for numbers that mean nothing.
pub(crate) fn look(run: impl Fn(Where, &str) -> String) -> String {
    LOOKS.map(|(place, line)| format!("{place:?}: {line}\n{}", normal(&run(place, line)))).join("\n")
}

/// Takes indexes, timers and Ethernet addresses that the kernel picked out of what was said.
fn normal(said: &str) -> String {
    let of_line = |line: &str| {
        let line = line.replace('\\', " ");
        let mut words = line.split_whitespace().filter(|word| !word.ends_with(':') || word.parse::<u32>().is_ok());
        let mut kept = Vec::new();
        while let Some(word) = words.next() {
            let word = word.split('@').next().unwrap_or(word);
            if word.ends_with("_timer") || ["link/ether", "link-netnsid", "link-netns", "numtxqueues"].contains(&word) {
                // Ours are planned.
                kept.extend(words.next().filter(|mac| mac.starts_with("02:00:")));
            } else {
                kept.push(word);
            }
        }
        kept.join(" ")
    };
    let mut lines: Vec<String> = said.lines().map(of_line).collect();
    // What is made anew comes last.
    if !said.contains("table ") {
        lines.sort_unstable();
    }
    lines.join("\n")
}

/// Says which lines are not the same.
pub(crate) fn difference(before: &str, after: &str) -> String {
    let missing =
        before.lines().filter(|line| !after.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
    let added =
        after.lines().filter(|line| !before.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
    missing.chain(added).collect::<Vec<_>>().join("\n")
}
