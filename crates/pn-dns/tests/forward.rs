//! Forwarding to upstream servers that are good, and to some that lie.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![cfg(feature = "forward")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use pn_core::Transport;
use pn_dns::{Forwarder, OtherNames};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// What an upstream does with a query: the datagrams it sends over UDP, each from its own port or from another.
type Behaviour = dyn Fn(&Message) -> Vec<(Sender, Message)> + Send + Sync;

#[derive(Clone, Copy)]
enum Sender {
    Itself,
    AnotherPort,
}

/// An upstream server on loopback.
struct Upstream {
    address: SocketAddr,
    udp: Arc<AtomicUsize>,
    tcp: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    /// Starts a server that does one thing over UDP and the right one over TCP.
    async fn start(over_udp: impl Fn(&Message) -> Vec<(Sender, Message)> + Send + Sync + 'static) -> Self {
        let over_udp: Box<Behaviour> = Box::new(over_udp);
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let (asked_udp, asked_tcp) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let asked = asked_udp.clone();
        tasks.spawn(async move {
            let another = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut query = vec![0; 4096];
            loop {
                let (len, client) = udp.recv_from(&mut query).await.unwrap();
                asked.fetch_add(1, Ordering::SeqCst);
                for (sender, reply) in over_udp(&Message::from_vec(&query[..len]).unwrap()) {
                    let socket = if matches!(sender, Sender::Itself) { &udp } else { &another };
                    socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
                }
            }
        });
        let asked = asked_tcp.clone();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                asked.fetch_add(1, Ordering::SeqCst);
                while let Ok(len) = stream.read_u16().await {
                    let mut query = vec![0; usize::from(len)];
                    stream.read_exact(&mut query).await.unwrap();
                    let reply = whole(&Message::from_vec(&query).unwrap()).to_vec().unwrap();
                    let len = u16::try_from(reply.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&len[..], &reply].concat()).await.unwrap();
                }
            }
        });
        Self { address, udp: asked_udp, tcp: asked_tcp, _tasks: tasks }
    }

    async fn good() -> Self {
        Self::start(|query| vec![(Sender::Itself, good(query))]).await
    }

    fn asked(&self) -> (usize, usize) {
        (self.udp.load(Ordering::SeqCst), self.tcp.load(Ordering::SeqCst))
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// The reply's frame.
fn response(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_available = true;
    reply.queries = query.queries.clone();
    reply
}

fn with_address(mut reply: Message, address: [u8; 4]) -> Message {
    let owner = reply.queries[0].name().clone();
    reply.add_answer(Record::from_rdata(owner, 300, RData::A(A(address.into()))));
    reply
}

fn good(query: &Message) -> Message {
    with_address(response(query), GOOD)
}

/// Many addresses: what only TCP holds.
fn whole(query: &Message) -> Message {
    (0..200).fold(response(query), |reply, n| with_address(reply, [192, 0, 2, n]))
}

const GOOD: [u8; 4] = [192, 0, 2, 1];
const EVIL: [u8; 4] = [203, 0, 113, 6];

fn query(text: &str, record_type: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(text), record_type));
    query.edns.insert(Edns::new()).set_max_payload(1232);
    query
}

/// Asks a forwarder and reads the reply, which must belong to the question.
async fn ask(forwarder: &Forwarder, query: &Message, transport: Transport) -> Message {
    let reply = forwarder.answer(&query.to_vec().unwrap(), transport).await.expect("a query gets a reply");
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, query.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert!(reply.metadata.recursion_available && !reply.metadata.authoritative && !reply.metadata.authentic_data);
    assert_eq!(reply.queries.len(), 1);
    assert!(reply.queries[0].name().eq_case(query.queries[0].name()), "the question's case comes back");
    assert_eq!(reply.edns.is_some(), query.edns.is_some());
    reply
}

async fn addresses(forwarder: &Forwarder, text: &str) -> Vec<[u8; 4]> {
    let reply = ask(forwarder, &query(text, RecordType::A), Transport::Udp).await;
    let address = |record: &Record| if let RData::A(address) = &record.data { Some(address.0.octets()) } else { None };
    reply.answers.iter().filter_map(address).collect()
}

fn forwarder(upstreams: &[&Upstream]) -> Forwarder {
    Forwarder::with_timeout(upstreams.iter().map(|upstream| upstream.address), Duration::from_secs(1)).unwrap()
}

/// A server that says this first, and then the truth.
async fn liar(lie: impl Fn(&Message) -> (Sender, Message) + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |query| vec![lie(query), (Sender::Itself, good(query))]).await
}

#[tokio::test]
async fn a_reply_that_belongs_to_another_question_does_not_count() {
    let wrong_id = liar(|query| {
        let mut lie = with_address(response(query), EVIL);
        lie.metadata.id = lie.metadata.id.wrapping_add(1);
        (Sender::Itself, lie)
    });
    let wrong_name = liar(|query| {
        let mut lie = response(query);
        lie.queries[0].set_name(name("evil.example."));
        (Sender::Itself, with_address(lie, EVIL))
    });
    let wrong_type = liar(|query| {
        let mut lie = with_address(response(query), EVIL);
        lie.queries[0].set_query_type(RecordType::AAAA);
        (Sender::Itself, lie)
    });
    let no_question = liar(|query| {
        let mut lie = with_address(response(query), EVIL);
        lie.queries.clear();
        (Sender::Itself, lie)
    });
    let another_port = liar(|query| (Sender::AnotherPort, with_address(response(query), EVIL)));
    for (what, upstream) in [
        ("id", wrong_id.await),
        ("name", wrong_name.await),
        ("type", wrong_type.await),
        ("no question", no_question.await),
        ("port", another_port.await),
    ] {
        assert_eq!(addresses(&forwarder(&[&upstream]), "www.example.").await, [GOOD], "{what}");
        assert_eq!(upstream.asked(), (1, 0), "{what}");
    }
}

#[tokio::test]
async fn what_is_truncated_is_asked_over_tcp() {
    let upstream = Upstream::start(|query| {
        let mut reply = response(query);
        reply.metadata.truncation = true;
        vec![(Sender::Itself, reply)]
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    let query = query("many.example.", RecordType::A);
    let reply = ask(&forwarder, &query, Transport::Tcp).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false));
    assert_eq!(upstream.asked(), (1, 1));
    // And what does not fit here comes shortened, as much as fits.
    let octets = forwarder.answer(&query.to_vec().unwrap(), Transport::Udp).await.unwrap();
    let reply = Message::from_vec(&octets).unwrap();
    assert!(octets.len() <= 1232 && octets.len() > 1232 - 16, "{}", octets.len());
    assert!(reply.metadata.truncation && reply.edns.is_some());
    let mut plain = query.clone();
    plain.edns = None;
    let octets = forwarder.answer(&plain.to_vec().unwrap(), Transport::Udp).await.unwrap();
    assert!(octets.len() <= 512 && octets.len() > 512 - 16, "{}", octets.len());
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_passed_over_and_not_asked_again() {
    let refused = |code: ResponseCode| {
        Upstream::start(move |query| {
            let mut reply = response(query);
            reply.metadata.response_code = code;
            vec![(Sender::Itself, reply)]
        })
    };
    let unreachable = Upstream::good().await;
    let address = unreachable.address;
    drop(unreachable);
    let silent = Upstream::start(|_| vec![]).await;
    let forged = Upstream::start(|query| {
        let mut lie = with_address(response(query), EVIL);
        lie.metadata.id ^= 1;
        vec![(Sender::Itself, lie)]
    })
    .await;
    let (servfail, refused) = (refused(ResponseCode::ServFail).await, refused(ResponseCode::Refused).await);
    for (what, bad) in [
        ("silent", silent.address),
        ("forged", forged.address),
        ("unreachable", address),
        ("SERVFAIL", servfail.address),
        ("REFUSED", refused.address),
    ] {
        let good = Upstream::good().await;
        let forwarder = Forwarder::with_timeout([bad, good.address], Duration::from_millis(300)).unwrap();
        for n in 0..5 {
            assert_eq!(addresses(&forwarder, &format!("{n}.example.")).await, [GOOD], "{what}");
        }
        assert_eq!(good.asked().0, 5, "{what}");
    }
    // Retransmissions within the first question are all that the silent one got.
    assert!(silent.asked().0 < 5, "{:?}", silent.asked());
    assert_eq!((servfail.asked(), refused.asked()), ((1, 0), (1, 0)));
}

#[tokio::test]
async fn without_an_upstream_that_answers_the_reply_says_so() {
    let silent = Upstream::start(|_| vec![]).await;
    let forwarder = Forwarder::with_timeout([silent.address], Duration::from_millis(100)).unwrap();
    let reply = ask(&forwarder, &query("www.example.", RecordType::A), Transport::Udp).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    // RFC 8914: network error, and whose.
    let edns = reply.edns.unwrap();
    let error = edns.option(EdnsCode::Unknown(15)).map(|error| Vec::try_from(error).unwrap()).unwrap();
    assert_eq!(error[..2], [0, 23]);
    assert!(String::from_utf8_lossy(&error[2..]).contains(&silent.address.to_string()));
    // Failures are not kept.
    let before = silent.asked().0;
    ask(&forwarder, &query("www.example.", RecordType::A), Transport::Udp).await;
    assert!(silent.asked().0 > before);
}

#[tokio::test]
async fn a_slow_upstream_is_waited_for() {
    let upstream = Upstream::start(|query| {
        std::thread::sleep(Duration::from_millis(200));
        vec![(Sender::Itself, good(query))]
    });
    // Its sleep must not hold the client up.
    let slow = std::thread::spawn(|| tokio::runtime::Runtime::new().unwrap());
    let runtime = slow.join().unwrap();
    let upstream = runtime.spawn(upstream).await.unwrap();
    assert_eq!(addresses(&forwarder(&[&upstream]), "slow.example.").await, [GOOD]);
    runtime.shutdown_background();
}

#[tokio::test]
async fn answers_and_denials_are_kept_as_long_as_they_say() {
    let upstream = Upstream::start(|query| {
        let mut reply = response(query);
        let label = query.queries[0].name().iter().next().unwrap().to_ascii_lowercase();
        let soa = SOA::new(name("ns.example."), name("nobody.invalid."), 1, 1, 1, 1, 60);
        let soa = Record::from_rdata(name("example."), 60, RData::SOA(soa));
        match &*label {
            b"none" => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.authorities = vec![soa];
            }
            b"nodata" => reply.authorities = vec![soa],
            b"nosoa" => reply.metadata.response_code = ResponseCode::NXDomain,
            b"now" => {
                reply = with_address(reply, GOOD);
                reply.answers[0].ttl = 0;
            }
            _ => reply = with_address(reply, GOOD),
        }
        vec![(Sender::Itself, reply)]
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    for (text, code, asked) in [
        ("www.example.", ResponseCode::NoError, 1),
        ("none.example.", ResponseCode::NXDomain, 1),
        ("nodata.example.", ResponseCode::NoError, 1),
        ("nosoa.example.", ResponseCode::NXDomain, 3),
    ] {
        let before = upstream.asked().0;
        for text in [text.to_owned(), text.to_ascii_uppercase(), text.to_owned()] {
            let reply = ask(&forwarder, &query(&text, RecordType::A), Transport::Udp).await;
            assert_eq!(reply.metadata.response_code, code, "{text}");
            let denied = text.to_ascii_lowercase().starts_with("no") && !text.to_ascii_lowercase().starts_with("nos");
            assert_eq!(reply.authorities.len(), usize::from(denied), "{text}: {:?}", reply.authorities);
        }
        assert_eq!(upstream.asked().0 - before, asked, "{text}");
    }
    let before = upstream.asked().0;
    for _ in 0..3 {
        assert_eq!(addresses(&forwarder, "now.example.").await, [GOOD]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(upstream.asked().0 - before, 3, "a time to live of 0");
    // Another type is another question.
    let before = upstream.asked().0;
    ask(&forwarder, &query("www.example.", RecordType::AAAA), Transport::Udp).await;
    assert_eq!(upstream.asked().0 - before, 1);
}

/// What is kept grows old as it says, and is asked for again when its time is over.
#[tokio::test]
async fn what_is_kept_counts_down_and_ends() {
    const TTL: u32 = 2;
    let upstream = Upstream::start(|query| {
        let mut reply = good(query);
        reply.answers[0].ttl = TTL;
        vec![(Sender::Itself, reply)]
    })
    .await;
    let (forwarder, query) = (forwarder(&[&upstream]), query("www.example.", RecordType::A));
    let begin = Instant::now();
    let mut seen = Vec::new();
    loop {
        let reply = ask(&forwarder, &query, Transport::Udp).await;
        if upstream.asked().0 > 1 {
            assert_eq!(reply.answers[0].ttl, TTL, "it begins again");
            break;
        }
        seen.push(reply.answers[0].ttl);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begin.elapsed() >= Duration::from_secs(TTL.into()), "{:?}", begin.elapsed());
    assert!(seen.is_sorted_by(|before, after| before >= after), "{seen:?}");
    seen.dedup();
    assert!(seen.first() == Some(&TTL) && seen.contains(&1) && seen.len() <= 3, "{seen:?}");
}

/// However many names are asked for, no more than 8 192 answers are kept: the others are asked for again. The cache takes entries out
/// some dozens at a time.
#[tokio::test]
async fn the_cache_is_bounded() {
    const KEPT: usize = 8192;
    const NAMES: usize = KEPT + 2048;
    let upstream = Upstream::good().await;
    let forwarder = forwarder(&[&upstream]);
    for round in 0..2 {
        let before = upstream.asked().0;
        for name in 0..NAMES {
            assert_eq!(addresses(&forwarder, &format!("n{name}.example.")).await, [GOOD]);
        }
        let asked = upstream.asked().0 - before;
        if round == 0 {
            assert_eq!(asked, NAMES);
        } else {
            let known = NAMES - asked;
            assert!(known <= KEPT + 512, "{known} answers were kept");
            assert!(known >= KEPT / 4, "{known} answers were kept");
        }
    }
}

#[tokio::test]
async fn our_names_are_neither_asked_for_nor_believed() {
    let upstream = Upstream::start(|query| {
        // An alias to one of our names, and an address for it.
        let (mut reply, ours) = (response(query), name("ap-x.pn-y.private-network.internal."));
        let owner = reply.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(owner, 300, RData::CNAME(CNAME(ours.clone()))));
        reply.add_answer(Record::from_rdata(ours, 300, RData::A(A(EVIL.into()))));
        vec![(Sender::Itself, reply)]
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    for (text, code) in [
        ("private-network.internal.", ResponseCode::Refused),
        ("1.web.ap-x.pn-y.Private-Network.Internal.", ResponseCode::Refused),
        ("1.0.240.10.in-addr.arpa.", ResponseCode::NXDomain),
        ("53.53.254.169.in-addr.arpa.", ResponseCode::NXDomain),
    ] {
        for record_type in [RecordType::A, RecordType::PTR, RecordType::SOA, RecordType::ANY] {
            let reply = ask(&forwarder, &query(text, record_type), Transport::Udp).await;
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{text}");
        }
    }
    assert_eq!(upstream.asked(), (0, 0), "D10");
    let reply = ask(&forwarder, &query("alias.example.", RecordType::A), Transport::Udp).await;
    assert_eq!(reply.answers.len(), 1, "{:?}", reply.answers);
    assert_eq!(reply.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(upstream.asked(), (1, 0), "the alias is not followed");
}

#[tokio::test]
async fn ids_and_ports_are_random() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let ids = seen.clone();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut upstream = JoinSet::new();
    upstream.spawn(async move {
        let mut octets = vec![0; 4096];
        loop {
            let (len, client) = socket.recv_from(&mut octets).await.unwrap();
            let query = Message::from_vec(&octets[..len]).unwrap();
            ids.lock().unwrap().push((query.metadata.id, client.port()));
            socket.send_to(&good(&query).to_vec().unwrap(), client).await.unwrap();
        }
    });
    let forwarder = Forwarder::new([address]).unwrap();
    for n in 0..200 {
        let mut query = query(&format!("{n}.example."), RecordType::A);
        query.metadata.id = 7;
        ask(&forwarder, &query, Transport::Udp).await;
    }
    let seen = seen.lock().unwrap();
    let distinct = |of: &dyn Fn(&(u16, u16)) -> u16| seen.iter().map(of).collect::<std::collections::BTreeSet<_>>();
    for values in [distinct(&|seen| seen.0), distinct(&|seen| seen.1)] {
        assert!(values.len() > 190, "{} of 200", values.len());
        let span = values.last().unwrap() - values.first().unwrap();
        assert!(span > 20_000, "between {:?} and {:?}", values.first(), values.last());
        let steps = values.iter().zip(values.iter().skip(1)).filter(|(a, b)| **a + 1 == **b).count();
        assert!(steps < 40, "{steps} follow one another");
    }
}

#[tokio::test]
async fn a_question_that_many_ask_at_once_is_asked_once() {
    let upstream = Upstream::good().await;
    let forwarder = Arc::new(forwarder(&[&upstream]));
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let forwarder = forwarder.clone();
        clients.spawn(async move { addresses(&forwarder, "www.example.").await });
    }
    while let Some(found) = clients.join_next().await {
        assert_eq!(found.unwrap(), [GOOD]);
    }
    assert_eq!(upstream.asked(), (1, 0));
}

#[tokio::test]
async fn no_octets_do_harm() {
    let upstream = Upstream::good().await;
    let forwarder = forwarder(&[&upstream]);
    let good = query("www.example.", RecordType::A).to_vec().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..2000 {
        let mut octets = good.clone();
        if round % 2 == 0 {
            octets = (0..rng.usize(0..200)).map(|_| rng.u8(..)).collect();
        } else {
            let at = rng.usize(0..octets.len());
            octets[at] = rng.u8(..);
            octets.truncate(rng.usize(12..=octets.len()));
        }
        // A question that changed by a bit may be a good one.
        let answer = forwarder.answer(&octets, Transport::Udp);
        let _ = tokio::time::timeout(Duration::from_millis(100), answer).await;
    }
    assert_eq!(addresses(&forwarder, "www.example.").await, [GOOD]);
}

#[cfg(feature = "server")]
#[tokio::test]
async fn a_server_forwards_what_is_not_ours() {
    use pn_core::{DnsBackend, NetworkId, Region, State};
    use pn_dns::{DnsServer, Names};
    use tokio::net::TcpStream;

    let upstream = Upstream::good().await;
    let (names, network) = (Arc::new(Names::new(1)), NetworkId::from_u128(1));
    names.publish(&State::new(Region::default()).plan().zones()).await.into_result().unwrap();
    let forwarder = Arc::new(forwarder(&[&upstream]));
    let builder = DnsServer::builder(network, names).other_names(forwarder);
    let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let over_udp = async |query: &Message| {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query.to_vec().unwrap(), server.local_addr()).await.unwrap();
        let mut reply = vec![0; 4096];
        let received = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut reply));
        let len = received.await.unwrap().unwrap();
        Message::from_vec(&reply[..len]).unwrap()
    };
    let over_tcp = async |query: &Message| {
        let (query, mut stream) = (query.to_vec().unwrap(), TcpStream::connect(server.local_addr()).await.unwrap());
        stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat()).await.unwrap();
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        Message::from_vec(&reply).unwrap()
    };
    let other = query("www.example.", RecordType::A);
    for reply in [over_udp(&other).await, over_tcp(&other).await] {
        assert_eq!((reply.metadata.id, reply.answers.len()), (other.metadata.id, 1));
        assert!(reply.metadata.recursion_available);
    }
    assert_eq!(upstream.asked(), (1, 0), "the second time it is known");
    for ours in ["ap-x.pn-y.private-network.internal.", "1.0.240.10.in-addr.arpa."] {
        for reply in [over_udp(&query(ours, RecordType::PTR)).await, over_tcp(&query(ours, RecordType::PTR)).await] {
            assert!(reply.answers.is_empty(), "{ours}: {reply}");
        }
    }
    assert_eq!(upstream.asked(), (1, 0), "D10");
    server.shutdown().await;
}
