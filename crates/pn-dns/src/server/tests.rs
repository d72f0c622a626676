mod clients;
mod load;

use core::future::Future;

use pn_core::{DnsBackend, Resolver, Transport, ZoneSet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::counts::{Count, Drop};
use crate::fixture::{expand, network, shop};
use crate::stub::{self, Reply};

/// How long anything here may take: a bound for failure, not a delay.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

async fn publish(names: &Names, zones: &ZoneSet) {
    assert!(names.publish(zones).await.failures().next().is_none());
}

async fn names() -> Arc<Names> {
    let names = Arc::new(Names::new(1));
    publish(&names, &shop().zones()).await;
    names
}

async fn start(builder: DnsServerBuilder) -> DnsServer {
    builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

async fn server() -> DnsServer {
    start(DnsServer::builder(network(1), names().await)).await
}

async fn send(stream: &mut TcpStream, id: u16, name: &str) -> io::Result<()> {
    let query = stub::query(&expand(name), id).unwrap();
    stream.write_all(&[&(query.len() as u16).to_be_bytes(), &query[..]].concat()).await
}

async fn receive(stream: &mut TcpStream, id: u16, name: &str) -> io::Result<Reply> {
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(stub::addresses(id, &expand(name), &reply).unwrap())
}

async fn ask_tcp(stream: &mut TcpStream, id: u16, name: &str) -> io::Result<Reply> {
    send(stream, id, name).await?;
    soon("a reply", receive(stream, id, name)).await
}

async fn connect(server: &DnsServer) -> TcpStream {
    TcpStream::connect(server.local_addr()).await.unwrap()
}

/// Opens a connection on which a query is answered, as soon as the server lets it.
async fn answered(server: &DnsServer) -> TcpStream {
    let attempts = async {
        loop {
            let mut stream = connect(server).await;
            if let Ok(reply) = ask_tcp(&mut stream, 1, "1.web.ap1.pn1.^").await {
                assert_eq!(reply, address(1));
                return stream;
            }
        }
    };
    soon("an answered query", attempts).await
}

fn address(last: u8) -> Reply {
    Reply::Addresses(vec![[10, 240, 0, last].into()])
}

/// Waits until the other end has closed.
async fn closed(stream: &mut TcpStream) {
    let mut octets = [0; 64];
    soon("closing", async { while stream.read(&mut octets).await.is_ok_and(|len| len > 0) {} }).await;
}

#[tokio::test]
async fn udp_and_tcp_answer_on_one_port() {
    let server = server().await;
    assert_eq!(server.network(), network(1));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(server.local_addr()).await.unwrap();
    let mut reply = [0; 2048];
    // What gets no reply does not end the service either.
    for octets in [&[][..], &[1, 2, 3], &[0x80; 12]] {
        client.send(octets).await.unwrap();
    }
    for (name, expected) in [("1.web.ap1.pn1.^", address(1)), ("ap2.pn2.^", Reply::NxDomain)] {
        client.send(&stub::query(&expand(name), 7).unwrap()).await.unwrap();
        let len = soon("a reply", client.recv(&mut reply)).await.unwrap();
        assert_eq!(stub::addresses(7, &expand(name), &reply[..len]), Ok(expected.clone()));
        assert_eq!(ask_tcp(&mut connect(&server).await, 8, name).await.unwrap(), expected);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn d13_many_queries_are_pipelined_on_a_connection() {
    let server = server().await;
    let mut stream = connect(&server).await;
    let names = ["1.web.ap1.pn1.^", "2.web.ap1.pn1.^", "pn1.^"];
    let queries: Vec<(u16, &str)> = (0..300).zip(names.into_iter().cycle()).collect();
    // A message that gets no reply stands among them.
    stream.write_all(&[0, 0]).await.unwrap();
    for (id, name) in &queries {
        send(&mut stream, *id, name).await.unwrap();
    }
    for (id, name) in &queries {
        let expected = [address(1), address(2), Reply::NoData][usize::from(*id) % 3].clone();
        assert_eq!(soon("a reply", receive(&mut stream, *id, name)).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_query_may_come_octet_by_octet() {
    let server = server().await;
    let mut stream = connect(&server).await;
    stream.set_nodelay(true).unwrap();
    let query = stub::query(&expand("1.web.ap1.pn1.^"), 7).unwrap();
    for octet in [&(query.len() as u16).to_be_bytes(), &query[..]].concat() {
        stream.write_all(&[octet]).await.unwrap();
    }
    assert_eq!(soon("a reply", receive(&mut stream, 7, "1.web.ap1.pn1.^")).await.unwrap(), address(1));
}

#[tokio::test]
async fn d13_a_change_of_zone_closes_no_connection() {
    let names = names().await;
    let server = start(DnsServer::builder(network(1), Arc::clone(&names))).await;
    let mut stream = connect(&server).await;
    let name = "2.worker.ap3.pn1.^";
    assert_eq!(ask_tcp(&mut stream, 1, name).await.unwrap(), Reply::NxDomain);
    let mut model = shop();
    model.app(5, 1, "new:1");
    model.run(5, "new", 1);
    publish(&names, &model.zones()).await;
    assert_eq!(ask_tcp(&mut stream, 2, "new.ap5.pn1.^").await.unwrap(), address(7));
    publish(&names, &ZoneSet { generation: model.state.generation(), ..Default::default() }).await;
    assert_eq!(ask_tcp(&mut stream, 3, name).await.unwrap(), Reply::Failed(2));
}

#[tokio::test]
async fn d13_idle_connections_are_closed() {
    let builder = DnsServer::builder(network(1), names().await).idle_timeout(Duration::from_millis(50));
    let server = start(builder).await;
    let (mut silent, mut slow) = (answered(&server).await, connect(&server).await);
    slow.write_all(&[0, 40, 1]).await.unwrap();
    closed(&mut silent).await;
    closed(&mut slow).await;
    answered(&server).await;
}

#[tokio::test]
async fn d13_connections_are_bounded() {
    let server = start(DnsServer::builder(network(1), names().await).max_connections(2)).await;
    let [mut first, mut second] = [answered(&server).await, answered(&server).await];
    assert_eq!(ask_tcp(&mut first, 9, "1.web.ap1.pn1.^").await.unwrap(), address(1));
    let mut third = answered(&server).await;
    closed(&mut second).await;
    for stream in [&mut first, &mut third] {
        assert_eq!(ask_tcp(stream, 9, "1.web.ap1.pn1.^").await.unwrap(), address(1), "the second asked least lately");
    }
    assert_eq!(server.counts().get(Count::Dropped(Drop::Displaced)), 1);
}

#[tokio::test]
async fn shutdown_closes_everything_and_dropping_does_too() {
    for drop_it in [false, true] {
        // An address of this test's own, so that nobody else takes the port when it is free.
        let builder = DnsServer::builder(network(1), names().await);
        let server = builder.bind("127.0.0.77:0".parse().unwrap()).await.unwrap();
        let address = server.local_addr();
        let mut stream = connect(&server).await;
        ask_tcp(&mut stream, 1, "ap1.pn1.^").await.unwrap();
        if drop_it {
            drop(server);
        } else {
            server.shutdown().await;
            assert!(UdpSocket::bind(address).await.is_ok(), "the port is free when shutdown returns");
        }
        closed(&mut stream).await;
        let free = async {
            while UdpSocket::bind(address).await.is_err() || TcpListener::bind(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        soon("closing", free).await;
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_it() {
    let server = server().await;
    let address = server.local_addr();
    let error = DnsServer::builder(network(2), names().await).bind(address).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, true));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn a_server_may_outlive_its_runtime() {
    let server = thread::spawn(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(server())
    });
    drop(server.join().unwrap());
}

#[tokio::test]
async fn any_stream_is_served_until_its_client_ends_it() {
    let names = names().await;
    let name = "1.web.ap1.pn1.^";
    for (cut, expected) in [(0, Ok(())), (1, Err(io::ErrorKind::UnexpectedEof))] {
        let (mut client, server) = tokio::io::duplex(64);
        let query = stub::query(&expand(name), 3).unwrap();
        let message = [&(query.len() as u16).to_be_bytes(), &query[..]].concat();
        let ask = async {
            // What gets no reply is passed over.
            client.write_all(&[0, 0]).await.unwrap();
            client.write_all(&message).await.unwrap();
            let mut reply = vec![0; usize::from(client.read_u16().await.unwrap())];
            client.read_exact(&mut reply).await.unwrap();
            assert_eq!(stub::addresses(3, &expand(name), &reply), Ok(address(1)));
            client.write_all(&message[..cut]).await.unwrap();
            drop(client);
        };
        let serve = serve_stream(server, network(1), &*names, None, PATIENCE);
        let ((), served) = soon("an answered stream", async { tokio::join!(ask, serve) }).await;
        assert_eq!(served.map_err(|error| error.kind()), expected);
    }
    let (_client, server) = tokio::io::duplex(64);
    let error = serve_stream(server, network(1), &*names, None, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
