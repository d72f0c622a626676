//! Who asks, and what else a server does for them: counts, staleness, limits, cookies, other names, transfers.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeSet;

use async_trait::async_trait;

use super::*;
use crate::cookie::Secret;
use crate::rcode::Rcode;
use crate::wire::eye;

/// A client over UDP.
struct Client(UdpSocket);

impl Client {
    async fn of(server: &DnsServer) -> Self {
        Self::on("127.0.0.1:0", server.local_addr()).await
    }

    /// Asks a server from an address of its own.
    async fn on(own: &str, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind(own).await.unwrap();
        socket.connect(server).await.unwrap();
        Self(socket)
    }

    async fn send(&self, query: &[u8]) {
        self.0.send(query).await.unwrap();
    }

    async fn receive(&self) -> Vec<u8> {
        let mut reply = vec![0; 4096];
        let len = soon("a reply", self.0.recv(&mut reply)).await.unwrap();
        reply.truncate(len);
        reply
    }

    async fn ask(&self, query: &str) -> String {
        self.send(&eye::query(&expand(query))).await;
        eye::describe(&self.receive().await)
    }
}

/// Waits until something was counted so often.
async fn counted(server: &DnsServer, count: Count, times: u64) {
    let waiting = async {
        while server.counts().get(count) < times {
            tokio::task::yield_now().await;
        }
    };
    soon("counting", waiting).await;
    assert_eq!(server.counts().get(count), times, "{count}");
}

#[tokio::test]
async fn everything_is_counted() {
    let server = server().await;
    let client = Client::of(&server).await;
    let mut stream = connect(&server).await;
    for (query, rcode) in [
        ("ap1.pn1.^ A", Rcode::NoError),
        ("ap9.pn1.^ A", Rcode::NxDomain),
        ("example.com A", Rcode::Refused),
        ("ap1.pn1.^ A +version=1", Rcode::BadVers),
    ] {
        client.ask(query).await;
        counted(&server, Count::Reply(Transport::Udp, rcode), 1).await;
    }
    client.send(&[0; 12]).await;
    counted(&server, Count::Reply(Transport::Udp, Rcode::FormErr), 1).await;
    client.send(&[0; 5]).await;
    counted(&server, Count::Dropped(Drop::NoQuery), 1).await;
    client.send(&vec![0; 5000]).await;
    counted(&server, Count::Reply(Transport::Udp, Rcode::FormErr), 2).await;
    ask_tcp(&mut stream, 1, "ap9.pn1.^").await.unwrap();
    counted(&server, Count::Reply(Transport::Tcp, Rcode::NxDomain), 1).await;
    assert_eq!(server.counts().get(Count::Reply(Transport::Udp, Rcode::NxDomain)), 1);
}

#[tokio::test]
async fn d10_stale_names_are_answered_and_expired_ones_are_not() {
    let names = names().await;
    let server = start(DnsServer::builder(network(1), Arc::clone(&names))).await;
    let client = Client::of(&server).await;
    let (stale, expired) = (Duration::from_secs(1), Duration::from_secs(2));
    for (silence, expected) in [(0, "NoError aa A 5 10.240.0.1"), (1, "NoError aa A 5 10.240.0.1"), (2, "ServFail")] {
        names.set_freshness(Freshness::of_silence(Duration::from_secs(silence), stale, expired));
        assert_eq!(client.ask("1.web.ap1.pn1.^ A").await, expected);
        assert_eq!(client.ask("example.com A").await, "Refused", "never a public answer");
    }
    counted(&server, Count::Stale(Transport::Udp), 4).await;
    let resolved = names.resolve(network(1), Transport::Udp, &eye::query(&expand("ap1.pn1.^ A"))).unwrap();
    assert_eq!(eye::describe(&resolved), "ServFail");
    assert_eq!(names.counts().get(Count::Stale(Transport::Udp)), 1);
    names.set_freshness(Freshness::Current);
    assert_eq!(client.ask("1.web.ap1.pn1.^ A").await, "NoError aa A 5 10.240.0.1");
}

#[tokio::test]
async fn replies_are_limited_where_that_is_asked_for_and_not_for_who_has_a_cookie() {
    let mut limit = RateLimit::new(1);
    limit.burst = 2;
    let builder = DnsServer::builder(network(1), names().await).limit(limit).cookie_secrets(&[Secret::new([1; 16])]);
    let server = start(builder.nsid(b"here")).await;
    let client = Client::of(&server).await;
    let query = "1.web.ap1.pn1.^ A +nsid +cookie=0102030405060708";
    client.send(&eye::query(&expand(query))).await;
    let reply = client.receive().await;
    let described = eye::describe(&reply);
    assert_eq!(described, "NoError aa A 5 10.240.0.1 OPT 0 1232 nsid=here cookie=0102030405060708");
    let cookie = cookie_of(&reply);
    for _ in 0..20 {
        client.send(&eye::query(&expand("1.web.ap1.pn1.^ A +payload=1232"))).await;
    }
    // On a slow machine the seconds that pass allow for one or the other more.
    let (replied, dropped) = (Count::Reply(Transport::Udp, Rcode::NoError), Count::Dropped(Drop::Limited));
    let all = async {
        while server.counts().get(replied) + server.counts().get(dropped) < 21 {
            tokio::task::yield_now().await;
        }
    };
    soon("all to be counted", all).await;
    let (counts, mut truncated) = (server.counts(), 0);
    for _ in 1..counts.get(replied) {
        truncated += u64::from(eye::describe(&client.receive().await) == "NoError tc OPT 0 1232");
    }
    assert_eq!(counts.get(Count::Truncated(Transport::Udp)), truncated);
    assert!((5..=10).contains(&truncated) && (5..=10).contains(&counts.get(dropped)), "{truncated} truncated");
    for _ in 0..20 {
        let reply = client.ask(&format!("1.web.ap1.pn1.^ A +cookie={cookie}")).await;
        assert_eq!(reply, "NoError aa A 5 10.240.0.1 OPT 0 1232 cookie=0102030405060708");
    }
}

/// Over IPv6, and over IPv4 to a socket of both, where the kernel says `::ffff:127.0.0.1`: the same answers, one cookie, and a limit
/// of each client's own.
#[tokio::test]
async fn d11_ipv6_sockets_serve_both_families() {
    for (bound, clients) in [("[::1]:0", &["[::1]:0"][..]), ("[::]:0", &["[::1]:0", "127.0.0.1:0"])] {
        let mut limit = RateLimit::new(1);
        limit.burst = 3;
        let builder = DnsServer::builder(network(1), names().await).limit(limit);
        let builder = builder.cookie_secrets(&[Secret::new([1; 16])]);
        let server = builder.bind(bound.parse().unwrap()).await.unwrap();
        for own in clients {
            let address = SocketAddr::new(own.parse::<SocketAddr>().unwrap().ip(), server.local_addr().port());
            // Plain, and with what the client has to be known for.
            let client = Client::on(own, address).await;
            assert_eq!(client.ask("1.web.ap1.pn1.^ A").await, "NoError aa A 5 10.240.0.1", "{own} at {bound}");
            client.send(&eye::query(&expand("1.web.ap1.pn1.^ A +cookie=0102030405060708"))).await;
            let reply = client.receive().await;
            let known = "NoError aa A 5 10.240.0.1 OPT 0 1232 cookie=0102030405060708";
            assert_eq!(eye::describe(&reply), known, "{own} at {bound}");
            let cookie = cookie_of(&reply);
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(ask_tcp(&mut stream, 1, "1.web.ap1.pn1.^").await.unwrap(), super::address(1));
            let limited = limited(&server, &client, &eye::query(&expand("1.web.ap1.pn1.^ A")), 40).await;
            assert!(limited.iter().any(|reply| eye::describe(reply) == "NoError tc"), "{own} at {bound}");
            let with_cookie = format!("1.web.ap1.pn1.^ A +cookie={cookie}");
            for _ in 0..20 {
                assert_eq!(client.ask(&with_cookie).await, known, "{own} at {bound}");
            }
        }
        server.shutdown().await;
    }
}

/// Whoever is known at an address is known there through a socket of either family.
#[tokio::test]
async fn d11_a_cookie_is_of_an_address_and_not_of_a_socket() {
    let mut cookie = "0102030405060708".to_owned();
    for (n, bound) in ["127.0.0.1:0", "[::]:0"].into_iter().enumerate() {
        let builder = DnsServer::builder(network(1), names().await).cookie_secrets(&[Secret::new([1; 16])]);
        let server = builder.bind(bound.parse().unwrap()).await.unwrap();
        let address = SocketAddr::new([127, 0, 0, 1].into(), server.local_addr().port());
        let client = Client::on("127.0.0.1:0", address).await;
        client.send(&eye::query(&expand(&format!("1.web.ap1.pn1.^ A +cookie={cookie}")))).await;
        let given = cookie_of(&client.receive().await);
        assert!(n == 0 || given == cookie, "one that is good is given back");
        cookie = given;
    }
}

/// Returns the cookie at the end of a reply.
fn cookie_of(reply: &[u8]) -> String {
    reply[reply.len() - 24..].iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Returns which replies a query gets that comes so often from a client that has had its burst, each once. Some get none.
async fn limited(server: &DnsServer, client: &Client, query: &[u8], times: u64) -> BTreeSet<Vec<u8>> {
    let dropped = |server: &DnsServer| server.counts().get(Count::Dropped(Drop::Limited));
    let before = dropped(server);
    for _ in 0..times {
        client.send(query).await;
    }
    let waiting = async {
        let mut replies = BTreeSet::new();
        let mut count = 0;
        while count + dropped(server) - before < times {
            let mut reply = vec![0; 4096];
            if let Ok(len) = client.0.try_recv(&mut reply) {
                reply.truncate(len);
                replies.insert(reply);
                count += 1;
            }
            tokio::task::yield_now().await;
        }
        assert!(count > 0 && dropped(server) > before, "{count} of {times} are answered");
        replies
    };
    soon("all to be counted", waiting).await
}

/// What is forwarded or signed counts as everything else does, nobody else hears of what is beyond the limit, and EDNS gets EDNS
/// (RFC 6891 §6.1.1).
#[tokio::test]
async fn the_limit_holds_for_every_kind_of_query() {
    let mut limit = RateLimit::new(1);
    limit.burst = 1;
    let (others, zones) = (Arc::new(Counted::default()), Arc::new(Counted::default()));
    let builder = DnsServer::builder(network(1), names().await).limit(limit);
    let server = start(builder.other_names(Arc::clone(&others) as _).transfers(Arc::clone(&zones) as _)).await;
    let client = Client::of(&server).await;
    client.ask("pn1.^ SOA").await;
    for (query, expected) in [
        (eye::query("example.com A"), "NoError tc"),
        (eye::query("example.com A +do +rd"), "NoError tc rd OPT 0 1232 do"),
        (eye::query(&expand("1.web.ap1.pn1.^ A")), "NoError tc"),
        (eye::query(&expand("ap9.pn1.^ A +payload=4096")), "NoError tc OPT 0 1232"),
        (eye::query(&expand("ap1.pn1.^ A +version=1")), "BADVERS OPT 0 1232"),
        (eye::query(&expand("ap1.pn1.^ A CH")), "NoError tc"),
        (signed("pn1.^ SOA"), "NoError tc"),
        (vec![0; 12], "FormErr"),
    ] {
        let replies = limited(&server, &client, &query, 40).await;
        let described: Vec<String> = replies.iter().map(|reply| eye::describe(reply)).collect();
        assert!(described.iter().any(|said| said == expected), "{described:?}, not {expected}");
    }
    // A second gives one more to one query or another.
    for asked in [&others, &zones] {
        assert!(asked.0.load(Ordering::SeqCst) < 40, "others were asked {asked:?}");
    }
}

/// Counts how often it is asked.
#[derive(Debug, Default)]
struct Counted(AtomicU64);

#[async_trait]
impl OtherNames for Counted {
    async fn answer(&self, query: &[u8], _: Transport) -> Option<Vec<u8>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Some([&query[..2], &[0x80], &query[3..]].concat())
    }
}

impl Transfers for Counted {
    fn transfer(
        &self,
        _: NetworkId,
        _: SocketAddr,
        _: Transport,
        query: &[u8],
    ) -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::new(core::iter::once([&query[..2], &[0x80], &query[3..]].concat()))
    }
}

/// Answers every name but `silent.`, the later the longer its first label is.
#[derive(Debug)]
struct Upstream;

#[async_trait]
impl OtherNames for Upstream {
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let first = usize::from(query[12]);
        // One after the other: each lets all others go first, as often as its label is long.
        for _ in 0..50 * first {
            tokio::task::yield_now().await;
        }
        let mut reply = query.to_vec();
        reply[2] |= 0x80;
        reply[3] = if transport == Transport::Tcp { 2 } else { 0 };
        (first != 6).then_some(reply)
    }
}

#[tokio::test]
async fn d10_other_names_are_asked_elsewhere_and_ours_never() {
    let server = start(DnsServer::builder(network(1), names().await).other_names(Arc::new(Upstream))).await;
    let client = Client::of(&server).await;
    for (query, expected) in [
        ("example.com A", "NoError"),
        ("4.240.10.in-addr.arpa PTR", "NoError"),
        ("example.com A CH", "Refused"),
        ("ap9.pn1.^ A", &format!("NXDomain aa authority SOA 1 pn1.^. {}", shop().zone(1).serial())),
        (
            "9.0.240.10.in-addr.arpa SOA",
            &format!("NXDomain aa authority SOA 1 0.240.10.in-addr.arpa. {}", shop().zone(1).serial()),
        ),
    ] {
        assert_eq!(client.ask(query).await, expand(expected), "{query}");
    }
    client.send(&eye::query("silent A")).await;
    counted(&server, Count::Dropped(Drop::Unanswered), 1).await;

    // Over one connection, who is slow does not stop the others.
    let mut stream = connect(&server).await;
    for (id, name) in [(1, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.com"), (2, "a.com"), (3, "1.web.ap1.pn1.^")] {
        send(&mut stream, id, name).await.unwrap();
    }
    assert_eq!(soon("ours", receive(&mut stream, 3, "1.web.ap1.pn1.^")).await.unwrap(), address(1));
    assert_eq!(soon("the quick", receive(&mut stream, 2, "a.com")).await.unwrap(), Reply::Failed(2));
    let slow = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.com";
    assert_eq!(soon("the slow", receive(&mut stream, 1, slow)).await.unwrap(), Reply::Failed(2));
    // Whoever has said everything still gets what is open.
    for id in 0..40 {
        send(&mut stream, id, "aa.com").await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..40 {
        let mut reply = vec![0; usize::from(soon("a reply", stream.read_u16()).await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        ids.push(reply[1]);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..40).collect::<Vec<u8>>());
    closed(&mut stream).await;
    counted(&server, Count::Reply(Transport::Tcp, Rcode::ServFail), 42).await;
    // Over either transport the counters know of it when nothing comes.
    let mut stream = connect(&server).await;
    send(&mut stream, 1, "silent").await.unwrap();
    counted(&server, Count::Dropped(Drop::Unanswered), 2).await;
}

/// Hands over messages that say who asked for how many.
#[derive(Debug)]
struct Zones;

impl Transfers for Zones {
    fn transfer(
        &self,
        of: NetworkId,
        peer: SocketAddr,
        transport: Transport,
        query: &[u8],
    ) -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        assert_eq!((of, peer.ip()), (network(1), IpAddr::from([127, 0, 0, 1])));
        let mut message = query.to_vec();
        message[2] |= 0x80;
        let count = if transport == Transport::Tcp { 1000 } else { 1 };
        Box::new((0..count).map(move |n: u16| {
            message[..2].copy_from_slice(&n.to_be_bytes());
            message.clone()
        }))
    }
}

#[tokio::test]
async fn transfers_and_signed_queries_go_to_who_has_the_zones() {
    let server = start(DnsServer::builder(network(1), names().await).transfers(Arc::new(Zones))).await;
    let mut stream = connect(&server).await;
    for query in [eye::query(&expand("pn1.^ AXFR")), eye::query(&expand("pn1.^ 251"))] {
        stream.write_all(&[&(query.len() as u16).to_be_bytes(), &query[..]].concat()).await.unwrap();
        for n in 0..1000 {
            let mut reply = vec![0; usize::from(soon("a message", stream.read_u16()).await.unwrap())];
            stream.read_exact(&mut reply).await.unwrap();
            assert_eq!(u16::from_be_bytes([reply[0], reply[1]]), n);
        }
    }
    assert_eq!(ask_tcp(&mut stream, 7, "1.web.ap1.pn1.^").await.unwrap(), address(1), "the connection stays");
    let counted = server.counts().get(Count::Reply(Transport::Tcp, Rcode::NoError));
    assert_eq!(counted, 3, "two transfers of a thousand messages, and a reply");
    let client = Client::of(&server).await;
    assert_eq!(client.ask("pn1.^ AXFR").await, "Refused", "not over UDP");
    let signed = signed("pn1.^ SOA");
    client.send(&signed).await;
    let reply = client.receive().await;
    assert_eq!(reply[..4], [0, 0, signed[2] | 0x80, signed[3]], "what the other said");
}

/// Writes a query with a TSIG record of some key: its name, type 250, class ANY, TTL 0, and data that only the other has to read.
fn signed(query: &str) -> Vec<u8> {
    let mut signed = eye::query(&expand(query));
    signed[11] = 1;
    signed.extend(b"\x03key\0\0\xfa\0\xff\0\0\0\0\0\x3d\x0bhmac-sha256\0\0\0\0\0\0\0\x01\x2c\0\x20");
    signed.extend([7; 32]);
    signed.extend(b"\x12\x34\0\0\0\0");
    signed
}
