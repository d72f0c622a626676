//! Exchanges between two containers that show what arrives: for reachability matrices, tests and demonstrations.

use core::net::SocketAddr;
use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::port::Port;

/// Sends octets over a TCP connection of their own and returns what arrived until its end.
///
/// # Errors
/// Those of [`Port::listen`], [`Port::connect`] and the stream. It waits as long as they do.
pub async fn tcp(from: &Port, to: &Port, port: u16, octets: &[u8]) -> io::Result<Vec<u8>> {
    tcp_to(from, to, (to.address(), port).into(), octets).await
}

/// Does what [`tcp`] does, to any address of the container.
///
/// # Errors
/// As [`tcp`].
pub async fn tcp_to(from: &Port, to: &Port, address: SocketAddr, octets: &[u8]) -> io::Result<Vec<u8>> {
    let listener = to.listen(address.port())?;
    let send = async {
        let mut stream = from.connect(address).await?;
        stream.write_all(octets).await?;
        stream.shutdown().await
    };
    let receive = async {
        let (mut stream, _) = listener.accept().await?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await?;
        Ok(received)
    };
    tokio::try_join!(send, receive).map(|((), received)| received)
}

/// Sends a UDP datagram and returns the first that arrived at the port.
///
/// # Errors
/// Those of [`Port::bind_udp`] and the sockets. It waits for ever where nothing arrives.
pub async fn udp(from: &Port, to: &Port, port: u16, datagram: &[u8]) -> io::Result<Vec<u8>> {
    let (sender, receiver) = (from.bind_udp(0)?, to.bind_udp(port)?);
    sender.send_to(datagram, (to.address(), port)).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let (len, _) = receiver.recv_from(&mut buffer).await?;
    buffer.truncate(len);
    Ok(buffer)
}
