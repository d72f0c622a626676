//! Loads: a UDP blaster and its sink, and ping-pong over TCP. They run as processes of their own inside namespaces.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt};
use serde_json::{Value, json};

/// Datagrams that one system call sends or receives, and the octets of each.
const BATCH: usize = 64;
const SIZE: usize = 64;

const SOCKET_BUFFER: usize = 8 << 20;

/// Counts datagrams for a time, or until none came for a while.
pub(crate) fn sink(port: u16, time: Duration) -> io::Result<Value> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut buffers = vec![[0; 2048]; BATCH];
    let (end, mut received) = (Instant::now() + time, 0u64);
    while Instant::now() < end {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(messages) => received += messages.count() as u64,
            Err(nix::errno::Errno::EAGAIN) if received > 0 => break,
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(json!({ "received": received }))
}

/// Sends datagrams for a time, as fast as it goes or at a rate.
pub(crate) fn blast(to: SocketAddrV4, time: Duration, rate: Option<f64>) -> io::Result<Value> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER)?;
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let payload = [7; SIZE];
    let slices = [[IoSlice::new(&payload)]; BATCH];
    let (start, mut sent) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        let count = match rate {
            None => BATCH,
            Some(rate) => {
                let due = (start.elapsed().as_secs_f64() * rate) as u64;
                let due = usize::try_from(due.saturating_sub(sent)).unwrap_or(BATCH);
                if due < 16 {
                    thread::sleep(Duration::from_micros(50));
                    continue;
                }
                due.min(BATCH)
            }
        };
        let addresses = [None::<SockaddrIn>; BATCH];
        let result =
            sendmmsg(socket.as_raw_fd(), &mut headers, &slices[..count], &addresses[..count], [], MsgFlags::empty());
        // A full queue is what a blaster is for.
        sent += result.map_or(0, |messages| messages.count() as u64);
    }
    Ok(json!({ "sent": sent, "seconds": start.elapsed().as_secs_f64() }))
}

/// Echoes TCP, one connection, until it ends.
pub(crate) fn echo(port: u16) -> io::Result<Value> {
    let (mut stream, _) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?.accept()?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(json!({})),
            len => stream.write_all(&buffer[..len])?,
        }
    }
}

/// Exchanges single octets for a time.
pub(crate) fn ping(to: SocketAddrV4, time: Duration) -> io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    let (start, mut times, mut octet) = (Instant::now(), Vec::new(), [0]);
    while start.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&octet)?;
        stream.read_exact(&mut octet)?;
        times.push(sent.elapsed());
    }
    Ok(percentiles(times))
}

/// What is sent to show that everything arrives: eight octets of a generator each (Marsaglia's xorshift 13, 7, 17).
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

const CHUNK: usize = 1 << 17;

/// Receives a pattern over TCP until it ends, and compares every octet.
pub(crate) fn verify(port: u16) -> io::Result<Value> {
    let (mut stream, _) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?.accept()?;
    let (mut received, mut expected, mut pattern) = (vec![0; CHUNK], vec![0; CHUNK], Pattern(1));
    let mut chunks = 0u64;
    while let Ok(()) = stream.read_exact(&mut received) {
        pattern.fill(&mut expected);
        if received != expected {
            return Ok(json!({ "octets": chunks * CHUNK as u64, "is_right": false }));
        }
        chunks += 1;
    }
    Ok(json!({ "octets": chunks * CHUNK as u64, "is_right": true }))
}

/// Sends so many chunks of the pattern over TCP.
pub(crate) fn pour(to: SocketAddrV4, chunks: u64) -> io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(10))?;
    let (mut buffer, mut pattern) = (vec![0; CHUNK], Pattern(1));
    for _ in 0..chunks {
        pattern.fill(&mut buffer);
        stream.write_all(&buffer)?;
    }
    Ok(json!({ "octets": chunks * CHUNK as u64 }))
}

/// The most octets that a datagram has (over IPv4).
pub(crate) const LARGEST: u16 = 65_507;

/// Receives a datagram of each size from one octet on, compares it and says so to who sent it.
pub(crate) fn measure(port: u16) -> io::Result<Value> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = vec![0; 1 << 16];
    for size in 1..=LARGEST {
        let (len, from) = socket.recv_from(&mut buffer)?;
        if buffer[..len] != sized(size) {
            return Ok(json!({ "right": size - 1 }));
        }
        socket.send_to(&size.to_be_bytes(), from)?;
    }
    Ok(json!({ "right": LARGEST }))
}

/// Sends a datagram of each size, each when the one before it has arrived.
pub(crate) fn sizes(to: SocketAddrV4) -> io::Result<Value> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    for size in 1..=LARGEST {
        socket.send(&sized(size))?;
        let mut said = [0; 2];
        if socket.recv(&mut said)? != 2 || said != size.to_be_bytes() {
            return Err(io::Error::other(format!("{said:?} instead of {size}")));
        }
    }
    Ok(json!({ "sent": LARGEST }))
}

/// Returns the datagram of a size.
fn sized(size: u16) -> Vec<u8> {
    let mut octets = vec![0; usize::from(size).next_multiple_of(8)];
    Pattern(size.into()).fill(&mut octets);
    octets.truncate(size.into());
    octets
}

/// Returns the median and the 99th percentile in microseconds.
pub(crate) fn percentiles(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    json!({ "p50_us": at(0.5), "p99_us": at(0.99), "count": times.len() })
}
