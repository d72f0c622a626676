//! DNS over TCP inside a network, on the resolver's own stack.

use core::time::Duration;
use std::io;
use std::sync::Arc;

use pn_core::{NetworkId, Resolver, Transport};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::port::{DNS_PORT, Port};
use crate::tcp::TcpStream;

/// How long a connection may be silent (RFC 7766 §6.2.3 asks for seconds).
const IDLE: Duration = Duration::from_secs(10);

/// Connections at a time, for each network.
const CONNECTIONS: usize = 128;

/// Answers queries until the network leaves this node.
pub(crate) async fn serve_tcp(port: Port, network: NetworkId, resolver: Arc<dyn Resolver>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let Ok(listener) = port.listen(DNS_PORT) else {
        return;
    };
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, network, &*resolver).await {
                tracing::debug!(%network, %error, "a DNS connection ended");
            }
            drop(permit);
        });
    }
}

/// Answers the queries of one connection, each with its length before it (RFC 1035 §4.2.2).
async fn serve_connection(mut stream: TcpStream, network: NetworkId, resolver: &dyn Resolver) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, async {
            let len = stream.read_u16().await?;
            let mut query = vec![0; len.into()];
            stream.read_exact(&mut query).await?;
            Ok::<_, io::Error>(query)
        });
        let query = match query.await? {
            Ok(query) => query,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(reply) = resolver.resolve(network, Transport::Tcp, &query) else {
            return Ok(());
        };
        let len = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        timeout(IDLE, stream.write_all(&[&len.to_be_bytes()[..], &reply].concat())).await??;
    }
}
