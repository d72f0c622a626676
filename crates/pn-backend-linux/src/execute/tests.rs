//! Many changes, few messages: counted where they are sent, with a kernel that takes them.

use core::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use pn_backend_userspace::underlay::{IsShared, Underlay};
use pn_core::{Action, MacAddr, NetworkId};
use pn_overlay::{DropCounters, PrivateKey, Tunnel};

use super::*;
use crate::diff::Subject;
use crate::netlink::SENT;
use crate::tunnel::Engine;

/// How many messages a netlink socket sends at once.
const AT_ONCE: usize = 64;

/// Says whether the test can run: it needs root. Where it must, a machine without it fails.
fn is_root() -> bool {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        assert!(std::env::var("PN_REQUIRE_ROOT").as_deref() != Ok("1"), "root is required, and this is not root");
        println!("ignored: network namespaces need root");
    }
    is_root
}

#[test]
fn changes_of_a_namespace_are_sent_together() {
    if !is_root() {
        return;
    }
    let directory = PathBuf::from(format!("/run/linux-{}-execute", std::process::id()));
    let namespaces = Namespaces::new(directory.clone(), None).unwrap();
    let nft = namespaces.scratch(|| Nft::probe("nft".into())).unwrap().unwrap();
    let underlay = Underlay::bind("127.0.0.1:0".parse().unwrap(), IsShared::No).unwrap();
    let tunnel = Tunnel::new(PrivateKey::from_bytes([1; 32]));
    let mut encryptor = Encryptor::UserSpace(Engine::new(underlay, tunnel, Arc::new(DropCounters::default())));
    let nodes = BTreeMap::new();

    let (id, bridge) = (NetworkId::from_u128(1), LinkName::Bridge);
    let place = Place::Network(id);
    let link =
        Link { kind: LinkKind::Bridge, mtu: 1390, mac: None, alias: None, port: None, is_plain: true, is_up: true };
    let step = |change| Step { subject: Subject::Network(id), action: Action::Created, change };
    let neighbours = |count: u32| {
        (1..=count).map(move |n| {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 240, 0, 0).to_bits() + n);
            Object::Neighbour(bridge, IpAddr::from(address), MacAddr::of_ipv4(address))
        })
    };
    let mut run = |steps: Vec<Step>| {
        SENT.set(0);
        let executor = Executor::new(&namespaces, &mut encryptor, &nft, &nodes, BTreeMap::new());
        let results = executor.run(&steps);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        SENT.get()
    };
    run([
        Change::CreateNamespace(place),
        Change::AddLink(place, bridge, link.clone()),
        Change::SetLink(place, bridge, link),
    ]
    .map(step)
    .to_vec());
    let known = || {
        let path = directory.join(place.to_string());
        let ip = format!("nsenter --net={} ip neigh show nud permanent | wc -l", path.display());
        let said = Command::new("sh").args(["-c", &ip]).output().unwrap().stdout;
        String::from_utf8(said).unwrap().trim().parse::<usize>().unwrap()
    };
    let add = run(neighbours(1000).map(|object| step(Change::Set(place, object))).collect());
    let (added, remove) = (known(), run(neighbours(1000).map(|object| step(Change::Remove(place, object))).collect()));
    let removed = known();
    namespaces.remove(place).unwrap();
    assert_eq!((added, removed), (1000, 0));
    // One more asks for the bridge's number.
    let few = 1000_usize.div_ceil(AT_ONCE) + 1;
    assert!(add <= few && remove <= few, "{add} and {remove} times, not {few}");
}
