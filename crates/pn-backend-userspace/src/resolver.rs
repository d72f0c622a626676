//! DNS over TCP inside a network, on the resolver's own stack.

use core::time::Duration;
use std::sync::Arc;

use pn_core::{NetworkId, Resolver};
use pn_dns::serve_stream;
use tokio::sync::Semaphore;

use crate::tcp::TcpListener;

/// How long a connection may be silent (RFC 7766 §6.2.3 asks for seconds).
const IDLE: Duration = Duration::from_secs(10);

/// Connections at a time, for each network.
const CONNECTIONS: usize = 128;

/// Answers queries until the network leaves this node.
pub(crate) async fn serve_tcp(listener: TcpListener, network: NetworkId, resolver: Arc<dyn Resolver>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            if let Err(error) = serve_stream(stream, network, &*resolver, IDLE).await {
                tracing::debug!(%network, %error, "a DNS connection ended");
            }
            drop(permit);
        });
    }
}
