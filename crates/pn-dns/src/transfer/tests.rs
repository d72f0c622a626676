use pn_core::{ErrorKind, NetworkDomain};

use super::*;
use crate::fixture::{Model, dual_stack, network, shop};
use crate::messages::{Contents, PeerError, Transfer, TsigAlgorithm, ZoneSoa};
use crate::stub;

fn key(n: u8) -> TsigKey {
    TsigKey::new(&format!("key{n}.test"), TsigAlgorithm::HmacSha256, &[n; 32]).unwrap()
}

fn secondary(n: u128) -> Secondary {
    Secondary { network: network(n), address: "127.0.0.1:9".parse().unwrap(), key: key(n as u8) }
}

async fn primary(model: &Model) -> Primary {
    let primary = Primary::new(Arc::new(Names::new(1)), [secondary(1), secondary(2)]);
    primary.publish(&model.zones()).await.into_result().unwrap();
    primary
}

fn domain(n: u128) -> String {
    NetworkDomain(network(n)).to_string()
}

fn peer(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Transfers the zone of a network as a secondary does.
fn transfer(primary: &Primary, n: u128, from: &str, key: &TsigKey) -> Result<(ZoneSoa, Contents, usize), PeerError> {
    transfer_of(primary, &domain(n), n, from, key)
}

fn transfer_of(
    primary: &Primary,
    zone: &str,
    n: u128,
    from: &str,
    key: &TsigKey,
) -> Result<(ZoneSoa, Contents, usize), PeerError> {
    let (query, mut transfer) = Transfer::request(zone, Some(key), 7, now());
    let mut messages = 0;
    for message in primary.transfer(network(n), peer(from), Transport::Tcp, &query) {
        messages += 1;
        assert!(message.len() < 17_000, "{}", message.len());
        if transfer.read(message, now())? {
            let (soa, contents) = transfer.finish()?;
            return Ok((soa, contents, messages));
        }
    }
    Err(PeerError::Malformed)
}

fn expected(model: &Model, n: u128, side: Side) -> Contents {
    let (mut contents, zone) = (Contents::new(), model.zone(n));
    for (owner, data) in zone.plan().apps.iter().flat_map(|names| side.records_of(zone.plan(), names.app)) {
        let set = contents.entry((owner, data.rtype())).or_default();
        set.ttl = 5;
        set.rdata.insert(data.rdata());
    }
    contents
}

#[tokio::test]
async fn a_secondary_gets_the_whole_zone_signed() {
    let mut model = shop();
    model.app(5, 2, "web:900");
    for index in 1..=900 {
        model.run(5, "web", index);
    }
    let primary = primary(&model).await;
    for (n, at_least) in [(1, 1), (2, 3)] {
        let (soa, mut contents, messages) = transfer(&primary, n, "127.0.0.1:4711", &key(n as u8)).unwrap();
        assert_eq!((soa.serial, soa.minimum, soa.ttl), (model.zones().serial(), 1, 1));
        assert_eq!(soa.mname.to_string(), domain(n));
        assert!(messages >= at_least, "{messages}");
        let ns = contents.remove(&(String::new(), 2)).unwrap();
        assert_eq!(ns.rdata.len(), 1);
        assert_eq!(contents, expected(&model, n, Side::Forward));
    }
    // An IPv4 client of a socket for both families is the same client.
    assert!(transfer(&primary, 1, "[::ffff:127.0.0.1]:4711", &key(1)).is_ok());
}

#[tokio::test]
async fn d15_reverse_zones_are_handed_out_too() {
    let model = dual_stack("10.1.0.0/22");
    let primary = Primary::new(Arc::new(Names::new(1)), [secondary(3)]);
    primary.publish(&model.zones()).await.into_result().unwrap();
    let zone = model.zone(3);
    let mut pointers = Vec::new();
    for side in Side::all(zone.plan()).skip(1) {
        let name = side.name(network(3));
        let (soa, mut contents, _) = transfer_of(&primary, &name, 3, "127.0.0.1:4711", &key(3)).unwrap();
        assert_eq!((soa.serial, soa.mname.to_string()), (model.zones().serial(), name.clone()));
        assert!(contents.remove(&(String::new(), 2)).is_some(), "NS of {name}");
        assert_eq!(contents, expected(&model, 3, side));
        pointers.push(contents.values().map(|set| set.rdata.len()).sum::<usize>());
    }
    assert_eq!(pointers, [2, 0, 0, 0, 2], "of a /22, and of the prefix");
    for name in ["4.1.10.in-addr.arpa", "1.10.in-addr.arpa", "1.0.1.10.in-addr.arpa", "private-network.internal"] {
        let error = transfer_of(&primary, name, 3, "127.0.0.1:4711", &key(3)).unwrap_err();
        assert!(matches!(&error, PeerError::Refused { rcode, .. } if rcode == "NOTAUTH"), "{name}: {error}");
    }
}

#[tokio::test]
async fn nobody_else_gets_anything() {
    let primary = primary(&shop()).await;
    let refused = |result: Result<_, PeerError>| match result {
        Err(PeerError::Refused { rcode, .. }) => rcode,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(transfer(&primary, 1, "127.0.0.2:4711", &key(1))), "REFUSED", "another address");
    let unknown = transfer(&primary, 1, "127.0.0.1:4711", &key(2));
    assert!(matches!(unknown, Err(PeerError::UnknownKey { .. })), "another network's key");
    let wrong = TsigKey::new("key1.test", TsigAlgorithm::HmacSha256, &[9; 32]).unwrap();
    let wrong = transfer(&primary, 1, "127.0.0.1:4711", &wrong);
    assert!(matches!(wrong, Err(PeerError::WrongSecret { .. })), "{wrong:?}");

    let ask =
        |query: &[u8]| primary.transfer(network(1), peer("127.0.0.1:4711"), Transport::Tcp, query).collect::<Vec<_>>();
    let (unsigned, _) = Transfer::request(&domain(1), None, 7, now());
    assert_eq!(ask(&unsigned)[0][3] & 0xf, 5, "no signature");
    let (late, mut transfer) = Transfer::request(&domain(1), Some(&key(1)), 7, now() - 1000);
    assert!(matches!(transfer.read(ask(&late).remove(0), now()), Err(PeerError::Clock)));
    // Another network's zone, and a name in the zone: signed refusals.
    for zone in [domain(2), format!("web.{}", domain(1)), "example".to_owned()] {
        let (query, mut transfer) = Transfer::request(&zone, Some(&key(1)), 7, now());
        let error = transfer.read(ask(&query).remove(0), now()).unwrap_err();
        assert_eq!(refused(Err(error)), "NOTAUTH", "{zone}");
    }
    assert_eq!(PeerError::Clock.kind(), ErrorKind::Io);
}

/// Writes a signed question about a zone, with an SOA record as authority where it is about changes.
fn ixfr(primary: &Primary, since: u32, transport: Transport) -> Vec<Vec<u8>> {
    // An IXFR looks like a NOTIFY but for the opcode, the type, and the section its SOA record is in.
    let names = Arc::clone(&primary.names);
    let soa = ZoneSoa { serial: since, ..soa(&names.zone(network(1)).unwrap(), &domain(1)) };
    let mut query = Request::notify(&domain(1), &soa, None, 7, now()).octets;
    let name = domain(1).len() + 2;
    (query[2], query[7], query[9], query[12 + name + 1]) = (0, 0, 1, 251);
    let mut signed = Vec::new();
    for message in primary.transfer(network(1), peer("127.0.0.1:1"), transport, &sign(query)) {
        signed.push(message);
    }
    signed
}

/// Signs a query that was written without a thought of signatures.
fn sign(query: Vec<u8>) -> Vec<u8> {
    Request::sign_octets(&query, &key(1), now())
}

#[tokio::test]
async fn what_did_not_change_is_not_sent() {
    let model = shop();
    let primary = primary(&model).await;
    let serial = model.zones().serial();
    let answers = |messages: &[Vec<u8>]| messages.iter().map(|message| u16::from(message[7])).sum::<u16>();
    let all = expected(&model, 1, Side::Forward).values().map(|set| set.rdata.len() as u16).sum::<u16>() + 3;
    assert_eq!(answers(&ixfr(&primary, serial, Transport::Tcp)), 1);
    assert_eq!(answers(&ixfr(&primary, serial.wrapping_add(5), Transport::Tcp)), 1);
    assert_eq!(answers(&ixfr(&primary, serial.wrapping_sub(1), Transport::Tcp)), all);
    assert_eq!(answers(&ixfr(&primary, serial.wrapping_sub(1), Transport::Udp)), 1, "come over TCP");
}

#[tokio::test]
async fn other_signed_questions_get_signed_answers() {
    let model = shop();
    let primary = primary(&model).await;
    let request = Request::soa(&domain(1), Some(&key(1)), 7, now());
    for transport in [Transport::Udp, Transport::Tcp] {
        let replies: Vec<_> = primary.transfer(network(1), peer("127.0.0.1:1"), transport, &request.octets).collect();
        assert_eq!(replies.len(), 1);
        let soa = request.read(replies[0].clone(), now()).unwrap().unwrap();
        assert_eq!(soa.serial, model.zones().serial());
    }
    let query = sign(stub::query(&crate::fixture::expand("ap1.pn1.^"), 7).unwrap());
    let reply = primary.transfer(network(1), peer("127.0.0.1:1"), Transport::Udp, &query).next().unwrap();
    assert_eq!(reply[7], 2, "two addresses");
    assert!(reply.windows(4).any(|octets| octets == b"key1"));
}

#[tokio::test]
async fn no_octets_do_harm() {
    let primary = primary(&shop()).await;
    let (query, _) = Transfer::request(&domain(1), Some(&key(1)), 7, now());
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..20_000 {
        let mut octets = query.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..octets.len());
            octets[at] = rng.u8(..);
        }
        octets.truncate(rng.usize(0..=query.len()));
        let transport = if rng.bool() { Transport::Udp } else { Transport::Tcp };
        primary.transfer(network(1), peer("127.0.0.1:1"), transport, &octets).for_each(drop);
    }
    assert!(transfer(&primary, 1, "127.0.0.1:1", &key(1)).is_ok());
}

/// What a secondary that listens was notified of.
#[derive(Debug)]
struct Notified {
    zone: String,
    serial: u32,
}

/// Receives a notification, and confirms it or not.
async fn listen(socket: &UdpSocket, confirm: impl Fn(&str) -> Option<u8>) -> Notified {
    let mut octets = vec![0; 4096];
    let (len, from) = socket.recv_from(&mut octets).await.unwrap();
    let notification = &octets[..len];
    assert_eq!(notification[2], 0x24, "opcode NOTIFY, AA");
    let (mut zone, mut at) = (String::new(), 12);
    while notification[at] > 0 {
        let label = &notification[at + 1..][..usize::from(notification[at])];
        zone += &format!("{}.", core::str::from_utf8(label).unwrap());
        at += 1 + label.len();
    }
    // Question, then an SOA record: its owner a pointer, its name server and mailbox whole or not.
    let rdlen = at + 1 + 4 + 2 + 8;
    let end = rdlen + 2 + usize::from(u16::from_be_bytes([notification[rdlen], notification[rdlen + 1]]));
    let serial = u32::from_be_bytes(notification[end - 20..end - 16].try_into().unwrap());
    if let Some(rcode) = confirm(&zone) {
        let reply = Request::confirm(notification, rcode, &key(1), now());
        socket.send_to(&reply, from).await.unwrap();
    }
    Notified { zone, serial }
}

#[tokio::test]
async fn secondaries_are_notified_until_they_confirm() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut model = shop();
    let primary = Primary::new(Arc::new(Names::new(1)), [Secondary { address, ..secondary(1) }]);
    let zones = 1 + 4;
    let forward = format!("{}.", domain(1));
    // The secondary has the forward zone and one of the reverse ones; for the others it is no authority.
    let confirm = |zone: &str| Some(if zone == forward || zone.starts_with("0.240.") { 0 } else { 9 });
    let told = async |model: &Model, confirm: &dyn Fn(&str) -> Option<u8>| {
        let mut of = std::collections::BTreeSet::new();
        for _ in 0..zones {
            let notified = timeout(Duration::from_secs(20), listen(&socket, confirm)).await.unwrap();
            assert_eq!(notified.serial, model.zones().serial());
            of.insert(notified.zone);
        }
        assert!(of.contains(&forward) && of.contains("3.240.10.in-addr.arpa.") && of.len() == zones, "{of:?}");
    };
    // The first notifications get lost, so all come again.
    primary.publish(&model.zones()).await.into_result().unwrap();
    told(&model, &|_| None).await;
    told(&model, &confirm).await;
    let container = model.run(3, "worker", 2);
    primary.publish(&model.zones()).await.into_result().unwrap();
    told(&model, &confirm).await;
    // That somebody is no authority for the forward zone ends nothing: it comes to know it.
    model.apply(pn_core::Change::Fail(container));
    primary.publish(&model.zones()).await.into_result().unwrap();
    told(&model, &|_| Some(9)).await;
    told(&model, &confirm).await;
    // A change of another network is not their business.
    model.app(9, 2, "web:1");
    model.run(9, "web", 1);
    primary.publish(&model.zones()).await.into_result().unwrap();
    assert!(timeout(Duration::from_millis(300), listen(&socket, confirm)).await.is_err());
}
