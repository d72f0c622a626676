//! Whatever octets are asked, the reply is in bounds, belongs to the query and can be read.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use pn_core::{
    App, AppId, Change, ContainerId, Families, NetworkId, NetworkRequest, Node, NodeId, Project, ProjectId, PublicKey, Region,
    Slot, State, Terms, Timestamp, Transport,
};
use pn_dns::answer::answer_fully;
use pn_dns::{View, Zone, answer, stub};

/// A network with two apps, several types, and more containers of one than fit into a datagram.
static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let now = Timestamp::ZERO;
    let (project, network, node) = (ProjectId::from_u128(1), NetworkId::from_u128(1), NodeId::from_u128(1));
    let accepted_by = "ada".parse().expect("a label");
    let terms = Terms { accepted_by, version: "beta-1".parse().expect("a label"), accepted_at: now };
    let mut state = State::new(Region::default());
    let mut apply = |change| state.apply(now, change).expect("a valid change");
    apply(Change::AddProject(Project::new(project, "p".parse().expect("a label"))));
    let mut request = NetworkRequest::new(project, network, terms);
    request.families = Families::DualStack;
    apply(Change::EnablePrivateNetwork(request));
    apply(Change::AddNode(Node::new(node, "node".parse().expect("a label"), "192.0.2.1:51820".parse().expect("an address"), "100.64.0.1".parse().expect("an address"), PublicKey::new([1; 32]))));
    let mut container = 0;
    for (n, formation) in [(1, "web:100 worker:1 1:2"), (2, "web:0 idle:0")] {
        let mut app = App::new(AppId::from_u128(n), project, "app".parse().expect("a label"));
        app.formation = formation.parse().expect("a formation");
        let (id, formation) = (app.id, app.formation.clone());
        apply(Change::AddApp(app));
        for (container_type, count) in formation.types() {
            for index in 1..=count {
                container += 1;
                let slot = Slot::new(id, *container_type, index).expect("slots start at 1");
                apply(Change::Start { container: ContainerId::from_u128(container), slot, node });
                apply(Change::Ready(ContainerId::from_u128(container)));
            }
        }
    }
    let (app, container_type) = (AppId::from_u128(1), "worker".parse().expect("a label"));
    apply(Change::DeclarePorts { app, container_type, ports: "3000/tcp 53/udp".parse().expect("ports") });
    let zones = state.plan().zones();
    Zone::new(Arc::clone(&zones.zones[&network]), zones.serial())
});

fuzz_target!(|query: &[u8]| {
    for (transport, bound) in [(Transport::Udp, 1232), (Transport::Tcp, 65535)] {
        let mut rng = fastrand::Rng::with_seed(query.len() as u64);
        let Some(reply) = answer(View::of(&ZONE), transport, query, &mut rng) else {
            assert!(query.len() < 12 || query[2] & 0x80 != 0, "silence only for what is no query");
            continue;
        };
        let mut rng = fastrand::Rng::with_seed(query.len() as u64);
        assert_eq!(answer_fully(View::of(&ZONE), transport, query, &mut rng), Some(reply.clone()), "both ways are one");
        assert!((12..=bound).contains(&reply.len()), "{} octets", reply.len());
        assert_eq!(reply[..2], query[..2], "the id is the query's");
        assert_ne!(reply[2] & 0x80, 0, "a reply says that it is one");
        // Octets as they are also reach the reader of replies, which has to live with them.
        let _ = stub::addresses(u16::from_be_bytes([query[0], query[1]]), "a", query);
        if let Some(name) = name(&reply) {
            let read = stub::addresses(u16::from_be_bytes([reply[0], reply[1]]), &name, &reply);
            assert!(!matches!(read, Err(stub::StubError::Malformed)), "{read:?}");
        }
    }
});

/// Returns the name in the question of a reply where a text can say it.
fn name(reply: &[u8]) -> Option<String> {
    let mut rest = reply.get(12..)?;
    let mut name = String::new();
    loop {
        let (len, tail) = rest.split_first()?;
        let (label, tail) = tail.split_at_checked(usize::from(*len))?;
        if label.is_empty() {
            return Some(name);
        }
        if !label.iter().all(|octet| octet.is_ascii_graphic() && *octet != b'.') {
            return None;
        }
        name.extend(label.iter().map(|octet| char::from(*octet)));
        name.push('.');
        rest = tail;
    }
}
