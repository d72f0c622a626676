//! What hostile containers and nodes send, frame by frame: none of it gets through, and each is counted.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail where something is missing, and say what they leave out"
)]

use crate::hosts;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use hosts::{Netns, Region, eventually, is_root, network};
use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_core::*;
use pn_overlay::packet::{EthernetFrame, UdpPacket};
use pn_overlay::{DropReason, Outbox, PeerConfig, PrivateKey, Tunnel, vxlan};
use serde_json::Value;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;

pub(crate) fn frame(to: MacAddr, from: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&EthernetFrame::header(to, from, ethertype)[..], payload].concat()
}

/// A UDP packet whose payload can be found again.
pub(crate) fn udp(from: impl Into<IpAddr>, to: impl Into<IpAddr>, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 48];
    let len = UdpPacket::write_headers(&mut packet, (from.into(), 7), (to.into(), port), payload.len());
    packet.truncate(len);
    [&packet[..], payload].concat()
}

/// The checksum of the Internet (RFC 1071).
pub(crate) fn checksum(octets: &[u8]) -> [u8; 2] {
    let words =
        octets.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

fn arp(operation: u16, (from_mac, from): (MacAddr, Ipv4Addr), (to_mac, to): (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let head = [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes()].concat();
    let addresses = [&from_mac.octets()[..], &from.octets(), &to_mac.octets(), &to.octets()].concat();
    [head, addresses].concat()
}

/// Sends a frame as it is.
pub(crate) fn send(netns: &Netns, device: &str, frame: &[u8]) {
    let hex: String = frame.iter().map(|octet| format!("{octet:02x}")).collect();
    netns.sh(&format!(
        "python3 -c \"import socket; s=socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((\\\"{device}\\\", 0)); \
         s.send(bytes.fromhex(\\\"{hex}\\\"))\""
    ));
}

/// What arrives at an interface, as text.
pub(crate) struct Capture {
    file: String,
    _tcpdump: hosts::netns::Running,
}

impl Capture {
    pub(crate) fn start(netns: &Netns, device: &str) -> Self {
        Self::at(&netns.path(), &netns.0, device)
    }

    /// Starts in the namespace at a path; the name tells this capture from others.
    pub(crate) fn at(namespace: &Path, name: &str, device: &str) -> Self {
        let file = format!("/tmp/{name}-{device}.txt");
        // `ip netns exec` would keep copies of the mounts that namespaces are kept by.
        let tcpdump = format!(
            "exec nsenter --net={} tcpdump -i {device} -l -n -e -A --immediate-mode >{file} 2>{file}.log",
            namespace.display()
        );
        let tcpdump = hosts::netns::Running(Command::new("sh").args(["-c", &tcpdump]).spawn().unwrap());
        eventually("a capture", || {
            std::fs::read_to_string(format!("{file}.log")).is_ok_and(|log| log.contains("listening"))
        });
        Self { file, _tcpdump: tcpdump }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.file).unwrap()).into_owned()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop((std::fs::remove_file(&self.file), std::fs::remove_file(format!("{}.log", self.file))));
    }
}

/// Asks `nft` how often the counters of a name counted in all namespaces of a host.
pub(crate) fn count(region: &Region, host: usize, reason: &str) -> u64 {
    let host = &region.hosts[host];
    let kept = std::fs::read_dir(host.directory.join(host.id.to_string())).unwrap();
    let places = kept.map(|place| place.unwrap().file_name().into_string().unwrap());
    let counts = places.filter(|place| !place.starts_with("ct-")).map(|place| {
        let listed: Value = serde_json::from_str(&host.sh_in(&place, "nft -j list counters")).unwrap();
        let counters = listed["nftables"].as_array().unwrap().iter().map(|object| &object["counter"]);
        let named = counters.filter(|counter| counter["name"] == reason);
        named.map(|counter| counter["packets"].as_u64().unwrap()).sum::<u64>()
    });
    counts.sum()
}

/// Returns how often a host refused what came out of the tunnel: the transport namespace's filter by a counter, or the end of
/// VXLAN in this process, which counts by claim.
pub(crate) fn refused(region: &Region, host: usize, counter: &str, claims: &[DropReason]) -> u64 {
    let backend = region.hosts[host].linux();
    if region.hosts[host].has_transport() {
        return count(region, host, counter);
    }
    claims.iter().map(|claim| backend.drops().get(*claim)).sum()
}

/// What the end of VXLAN in this process says where a node speaks for others.
pub(crate) const FORGED: [DropReason; 4] =
    [DropReason::NotMember, DropReason::ForgedSource, DropReason::UnknownVni, DropReason::NotIp];

/// Returns whether the tunnel is in this process, which counts why it drops what. The kernel's tells nobody, and then what was
/// captured has to do.
fn counts_itself(backend: &LinuxBackend) -> bool {
    let is_here = backend.tunnel() != TunnelKind::Kernel;
    if !is_here {
        println!("not looked at: what the kernel's tunnel dropped, which it does not count by reason");
    }
    is_here
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_container_gets_nothing_through_and_is_counted() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (attacker, local, remote) = (region.add(1, 1).await, region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let own = region.address(attacker);
    let (own_mac, resolver) = (MacAddr::of_ipv4(own), Ipv4Addr::new(169, 254, 53, 53));
    let here = region.netns(attacker);
    let everyone = MacAddr::new([0xff; 6]);
    let captures = [Capture::start(region.netns(local), "pn0"), Capture::start(region.netns(remote), "pn0")];
    let link_local: IpAddr = "fe80::1:2:3:4".parse().unwrap();
    let all_nodes: IpAddr = "ff02::1".parse().unwrap();
    let said = region.hosts[0].netns.sh("ip -6 -o addr show dev eth0 scope link");
    let of_the_host: IpAddr = said.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap();
    let bridge = MacAddr::of_ipv4(resolver);

    for (victim, other) in
        [(region.address(local), region.address(remote)), (region.address(remote), region.address(local))]
    {
        let (mac, other_mac) = (MacAddr::of_ipv4(victim), MacAddr::of_ipv4(other));
        let good = udp(own, victim, 9, b"honest");
        send(here, "pn0", &frame(mac, own_mac, IPV4, &good));
        let forged = [
            ("another's MAC", frame(mac, other_mac, IPV4, &udp(own, victim, 9, b"hostile"))),
            ("a made-up MAC", frame(mac, MacAddr::new([2, 9, 9, 9, 9, 9]), IPV4, &udp(own, victim, 9, b"hostile"))),
            ("another's IP", frame(mac, own_mac, IPV4, &udp(other, victim, 9, b"hostile"))),
            ("an IP from outside", frame(mac, own_mac, IPV4, &udp(Ipv4Addr::new(8, 8, 8, 8), victim, 9, b"hostile"))),
            ("the resolver's IP", frame(mac, own_mac, IPV4, &udp(resolver, victim, 53, b"hostile"))),
            ("both of another", frame(mac, other_mac, IPV4, &udp(other, victim, 9, b"hostile"))),
            ("an answer to ARP", frame(mac, own_mac, ARP, &arp(2, (own_mac, other), (mac, victim)))),
            ("its own answer to ARP", frame(mac, own_mac, ARP, &arp(2, (own_mac, own), (mac, victim)))),
            ("a gratuitous ARP", frame(everyone, own_mac, ARP, &arp(1, (own_mac, other), (everyone, other)))),
            ("an ARP from two", frame(everyone, own_mac, ARP, &arp(1, (other_mac, own), (everyone, victim)))),
            ("IPv6 where there is none", frame(mac, own_mac, IPV6, &udp(link_local, all_nodes, 9, b"hostile"))),
            ("IPv6 to the host", frame(bridge, own_mac, IPV6, &udp(link_local, of_the_host, 22, b"hostile"))),
            (
                "IPv6 to all",
                frame(
                    MacAddr::new([0x33, 0x33, 0, 0, 0, 1]),
                    own_mac,
                    IPV6,
                    &udp(link_local, all_nodes, 9, b"hostile"),
                ),
            ),
            (
                "a VLAN tag",
                frame(mac, own_mac, 0x8100, &[&[0, 5, 8, 0][..], &udp(own, victim, 9, b"hostile")].concat()),
            ),
            ("another protocol", frame(mac, own_mac, 0x88b5, b"hostile")),
        ];
        for (what, frame) in forged {
            let before = count(&region, 0, "forged_source");
            send(here, "pn0", &frame);
            assert_eq!(count(&region, 0, "forged_source"), before + 1, "{what} was not counted");
        }
    }
    // To the node itself: the resolver's namespace has nothing but DNS, and no way on.
    for (what, to, port) in [
        ("the tunnel address", Ipv4Addr::new(100, 64, 0, 1), 4789),
        ("the other node's tunnel address", Ipv4Addr::new(100, 64, 0, 2), 4789),
        ("the node's underlay address", Ipv4Addr::new(192, 0, 2, 1), 4789),
        ("the other node's underlay address", Ipv4Addr::new(192, 0, 2, 2), 4789),
        ("another port of the node", Ipv4Addr::new(192, 0, 2, 1), 22),
        ("another port of the resolver", resolver, 4789),
        ("loopback", Ipv4Addr::LOCALHOST, 53),
    ] {
        let before = count(&region, 0, "to_the_node");
        let inner = frame(
            MacAddr::of_ipv4(region.address(local)),
            own_mac,
            IPV4,
            &udp(own, region.address(local), 9, b"hostile"),
        );
        let vxlan = [&vxlan::header(Vni::new(1).unwrap())[..], &inner].concat();
        send(here, "pn0", &frame(bridge, own_mac, IPV4, &udp(own, to, port, &vxlan)));
        assert_eq!(count(&region, 0, "to_the_node"), before + 1, "{what} was not counted");
    }
    // Groups, unknown addresses: nothing is flooded.
    for to in [
        everyone,
        MacAddr::new([1, 0, 0x5e, 0, 0, 1]),
        MacAddr::new([2, 0, 10, 240, 3, 3]),
        MacAddr::new([1, 0x80, 0xc2, 0, 0, 0]),
    ] {
        send(here, "pn0", &frame(to, own_mac, IPV4, &udp(own, Ipv4Addr::new(10, 240, 3, 255), 9, b"hostile")));
    }
    // A container that really has an address of its own answers ARP and is answered.
    for capture in &captures {
        eventually("what is honest", || capture.text().contains("honest"));
    }
    for (victim, capture) in [local, remote].iter().zip(&captures) {
        send(
            here,
            "pn0",
            &frame(
                MacAddr::of_ipv4(region.address(*victim)),
                own_mac,
                IPV4,
                &udp(own, region.address(*victim), 9, b"the-end"),
            ),
        );
        eventually("the end", || capture.text().contains("the-end"));
        let text = capture.text();
        assert!(!text.contains("hostile") && !text.contains("ARP, Reply"), "{victim} has seen: {text}");
    }
    for (reason, told) in region.hosts[0].linux().status().await.unwrap().drops {
        assert_eq!(told, count(&region, 0, &reason), "{reason}");
    }
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x12_vxlan_on_the_underlay_finds_nobody() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (attacker, victim) = (region.add(2, 1).await, region.add(1, 2).await);
    region.apply().await;
    // The attacker's other interface reaches the nodes, as that of any container does.
    let (here, switch) = (region.netns(attacker), &region.switch().0);
    hosts::sh(&format!(
        "ip -n {switch} link add out type veth peer name eth0 netns {0} && ip -n {switch} link set out master br0 up \
         && ip -n {0} addr add 192.0.2.99/24 dev eth0 && ip -n {0} link set eth0 up",
        here.0
    ));
    let capture = Capture::start(region.netns(victim), "pn0");
    let (to, from) = (region.address(victim), Ipv4Addr::new(10, 240, 0, 77));
    let inner = frame(MacAddr::of_ipv4(to), MacAddr::of_ipv4(from), IPV4, &udp(from, to, 9, b"hostile"));
    let hex: String =
        [&vxlan::header(Vni::new(1).unwrap())[..], &inner].concat().iter().map(|o| format!("{o:02x}")).collect();
    let unreached = || -> u64 {
        let counters = region.hosts[1].netns.sh("grep ^Udp: /proc/net/snmp | tail -1");
        counters.split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    let before = unreached();
    for port in [4789, 8472] {
        here.sh(&format!(
            "python3 -c \"import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
             s.sendto(bytes.fromhex(\\\"{hex}\\\"), (\\\"192.0.2.2\\\", {port}))\""
        ));
    }
    eventually("both to be refused", || unreached() >= before + 2);
    assert!(!region.hosts[1].netns.sh("cat /proc/net/udp").contains(":12B5 "), "VXLAN is open on the underlay");
    assert!(
        !region.hosts[1].has_transport() || region.hosts[1].sh_in("transport", "cat /proc/net/udp").contains(":12B5 "),
        "VXLAN is not where it has to be"
    );
    // As a datagram to the tunnel's own port it is no WireGuard message.
    here.sh(&format!(
        "python3 -c \"import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
         s.sendto(bytes.fromhex(\\\"{hex}\\\"), (\\\"192.0.2.2\\\", 51820))\""
    ));
    let drops = region.hosts[1].linux();
    if counts_itself(drops) {
        eventually("a drop", || drops.drops().get(DropReason::NotWireGuard) == 1);
    }
    assert!(!capture.text().contains("hostile"));
    region.tear_down().await;
}

/// A node that has its keys, and does what it wants.
pub(crate) struct Rogue {
    socket: std::net::UdpSocket,
    tunnel: Tunnel,
    peer: SocketAddr,
}

impl Rogue {
    pub(crate) fn new(netns: &Netns, key: PrivateKey, target: &Node) -> Self {
        let socket = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = std::fs::File::open(netns.path()).unwrap();
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                std::net::UdpSocket::bind("0.0.0.0:51820").unwrap()
            });
            thread.join().unwrap()
        });
        socket.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        let mut tunnel = Tunnel::new(key);
        tunnel.set_peer(PeerConfig {
            node: target.id,
            public_key: target.public_key,
            underlay: target.underlay,
            tunnel_address: target.tunnel_address,
        });
        Self { socket, tunnel, peer: target.underlay }
    }

    pub(crate) fn send(&mut self, from: Ipv4Addr, to: IpAddr, port: u16, payload: &[u8]) {
        self.send_packet(to, &udp(from, to, port, payload));
    }

    /// Sends a packet as it is.
    pub(crate) fn send_packet(&mut self, to: IpAddr, packet: &[u8]) {
        let mut out = Outbox::new();
        self.tunnel.seal(to, packet, &mut out).unwrap();
        let mut buffer = vec![0; 65_535];
        loop {
            for (to, datagram) in out.iter() {
                self.socket.send_to(datagram, to).unwrap();
            }
            let has_session = self.tunnel.peers().all(|peer| peer.handshake_age.is_some());
            if has_session {
                return;
            }
            out.clear();
            if let Ok((len, _)) = self.socket.recv_from(&mut buffer) {
                let _ = self.tunnel.open(self.peer, &buffer[..len], &mut out);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k9_a_hostile_node_speaks_only_for_its_own_containers() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let netns = region.plug(3);
    let key = PrivateKey::from_bytes([3; 32]);
    let rogue = hosts::node(3, key.public_key());
    region.change(Change::AddNode(rogue.clone()));
    // It is a member of network 2, and of network 1 it is not.
    let (victim, elsewhere) = (region.add(1, 1).await, region.add(1, 2).await);
    let (second, friend) = (region.add(2, 1).await, region.add(2, 2).await);
    let own = hosts::container(100);
    let slot = Slot::new(hosts::app(2), "web".parse().unwrap(), 100).unwrap();
    region.change(Change::Start { container: own, slot, node: rogue.id });
    region.apply().await;
    let target = region.state.node(region.hosts[0].id).unwrap().clone();
    let mut node = Rogue::new(&netns, key, &target);
    let captures = [Capture::start(region.netns(victim), "pn0"), Capture::start(region.netns(second), "pn0")];
    let tunnel = Ipv4Addr::new(100, 64, 0, 3);
    let vnis = [1, 2].map(|n| region.state.plan().networks[&network(n)].vni);
    let wrapped = |vni: Vni, from: Ipv4Addr, from_mac: MacAddr, to: Ipv4Addr, text: &[u8]| {
        [&vxlan::header(vni)[..], &frame(MacAddr::of_ipv4(to), from_mac, IPV4, &udp(from, to, 9, text))].concat()
    };
    let [victim, elsewhere, second, friend, own] =
        [victim, elsewhere, second, friend, own].map(|id| region.address(id));
    let mac = MacAddr::of_ipv4;
    node.send(tunnel, target.tunnel_address, 4789, &wrapped(vnis[1], own, mac(own), second, b"honest"));
    eventually("what is honest", || captures[1].text().contains("honest"));

    for (what, packet) in [
        ("a network it is not in", wrapped(vnis[0], own, mac(own), victim, b"hostile")),
        ("another node's container there", wrapped(vnis[0], elsewhere, mac(elsewhere), victim, b"hostile")),
        ("another node's container", wrapped(vnis[1], friend, mac(friend), second, b"hostile")),
        ("another node's MAC", wrapped(vnis[1], own, mac(friend), second, b"hostile")),
        ("this node's container", wrapped(vnis[1], second, mac(second), second, b"hostile")),
        ("the resolver", wrapped(vnis[1], Ipv4Addr::new(169, 254, 53, 53), mac(own), second, b"hostile")),
        ("a network that nobody has", wrapped(Vni::new(77).unwrap(), own, mac(own), second, b"hostile")),
    ] {
        let counted = || refused(&region, 0, "forged_tunnel", &FORGED);
        let before = counted();
        node.send(tunnel, target.tunnel_address, 4789, &packet);
        eventually(what, || counted() > before);
        assert_eq!(counted(), before + 1, "{what} was not counted once");
    }
    // Frames for what is not a container here, the resolver included, find nobody.
    let to_resolver = udp(own, Ipv4Addr::new(169, 254, 53, 53), 53, b"hostile");
    let to_bridge = frame(mac(Ipv4Addr::new(169, 254, 53, 53)), mac(own), IPV4, &to_resolver);
    let nobodys = |region: &Region| refused(region, 0, "to_the_node", &[DropReason::UnknownDestination]);
    let before = nobodys(&region);
    node.send(tunnel, target.tunnel_address, 4789, &[&vxlan::header(vnis[1])[..], &to_bridge].concat());
    let no_vxlan = |region: &Region| refused(region, 0, "other_tunnel", &[DropReason::NotVxlan]);
    let before_other = no_vxlan(&region);
    node.send(tunnel, target.tunnel_address, 53, b"hostile");
    eventually("a drop of what is no VXLAN", || no_vxlan(&region) == before_other + 1);
    let before_tunnel = region.hosts[0].linux().drops().get(DropReason::TunnelSource);
    node.send(
        Ipv4Addr::new(100, 64, 0, 2),
        target.tunnel_address,
        4789,
        &wrapped(vnis[1], friend, mac(friend), second, b"hostile"),
    );
    if counts_itself(region.hosts[0].linux()) {
        eventually("a drop", || region.hosts[0].linux().drops().get(DropReason::TunnelSource) == before_tunnel + 1);
    }
    node.send(tunnel, target.tunnel_address, 4789, &wrapped(vnis[1], own, mac(own), second, b"the-end"));
    eventually("the end", || captures[1].text().contains("the-end"));
    assert_eq!(nobodys(&region), before + 1);
    assert!(captures.iter().all(|capture| !capture.text().contains("hostile")));
    region.tear_down().await;
}

/// The kernel's tunnel carries whatever its peers send; the one in this process carries UDP only, so the rules stand by themselves
/// here, with a link in the tunnel's place.
#[test]
fn what_is_no_udp_does_not_pass_with_the_octets_of_what_may() {
    if !is_root() {
        return;
    }
    let (here, there) = (Netns::new("rules"), Netns::new("peer"));
    for netns in [&here, &there] {
        netns.sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
    }
    here.sh(&format!("ip link add tunnel0 type veth peer name tunnel0 netns {} && ip link set tunnel0 up", there.0));
    there.sh("ip link set tunnel0 up");
    here.sh(&format!("nft -f {}/src/firewall/transport.nft", env!("CARGO_MANIFEST_DIR")));
    let (vni, from, to) = (Vni::new(7).unwrap(), Ipv4Addr::new(100, 64, 0, 3), Ipv4Addr::new(100, 64, 0, 1));
    let (inner, mac) = (Ipv4Addr::new(10, 240, 0, 9), MacAddr::of_ipv4(Ipv4Addr::new(10, 240, 0, 9)));
    let number = mac.octets().iter().fold(0_u64, |number, octet| number << 8 | u64::from(*octet));
    let element = format!("{from} . 7 . {number} . {}", inner.to_bits());
    here.sh(&format!("ip addr add {to}/32 dev tunnel0; nft add element inet private_network senders4 {{ {element} }}"));
    here.sh("nft insert rule inet private_network input meta l4proto udp counter comment everything");
    let device = here.sh("cat /sys/class/net/tunnel0/address");
    let octets: Vec<u8> = device.trim().split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    let device = MacAddr::new(octets.try_into().unwrap());
    let inside = frame(MacAddr::of_ipv4(inner), mac, IPV4, &udp(inner, Ipv4Addr::new(10, 240, 0, 1), 9, b"text"));
    let packet = udp(from, to, 4789, &[&vxlan::header(vni)[..], &inside].concat());
    let count = |name: &str| -> u64 {
        let said = here.sh(&format!("nft list counter inet private_network {name}"));
        said.split_whitespace().skip_while(|word| *word != "packets").nth(1).unwrap().parse().unwrap()
    };
    let seen = || here.sh("nft list chain inet private_network input").contains("packets 1 ");
    send(&there, "tunnel0", &frame(device, mac, IPV4, &packet));
    eventually("what is honest", seen);
    assert_eq!((count("forged_tunnel"), count("other_tunnel")), (0, 0));
    for (n, protocol) in (1..).zip([1, 6, 33, 47, 132, 136, 255]) {
        let mut packet = packet.clone();
        packet[9] = protocol;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum);
        send(&there, "tunnel0", &frame(device, mac, IPV4, &packet));
        eventually(&format!("a drop of protocol {protocol}"), || count("other_tunnel") == n);
    }
    assert_eq!(count("forged_tunnel"), 0);
}
