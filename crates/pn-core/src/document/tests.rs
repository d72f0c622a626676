use proptest::prelude::*;

use super::*;
use crate::*;

/// A record of each kind, with everything set that can be.
fn records() -> Vec<Record> {
    let label = |text: &str| text.parse::<Label>().unwrap();
    let (network, project) = (NetworkId::from_u128(2), ProjectId::from_u128(1));
    let (underlay, tunnel) = ("[2001:db8::1]:51820".parse().unwrap(), "100.64.0.1".parse().unwrap());
    let mut node = Node::new(NodeId::from_u128(4), label("node-1"), underlay, tunnel, PublicKey::new([1; 32]));
    node.next_public_key = Some(PublicKey::new([2; 32]));
    (node.underlay_mtu, node.registration, node.availability) = (9000, 7, Availability::Draining);
    let container = |phase| Container {
        id: ContainerId::from_u128(5),
        slot: Slot::new(AppId::from_u128(3), "My-App".parse().unwrap(), 12).unwrap(),
        node: NodeId::from_u128(4),
        address: Ipv4Addr::new(10, 240, 0, 7),
        phase,
    };
    let terms = Terms {
        accepted_by: label("ada@example.com"),
        version: label("beta-1"),
        accepted_at: Timestamp::from_millis(9),
    };
    let app = App {
        hosting: Hosting::HealthData,
        formation: "web:0 my-app-backend:2".parse().unwrap(),
        ports: [("My-App-Backend".parse().unwrap(), "3000/tcp 53/udp".parse().unwrap())].into(),
        ..App::new(AppId::from_u128(3), project, label("api"))
    };
    let private = |ipv6, encryption, key_scope, terms| Network {
        id: network,
        project,
        vni: Vni::new(16_777_215).unwrap(),
        subnet: Subnet::DEFAULT,
        ipv6,
        encryption,
        key_scope,
        terms,
    };
    vec![
        Record::Project(Project::new(project, label("shop"))),
        Record::App(app),
        Record::Network(private(
            Some(Ipv6Prefix::of_network(network)),
            Encryption::WireGuard,
            KeyScope::Node,
            Some(terms),
        )),
        Record::Network(private(None, Encryption::None, KeyScope::Container, None)),
        Record::Node(node),
        Record::Container(container(Phase::Starting)),
        Record::Container(container(Phase::Ready)),
        Record::Container(container(Phase::Draining { since: Timestamp::from_millis(77) })),
        Record::Rest(Rest::Address {
            network,
            address: Ipv4Addr::new(10, 240, 0, 7),
            slot: container(Phase::Ready).slot,
            since: Timestamp::from_millis(78),
        }),
        Record::Rest(Rest::Vni { vni: Vni::new(7).unwrap(), network, since: Timestamp::from_millis(79) }),
        Record::Next(Numbers::Vnis, 8),
        Record::Next(Numbers::Addresses(network), 9),
    ]
}

#[test]
fn every_record_round_trips() {
    for record in records() {
        let json = record.to_json();
        assert!(json.starts_with("{\"version\":2,\"kind\":\""), "{json}");
        assert_eq!(Record::from_json(&json).unwrap(), record);
    }
}

#[test]
fn a_document_of_version_1_is_read() {
    let node = r#"{"version":1,"kind":"node","id":"nd-00000000-0000-0000-0000-000000000004","label":"node-1",
        "underlay":"192.0.2.1:51820","tunnel_address":"100.64.0.1","underlay_mtu":1500,
        "public_key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}"#;
    let (underlay, tunnel) = ("192.0.2.1:51820".parse().unwrap(), "100.64.0.1".parse().unwrap());
    let expected =
        Node::new(NodeId::from_u128(4), "node-1".parse().unwrap(), underlay, tunnel, PublicKey::new([1; 32]));
    assert_eq!(Record::from_json(node).unwrap(), Record::Node(expected));
    let network = r#"{"version":1,"kind":"network","id":"pn-00000000-0000-0000-0000-000000000002",
        "project":"prj-00000000-0000-0000-0000-000000000001","vni":5,"subnet":"10.240.0.0/22",
        "encryption":"wireguard","key_scope":"node"}"#;
    assert!(matches!(Record::from_json(network).unwrap(), Record::Network(Network { ipv6: None, terms: None, .. })));
}

#[test]
fn what_is_no_document_is_refused_with_its_reason() {
    let project = records()[0].to_json();
    for (json, expected) in [
        (
            project.replace("\"version\":2", "\"version\":3"),
            "a document of version 3: this release reads versions 1 to 2",
        ),
        (
            r#"{"version":9,"form":["unknown"]}"#.to_owned(),
            "a document of version 9: this release reads versions 1 to 2",
        ),
        (
            project.replace("\"version\":2", "\"version\":0"),
            "a document of version 0: this release reads versions 1 to 2",
        ),
        (project.replace("shop", "a b"), "label of the document is wrong: \"a b\" cannot be a name"),
        (project.replace("prj-", "ap-"), "id of the document is wrong: \"ap-"),
        (project.replace("project", "planet"), "not a document: unknown variant `planet`"),
        (project.replace(",\"label\":\"shop\"", ""), "not a document: missing field `label`"),
        (project.replace('}', ""), "not a document: EOF"),
        (String::new(), "not a document: EOF"),
        (
            records()[2].to_json().replace("16777215", "16777216"),
            "vni of the document is wrong: VNI 16777216 is out of range",
        ),
        (records()[2].to_json().replace("/22", "/30"), "subnet of the document is wrong: subnet 10.240.0.0/30"),
        (
            records()[5].to_json().replace(":12,", ":0,"),
            "index of the document is wrong: a slot of My-App has number 0",
        ),
    ] {
        let error = Record::from_json(&json).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn reading_is_total(n in 0usize..12, at: prop::sample::Index, octet in any::<char>(), cut: prop::sample::Index) {
        let mut json = records()[n].to_json();
        let at = at.index(json.len());
        json.replace_range(at..=at, &octet.to_string());
        drop(Record::from_json(&json));
        let cut = cut.index(json.len());
        drop(json.get(..cut).map(Record::from_json));
    }
}
