//! What is logged above DEBUG, of which no name that somebody asked for may be a part.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![cfg(all(feature = "forward", feature = "server"))]

use std::fmt::{Debug, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pn_core::{NetworkId, Transport};
use pn_dns::{DnsServer, Forwarder, Names, OtherNames, stub};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Keeps what is logged above DEBUG.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut self.clone());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        writeln!(self.0.lock().unwrap(), "{field}={value:?}").unwrap();
    }
}

/// An upstream that says of every query something that is no answer to it, or nothing.
fn upstream(say: impl Fn(&mut [u8]) -> Option<usize> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut octets = [0; 4096];
        while let Ok((len, client)) = socket.recv_from(&mut octets) {
            if let Some(len) = say(&mut octets[..len]) {
                let _ = socket.send_to(&octets[..len], client);
            }
        }
    });
    address
}

/// Makes a query a reply with this code, and with the name in it or without.
fn reply(query: &mut [u8], code: u8, len: usize) -> Option<usize> {
    query[2] |= 0x80;
    query[3] = code;
    Some(len.min(query.len()))
}

#[tokio::test]
async fn no_name_that_is_asked_for_is_logged() {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstreams = [
        silent.local_addr().unwrap(),
        upstream(|_| None),
        upstream(|query| reply(query, 0, 4096)),
        upstream(|query| reply(query, 2, 4096)),
        upstream(|query| reply(query, 5, 4096)),
        upstream(|query| reply(query, 1, 12)),
        upstream(|query| reply(query, 0, 30)),
        upstream(|query| {
            query[13] ^= 1;
            reply(query, 0, 4096)
        }),
    ];
    let names = Arc::new(Names::new(1));
    for upstream in upstreams {
        let forwarder = Forwarder::with_timeout([upstream], Duration::from_millis(200)).unwrap();
        for transport in [Transport::Udp, Transport::Tcp] {
            let query = stub::query("a-secret.example.com", 7).unwrap();
            assert!(forwarder.answer(&query, transport).await.is_some());
        }
    }
    let server = DnsServer::builder(NetworkId::from_u128(1), names).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for name in ["a-secret.example.com", "a-secret.ap-1.pn-1.private-network.internal"] {
        let query = stub::query(name, 7).unwrap();
        for len in [query.len(), query.len() - 3] {
            socket.send_to(&query[..len], server.local_addr()).await.unwrap();
            tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut [0; 4096])).await.unwrap().unwrap();
        }
    }
    server.shutdown().await;
    let log = log.0.lock().unwrap().clone();
    assert!(log.contains("an upstream server did not answer") && log.contains("answering DNS"), "{log}");
    assert!(!log.contains("a-secret"), "{log}");
}
