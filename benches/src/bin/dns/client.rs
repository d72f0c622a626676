//! The client: as many questions as a server takes, or a steady rate of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

/// What became of the questions of one run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Not answered, though the client waited when it had sent everything.
    pub(crate) lost: u64,
    pub(crate) positive: u64,
    pub(crate) nxdomain: u64,
    pub(crate) other: u64,
    pub(crate) seconds: f64,
    /// Of single questions, in microseconds, lost ones among them; only at a steady rate.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.received as f64 / self.seconds
    }

    fn count(&mut self, reply: &[u8]) {
        self.received += 1;
        match (reply.get(3).map(|codes| codes & 0xf), reply.get(6..8)) {
            (Some(0), Some(answers)) if answers != [0, 0] => self.positive += 1,
            (Some(3), _) => self.nxdomain += 1,
            _ => self.other += 1,
        }
    }
}

/// Encodes questions for A records, with id 0.
pub(crate) fn encode(names: &[String]) -> Vec<Vec<u8>> {
    let one = |name: &String| {
        let mut query = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        query
    };
    names.iter().map(one).collect()
}

/// Sockets of the client, each with a part of the questions under way.
const SOCKETS: usize = 16;
const WINDOW: usize = 32;

/// After how long a silence nothing more is expected.
const PATIENCE: Duration = Duration::from_millis(500);

const REPLY: usize = 1536;

struct Socket {
    udp: UdpSocket,
    under_way: usize,
    last: Instant,
}

fn open(server: SocketAddr) -> io::Result<Socket> {
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    udp.connect(server)?;
    udp.set_nonblocking(true)?;
    // More than the default for who may; the default will do.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&udp, 1 << 20);
    Ok(Socket { udp, under_way: 0, last: Instant::now() })
}

/// Sends queries, and returns how many the socket took.
fn send(socket: &UdpSocket, queries: &[&[u8]]) -> usize {
    let slices: Vec<[IoSlice<'_>; 1]> = queries.iter().map(|query| [IoSlice::new(query)]).collect();
    let mut control: [SendAncillaryBuffer<'_, '_, '_>; WINDOW] = std::array::from_fn(|_| Default::default());
    let mut messages: Vec<MMsgHdr<'_>> =
        slices.iter().zip(&mut control).map(|(slice, control)| MMsgHdr::new(slice, control)).collect();
    sendmmsg(socket, &mut messages, SendFlags::empty()).unwrap_or(0)
}

/// Where replies are received.
struct Inbox {
    headers: MultiHeaders<SockaddrIn>,
    replies: Box<[[u8; REPLY]]>,
    lens: Vec<usize>,
}

impl Inbox {
    fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(WINDOW, None),
            replies: vec![[0; REPLY]; WINDOW].into(),
            lens: Vec::with_capacity(WINDOW),
        }
    }

    /// Receives what is there.
    fn receive(&mut self, socket: &UdpSocket) -> impl ExactSizeIterator<Item = &[u8]> {
        self.lens.clear();
        let mut replies = self.replies.iter_mut();
        let mut slices: [[IoSliceMut<'_>; 1]; WINDOW] =
            std::array::from_fn(|_| [IoSliceMut::new(replies.next().map_or(&mut [], |reply| &mut reply[..]))]);
        let received = recvmmsg(socket.as_raw_fd(), &mut self.headers, &mut slices, MsgFlags::MSG_DONTWAIT, None);
        self.lens.extend(received.into_iter().flatten().map(|message| message.bytes));
        self.lens.iter().zip(&self.replies).map(|(len, reply)| &reply[..*len])
    }
}

/// Questions under way on several sockets, each replaced as soon as it is answered.
pub(crate) struct Load<'q> {
    sockets: Vec<Socket>,
    window: usize,
    queries: &'q mut [Vec<u8>],
    next: usize,
    id: u16,
    inbox: Inbox,
    begin: Instant,
    run: Run,
}

impl<'q> Load<'q> {
    /// Prepares so many sockets with so many questions each.
    pub(crate) fn new(
        server: SocketAddr,
        (sockets, window): (usize, usize),
        queries: &'q mut [Vec<u8>],
    ) -> io::Result<Self> {
        let sockets = (0..sockets).map(|_| open(server)).collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            sockets,
            window,
            queries,
            next: 0,
            id: 0,
            inbox: Inbox::new(),
            begin: Instant::now(),
            run: Run::default(),
        })
    }

    /// Sends what may be sent and receives what is there, on each socket once; returns whether anything was there.
    pub(crate) fn turn(&mut self) -> bool {
        let (now, mut any) = (Instant::now(), false);
        for socket in &mut self.sockets {
            let room = self.window.saturating_sub(socket.under_way);
            if room > 0 {
                if self.next + room > self.queries.len() {
                    self.next = 0;
                }
                let batch = &mut self.queries[self.next..][..room];
                for query in &mut *batch {
                    self.id = self.id.wrapping_add(1);
                    query[..2].copy_from_slice(&self.id.to_be_bytes());
                }
                let batch: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
                let sent = send(&socket.udp, &batch);
                socket.under_way += sent;
                self.run.sent += sent as u64;
                self.next += sent;
            }
            let replies = self.inbox.receive(&socket.udp);
            let count = replies.len();
            replies.for_each(|reply| self.run.count(reply));
            if count > 0 {
                (any, socket.last) = (true, now);
                socket.under_way = socket.under_way.saturating_sub(count);
            } else if socket.under_way > 0 && now - socket.last > PATIENCE {
                // Others go in their place; they are lost where they never come.
                (socket.under_way, socket.last) = (0, now);
            }
        }
        any
    }

    /// Receives what is still under way, until all is here or nothing comes any more, and returns what became of the questions.
    pub(crate) fn finish(mut self) -> Run {
        let mut last = Instant::now();
        while self.run.received < self.run.sent && last.elapsed() < PATIENCE {
            let before = self.run.received;
            for socket in &self.sockets {
                self.inbox.receive(&socket.udp).for_each(|reply| self.run.count(reply));
            }
            if self.run.received > before {
                last = Instant::now();
            } else {
                wait(&self.sockets);
            }
        }
        self.run.lost = self.run.sent.saturating_sub(self.run.received);
        self.run.seconds = (last - self.begin).as_secs_f64();
        self.run
    }
}

/// Asks as fast as the server answers, for some time.
pub(crate) fn blast(server: SocketAddr, queries: &mut [Vec<u8>], duration: Duration) -> io::Result<Run> {
    let mut load = Load::new(server, (SOCKETS, WINDOW), queries)?;
    while load.begin.elapsed() < duration {
        if !load.turn() {
            wait(&load.sockets);
        }
    }
    Ok(load.finish())
}

fn wait(sockets: &[Socket]) {
    let mut fds: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(&socket.udp, PollFlags::IN)).collect();
    // Whatever it says, the next turn looks.
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }));
}

/// Asks at a steady rate for some time, and measures from when each question was due until its reply is here.
pub(crate) fn steadily(server: SocketAddr, queries: &mut [Vec<u8>], rate: f64, duration: Duration) -> io::Result<Run> {
    let socket = open(server)?;
    let (mut run, mut inbox) = (Run::default(), Inbox::new());
    let mut due = vec![f64::NAN; 1 << 16];
    let mut latencies: Vec<f32> = Vec::with_capacity((rate * duration.as_secs_f64() * 1.2) as usize);
    let begin = Instant::now();
    let (mut sent, mut patience) = (0u64, PATIENCE.as_secs_f64());
    loop {
        let now = begin.elapsed().as_secs_f64();
        let is_over = now >= duration.as_secs_f64();
        if !is_over {
            let wanted = (now * rate) as u64;
            let batch = (wanted.saturating_sub(sent) as usize).min(WINDOW);
            if batch > 0 {
                let from = sent as usize % (queries.len() - WINDOW);
                let part = &mut queries[from..from + batch];
                for (n, query) in (sent..).zip(&mut *part) {
                    let id = n as u16;
                    query[..2].copy_from_slice(&id.to_be_bytes());
                    due[usize::from(id)] = (n as f64 + 1.0) / rate;
                }
                let part: Vec<&[u8]> = part.iter().map(Vec::as_slice).collect();
                sent += send(&socket.udp, &part) as u64;
            }
        }
        let replies = inbox.receive(&socket.udp);
        let count = replies.len();
        let now = begin.elapsed().as_secs_f64();
        for reply in replies {
            run.count(reply);
            let id = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
            latencies.push(((now - due[id]) * 1e6) as f32);
        }
        if is_over {
            if run.received >= sent || patience < 0.0 {
                break;
            }
            if count == 0 {
                patience -= 1e-3;
                wait(std::slice::from_ref(&socket));
            }
        }
    }
    (run.sent, run.lost, run.seconds) = (sent, sent.saturating_sub(run.received), duration.as_secs_f64());
    // Who is not answered has waited as long as the client did: a server is not quicker for what it loses.
    latencies.resize(latencies.len() + run.lost as usize, PATIENCE.as_secs_f32() * 1e6);
    latencies.sort_by(f32::total_cmp);
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).map_or(f64::NAN, |us| f64::from(*us));
    (run.p50_us, run.p99_us) = (at(0.5), at(0.99));
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tenth question is lost among others that are answered, so that no socket is ever silent for long.
    #[test]
    fn what_is_not_answered_is_lost() -> io::Result<()> {
        let server = UdpSocket::bind("127.0.0.1:0")?;
        let address = server.local_addr()?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        let answering = std::thread::spawn(move || -> io::Result<(u64, u64)> {
            let (mut got, mut dropped, mut query) = (0, 0, [0; 512]);
            loop {
                let (len, from) = server.recv_from(&mut query)?;
                if len == 1 {
                    return Ok((got, dropped));
                }
                got += 1;
                if got % 10 == 0 {
                    dropped += 1;
                } else {
                    server.send_to(&query[..len], from)?;
                }
            }
        });
        let mut queries = encode(&vec!["a.example".to_owned(); 1000]);
        let mut load = Load::new(address, (2, 16), &mut queries)?;
        let begin = Instant::now();
        while load.run.received < 10 || begin.elapsed() < Duration::from_millis(20) {
            load.turn();
        }
        let run = load.finish();
        UdpSocket::bind("127.0.0.1:0")?.send_to(&[0], address)?;
        let (got, dropped) = answering.join().map_err(|_| io::ErrorKind::Other)??;
        assert_eq!((run.sent, run.lost), (got, dropped));
        assert!(dropped > 0 && run.received == got - dropped, "{run:?}");
        Ok(())
    }
}
