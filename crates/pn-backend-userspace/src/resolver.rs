//! DNS inside a network: at once where it can be, and otherwise on the resolver's own stack.

use core::time::Duration;
use std::sync::Arc;

use pn_core::{NetworkId, Resolver, Transport};
use pn_dns::{OtherNames, is_for_others, serve_stream};
use tokio::sync::Semaphore;

use crate::tcp::TcpListener;
use crate::udp::UdpSocket;

/// How long a connection may be silent (RFC 7766 §6.2.3 asks for seconds).
const IDLE: Duration = Duration::from_secs(10);

/// Connections at a time, for each network.
const CONNECTIONS: usize = 128;

/// Queries over UDP that others are asked at a time, for each network.
const ASKED: usize = 128;

/// Who answers the queries of containers.
#[derive(Debug, Clone)]
pub(crate) struct Answerer {
    pub(crate) resolver: Arc<dyn Resolver>,
    /// Who is asked for names that are not ours.
    pub(crate) other_names: Option<Arc<dyn OtherNames>>,
}

impl Answerer {
    /// Answers a query over UDP at once; `None` where others have to be asked, which takes a while.
    pub(crate) fn answer(&self, network: NetworkId, query: &[u8]) -> Option<Option<Vec<u8>>> {
        let reply = self.resolver.resolve(network, Transport::Udp, query);
        let is_for_others = |reply: &Vec<u8>| self.other_names.is_some() && is_for_others(query, reply);
        if reply.as_ref().is_some_and(is_for_others) { None } else { Some(reply) }
    }
}

/// Answers queries over TCP, and those over UDP that were not answered at once, until the network leaves this node.
pub(crate) async fn serve(listener: TcpListener, socket: Option<UdpSocket>, network: NetworkId, answerer: Answerer) {
    let udp = async {
        if let (Some(socket), Some(others)) = (socket, &answerer.other_names) {
            serve_udp(Arc::new(socket), network, &answerer, others).await;
        }
    };
    tokio::join!(serve_tcp(listener, network, answerer.clone()), udp);
}

async fn serve_udp(socket: Arc<UdpSocket>, network: NetworkId, answerer: &Answerer, others: &Arc<dyn OtherNames>) {
    let permits = Arc::new(Semaphore::new(ASKED));
    let mut buffer = vec![0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let query = &buffer[..length];
        // Who asks more than can be asked asks again.
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        // What came in pieces may be for us.
        let answered = answerer.answer(network, query);
        let (socket, others, query) = (Arc::clone(&socket), Arc::clone(others), query.to_vec());
        tokio::spawn(async move {
            let reply = match answered {
                Some(reply) => reply,
                None => others.answer(&query, Transport::Udp).await,
            };
            if let Some(reply) = reply
                && let Err(error) = socket.send_to(&reply, client).await
            {
                tracing::debug!(%network, %error, "a DNS reply is not sent");
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(listener: TcpListener, network: NetworkId, answerer: Answerer) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let answerer = answerer.clone();
        tokio::spawn(async move {
            if let Err(error) =
                serve_stream(stream, network, &*answerer.resolver, answerer.other_names.as_ref(), IDLE).await
            {
                tracing::debug!(%network, %error, "a DNS connection ended");
            }
            drop(permit);
        });
    }
}
