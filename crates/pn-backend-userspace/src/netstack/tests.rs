//! Two stacks, joined by a wire without delay, in virtual time.

use pn_overlay::packet::UdpPacket;

use super::*;

mod loss;

const PORT: u16 = 80;

/// What the container with a number is reached at.
fn addresses(n: u8) -> Addresses {
    Addresses { v4: Ipv4Addr::new(10, 240, 0, n), v6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xaf0, n.into())) }
}

/// Returns all that a stack sends, and when it has something to do again.
fn sent(stack: &mut Netstack, now: Duration) -> (Vec<Vec<u8>>, Option<Duration>) {
    let (mut leaving, next) = stack.poll(now, usize::MAX);
    let mut packets = Vec::new();
    for batch in [&mut leaving.segments, &mut leaving.datagrams] {
        packets.extend(core::iter::from_fn(|| batch.pop().map(|packet| batch.octets()[packet].to_vec())));
    }
    stack.put_back(leaving);
    (packets, next)
}

/// Returns the next datagram of a socket.
fn receive(stack: &mut Netstack, port: u16) -> Option<(SocketAddr, Vec<u8>)> {
    let mut buffer = vec![0; 65_536];
    let (len, from) = stack.receive_udp(port, &mut buffer).unwrap()?;
    buffer.truncate(len);
    Some((from, buffer))
}

struct Wire {
    /// An address of the version that connections are made by.
    version: IpAddr,
    a: Netstack,
    b: Netstack,
    now: Duration,
    /// Whether packets get through.
    is_cut: bool,
    /// TCP resets that were carried.
    resets: usize,
}

impl Wire {
    fn new() -> Self {
        let stack = |n: u8| Netstack::new(addresses(n), 1390, n.into(), Duration::ZERO);
        Self {
            version: addresses(1).v4.into(),
            a: stack(1),
            b: stack(2),
            now: Duration::ZERO,
            is_cut: false,
            resets: 0,
        }
    }

    /// Carries packets for some time, jumping from deadline to deadline.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..1_000_000 {
            let (from_a, next_a) = sent(&mut self.a, self.now);
            let (from_b, next_b) = sent(&mut self.b, self.now);
            if !from_a.is_empty() || !from_b.is_empty() {
                self.carry(from_a, from_b);
                continue;
            }
            match next_a.into_iter().chain(next_b).min() {
                // What is due now and was not done has to be due later.
                Some(next) if next <= until => self.now = next.max(self.now + Duration::from_micros(1)),
                _ => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("the stacks never rest");
    }

    fn carry(&mut self, from_a: Vec<Vec<u8>>, from_b: Vec<Vec<u8>>) {
        if self.is_cut {
            return;
        }
        let is_reset = |packet: &&Vec<u8>| packet[9] == 6 && packet[33] & 4 != 0;
        self.resets += from_a.iter().chain(&from_b).filter(is_reset).count();
        for packet in from_a {
            assert_eq!(self.b.ingress(&packet, self.now), 0);
        }
        for packet in from_b {
            assert_eq!(self.a.ingress(&packet, self.now), 0);
        }
    }

    fn listen(&mut self) {
        self.b.listen(PORT).unwrap();
    }

    fn start(&mut self) -> SocketHandle {
        self.a.connect((self.b.addresses().like(self.version).unwrap(), PORT).into()).unwrap()
    }

    /// Makes a connection from `a` to `b`.
    fn connection(&mut self) -> (SocketHandle, SocketHandle) {
        self.listen();
        let client = self.start();
        self.run(Duration::from_millis(50));
        assert_eq!(self.a.connected(client), Some(Ok(())));
        (client, self.b.accept(PORT).unwrap().unwrap())
    }

    /// Writes to `b`'s end until nothing more is taken, and returns how much was.
    fn fill(&mut self, server: SocketHandle) -> Result<usize, tcp::SendError> {
        let mut filled = 0;
        loop {
            match self.b.tcp(server).send_slice(&[7; 65_536])? {
                0 => return Ok(filled),
                written => filled += written,
            }
            self.run(Duration::from_millis(1));
        }
    }
}

#[test]
fn an_idle_connection_stays() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    wire.run(Duration::from_secs(20 * 60));
    wire.a.tcp(client).send_slice(b"still there?").unwrap();
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.b.tcp(server).recv_queue(), 12);
    wire.b.tcp(server).send_slice(b"yes").unwrap();
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.a.tcp(client).recv_queue(), 3);
}

#[test]
fn who_has_shut_down_can_wait_for_the_answer() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    wire.a.tcp(client).send_slice(b"request").unwrap();
    wire.a.tcp(client).close();
    wire.run(Duration::from_secs(90));
    wire.b.tcp(server).send_slice(b"answer").unwrap();
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.a.tcp(client).recv_queue(), 6);
}

#[test]
fn a_reader_may_pause_for_minutes() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    let mut sent = 0;
    for _ in 0..15 {
        sent += wire.fill(server).unwrap();
        wire.run(Duration::from_secs(60));
    }
    let mut received = 0;
    while wire.b.tcp(server).send_queue() > 0 || wire.a.tcp(client).recv_queue() > 0 {
        received += wire.a.tcp(client).recv(|octets| (octets.len(), octets.len())).unwrap();
        wire.run(Duration::from_millis(1));
    }
    assert!(sent > TCP_BUFFER, "both buffers were full");
    assert_eq!(received, sent);
}

#[test]
fn a_connection_ends_when_the_other_side_is_gone() {
    let mut wire = Wire::new();
    let (client, _) = wire.connection();
    wire.is_cut = true;
    wire.run(TCP_TIMEOUT - Duration::from_secs(1));
    assert!(wire.a.tcp(client).is_active());
    wire.run(Duration::from_secs(2));
    assert!(!wire.a.tcp(client).is_open());
    assert_eq!(wire.a.broken(client).kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_reset_is_told_from_silence() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    wire.b.tcp(server).abort();
    wire.run(Duration::from_millis(1));
    assert!(!wire.a.tcp(client).is_open());
    assert_eq!(wire.a.broken(client).kind(), io::ErrorKind::ConnectionReset);

    let mut wire = Wire::new();
    let refused = wire.start();
    wire.run(Duration::from_millis(1));
    assert_eq!(wire.a.connected(refused), Some(Err(io::ErrorKind::ConnectionRefused)));
    wire.is_cut = true;
    let unanswered = wire.start();
    wire.run(CONNECT_TIMEOUT - Duration::from_secs(1));
    assert_eq!(wire.a.connected(unanswered), None);
    wire.run(Duration::from_secs(2));
    assert_eq!(wire.a.connected(unanswered), Some(Err(io::ErrorKind::TimedOut)));
    let unreachable = wire.start();
    wire.a.unreachable(wire.b.addresses().v4.into());
    assert_eq!(wire.a.connected(unreachable), Some(Err(io::ErrorKind::HostUnreachable)));
}

#[test]
fn a_clean_end_has_no_reset() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    wire.a.release(client);
    wire.run(Duration::from_secs(1));
    wire.b.release(server);
    wire.run(Duration::from_secs(20));
    assert_eq!(wire.resets, 0);
}

#[test]
fn a_writer_learns_that_its_reader_is_gone() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    // Nothing is unread when it goes: a polite goodbye, and then more comes.
    wire.a.release(client);
    wire.run(Duration::from_secs(1));
    wire.fill(server).unwrap_err();
    assert_eq!(wire.b.tcp(server).state(), tcp::State::Closed);
    assert_eq!(wire.a.sockets.iter().count(), 0);
}

#[test]
fn no_connection_outlives_its_owner_for_ever() {
    // The other side never says goodbye, and answers every keep-alive.
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    wire.a.release(client);
    wire.run(Duration::from_secs(55));
    assert_eq!(wire.a.tcp(client).state(), tcp::State::FinWait2);
    wire.run(Duration::from_secs(10));
    assert_eq!(wire.a.sockets.iter().count(), 0);
    assert_eq!(wire.b.tcp(server).state(), tcp::State::Closed);

    // The other side never reads, and answers every probe.
    let mut wire = Wire::new();
    let (_client, server) = wire.connection();
    wire.fill(server).unwrap();
    wire.b.release(server);
    wire.run(Duration::from_secs(170));
    assert!(wire.b.tcp(server).is_open());
    wire.run(Duration::from_secs(20));
    let listens = |(_, smoltcp::socket::Socket::Tcp(socket)): (_, &smoltcp::socket::Socket<'_>)| socket.is_listening();
    assert!(wire.b.sockets.iter().all(listens));
}

#[test]
fn what_was_written_arrives_at_a_slow_reader_after_its_writer_is_gone() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    let sent = wire.fill(server).unwrap();
    wire.b.release(server);
    let mut received = 0;
    while wire.a.tcp(client).may_recv() {
        received += wire.a.tcp(client).recv(|octets| (octets.len().min(50_000), octets.len().min(50_000))).unwrap();
        wire.run(Duration::from_secs(30));
    }
    assert_eq!(received, sent);
}

#[test]
fn a_burst_beyond_the_backlog_waits() {
    let mut wire = Wire::new();
    wire.listen();
    let clients: Vec<_> = (0..3 * BACKLOG).map(|_| wire.start()).collect();
    wire.run(Duration::from_millis(50));
    assert_eq!(clients.iter().filter(|client| wire.a.connected(**client).is_some()).count(), BACKLOG);
    let mut accepted = 0;
    for _ in 0..CONNECT_TIMEOUT.as_secs() {
        while wire.b.accept(PORT).unwrap().is_some() {
            accepted += 1;
        }
        wire.run(Duration::from_secs(1));
    }
    assert_eq!(accepted, clients.len());
    assert!(clients.iter().all(|client| wire.a.connected(*client) == Some(Ok(()))));
    assert_eq!(wire.resets, 0);
}

#[test]
fn a_packet_for_another_address_is_not_taken() {
    let mut wire = Wire::new();
    let (port, _) = wire.b.bind_udp(0).unwrap();
    for (last, arrives) in [(2, true), (3, false)] {
        let to = SocketAddr::from((addresses(last).v4, port));
        assert!(wire.a.send_udp(7, to, b"x").unwrap());
        wire.run(Duration::from_millis(1));
        assert_eq!(receive(&mut wire.b, port).is_some(), arrives);
    }
}

#[test]
fn what_arrived_waits_for_its_reader_after_both_sides_have_closed() {
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    wire.a.tcp(client).close();
    wire.run(Duration::from_secs(1));
    wire.b.tcp(server).send_slice(b"answer").unwrap();
    wire.b.release(server);
    // Longer than TIME-WAIT.
    wire.run(Duration::from_secs(60));
    assert_eq!(wire.a.rest(client).unwrap(), b"answer");
    wire.a.release(client);
    wire.run(Duration::from_secs(1));
    assert!(wire.a.rests.is_empty() && wire.a.sockets.iter().count() == 0);
}

#[test]
fn sockets_of_both_versions_share_their_ports() {
    let mut wire = Wire::new();
    wire.listen();
    let (udp, _) = wire.b.bind_udp(53).unwrap();
    for address in [addresses(2).v4.into(), IpAddr::from(addresses(2).v6.unwrap())] {
        wire.version = address;
        let client = wire.start();
        wire.run(Duration::from_millis(50));
        assert_eq!(wire.a.connected(client), Some(Ok(())));
        let server = wire.b.accept(PORT).unwrap().unwrap();
        let from = wire.b.tcp(server).remote_endpoint().unwrap().addr;
        assert_eq!(Some(IpAddr::from(from)), addresses(1).like(address));
        wire.a.tcp(client).send_slice(b"over TCP").unwrap();
        let most = if address.is_ipv4() { 65_507 } else { 65_527 };
        for len in [0, 1, 1342, 1343, 1362, 1363, 60_000, most] {
            assert!(wire.a.send_udp(7, (address, 53).into(), &vec![len as u8; len]).unwrap());
        }
        wire.a.send_udp(7, (address, 53).into(), &vec![0; most + 1]).unwrap_err();
        wire.run(Duration::from_secs(1));
        assert_eq!(wire.b.tcp(server).recv_queue(), 8);
        for len in [0, 1, 1342, 1343, 1362, 1363, 60_000, most] {
            let received = receive(&mut wire.b, udp).unwrap();
            assert_eq!(received, (SocketAddr::new(addresses(1).like(address).unwrap(), 7), vec![len as u8; len]));
        }
        // A reset is heard, and so is that nobody has an address.
        wire.b.tcp(server).abort();
        wire.run(Duration::from_millis(1));
        assert_eq!(wire.a.broken(client).kind(), io::ErrorKind::ConnectionReset);
        let unreachable = wire.start();
        wire.a.unreachable(address);
        assert_eq!(wire.a.connected(unreachable), Some(Err(io::ErrorKind::HostUnreachable)));
    }
}

#[test]
fn a_network_without_ipv6_reaches_none() {
    let mut stack = Netstack::new(Addresses { v6: None, ..addresses(1) }, 1390, 1, Duration::ZERO);
    let to = SocketAddr::from((addresses(2).v6.unwrap(), 80));
    assert_eq!(stack.connect(to).unwrap_err().kind(), io::ErrorKind::HostUnreachable);
    assert_eq!(stack.send_udp(1, to, b"x").unwrap_err().kind(), io::ErrorKind::HostUnreachable);
}

#[test]
fn a_datagram_of_ipv6_without_a_checksum_is_void() {
    let mut stack = Netstack::new(addresses(1), 1390, 1, Duration::ZERO);
    let (port, _) = stack.bind_udp(0).unwrap();
    for (from, to, arrives) in [
        (IpAddr::from(addresses(2).v4), IpAddr::from(addresses(1).v4), true),
        (addresses(2).v6.unwrap().into(), addresses(1).v6.unwrap().into(), false),
    ] {
        let mut packet = vec![0; 48];
        let len = UdpPacket::write_headers(&mut packet, (from, 7), (to, port), 0);
        packet.truncate(len);
        assert_eq!(stack.ingress(&packet, Duration::ZERO), 0);
        assert_eq!(receive(&mut stack, port).is_some(), arrives);
    }
}

#[test]
fn who_floods_a_socket_takes_nothing_from_who_sends_little() {
    let mut wire = Wire::new();
    let (port, _) = wire.b.bind_udp(7).unwrap();
    let (mut sent, mut dropped) = (0, 0);
    for n in 0..20_000u32 {
        let is_slow = n % 200 == 0;
        sent += u32::from(is_slow);
        let mut packet = vec![0; 28 + 4];
        let from = (wire.a.addresses().v4.into(), if is_slow { 8 } else { 9 });
        UdpPacket::write_headers(&mut packet, from, (wire.b.addresses().v4.into(), port), 4);
        packet[28..].copy_from_slice(&n.to_be_bytes());
        dropped += wire.b.ingress(&packet, wire.now);
    }
    let received = core::iter::from_fn(|| receive(&mut wire.b, port));
    let received: Vec<_> = received.map(|(from, payload)| (from.port(), payload)).collect();
    assert_eq!(received.len() + dropped, 20_000);
    assert!(dropped > 10_000, "{dropped}");
    assert!(received.is_sorted_by_key(|(_, payload)| payload));
    assert_eq!(received.iter().filter(|(from, _)| *from == 8).count() as u32, sent);
}

#[test]
fn tcp_has_turns_of_its_own_beside_udp_that_never_ends() {
    const ROOM: usize = 16;
    let mut wire = Wire::new();
    let (client, server) = wire.connection();
    let to = SocketAddr::from((addresses(2).v4, 7));
    let (mut sent, mut received) = (0, 0);
    for turn in 0..20_000 {
        // A socket that fills its queue whenever there is room.
        while wire.a.send_udp(7, to, &[0; 64]).unwrap() {}
        sent += wire.a.tcp(client).send_slice(&[7; 65_536]).unwrap();
        for n in 0..2 {
            let [from, to] = if n == 0 { [&mut wire.a, &mut wire.b] } else { [&mut wire.b, &mut wire.a] };
            let (mut leaving, _) = from.poll(wire.now, ROOM);
            assert!(leaving.segments.len() <= 2 * ROOM, "turn {turn}");
            while let Some(packet) = leaving.segments.pop() {
                assert_eq!(to.ingress(&leaving.segments.octets()[packet], wire.now), 0);
            }
            for _ in 0..ROOM {
                leaving.datagrams.pop();
            }
            assert_eq!(from.put_back(leaving), n == 0, "UDP is left");
        }
        received += wire.b.tcp(server).recv(|octets| (octets.len(), octets.len())).unwrap();
        wire.now += Duration::from_micros(10);
        if received >= 1_000_000 {
            break;
        }
    }
    assert!((1_000_000..=sent).contains(&received), "{received} of {sent}");
}

#[test]
fn an_error_tells_nobody_what_was_sent_to_others() {
    use pn_overlay::packet::write_ip_header;
    let mut wire = Wire::new();
    let (client, _) = wire.connection();
    wire.a.tcp(client).send_slice(&[0x5a; 1000]).unwrap();
    wire.run(Duration::from_secs(1));
    // A third container, 10.240.0.9, sends a ping and a packet of a protocol that nobody knows.
    let (from, to): (IpAddr, IpAddr) = (addresses(9).v4.into(), addresses(1).v4.into());
    let mut ping = vec![0; 20 + 8 + 100];
    write_ip_header(&mut ping, 1, from, to, 108);
    ping[20] = 8;
    ping[22..24].copy_from_slice(&[0xf7, 0xff]);
    let mut other = vec![0; 20 + 8];
    write_ip_header(&mut other, 253, from, to, 8);
    assert_eq!(wire.a.ingress(&ping, wire.now) + wire.a.ingress(&other, wire.now), 0);
    let (packets, _) = sent(&mut wire.a, wire.now);
    let errors: Vec<_> = packets.iter().filter(|packet| packet[9] == 1 && packet[20] == 3).collect();
    assert_eq!(&errors[0][24..28], &[0; 4], "the unused field of an ICMP error");
}

#[test]
fn a_queue_of_udp_holds_no_more_than_it_counts() {
    let now = Duration::ZERO;
    let (mut sender, mut stack) =
        (Netstack::new(addresses(1), 1390, 1, now), Netstack::new(addresses(2), 1390, 2, now));
    let ((fast, _), (slow, _)) = (stack.bind_udp(1000).unwrap(), stack.bind_udp(1001).unwrap());
    let to = addresses(2).v4;
    for _ in 0..4000 {
        for (port, len) in [(fast, 60_000), (slow, 1)] {
            assert!(sender.send_udp(7, (to, port).into(), &vec![1; len]).unwrap());
            for packet in sent(&mut sender, now).0 {
                // What there is no room for is dropped.
                let _: usize = stack.ingress(&packet, now);
            }
            if port == fast {
                assert!(receive(&mut stack, fast).is_some());
            }
        }
    }
    let queue = &mut stack.udp.get_mut(&slow).unwrap().datagrams;
    let (mut count, mut octets) = (0, 0);
    while let Some((_, payload)) = queue.pop() {
        (count, octets) = (count + 1, octets + payload.capacity());
    }
    assert!(octets <= UDP_QUEUE, "{count} datagrams of 1 octet keep {octets} octets");
}

#[test]
fn answers_to_a_flood_of_pings_are_bounded() {
    use pn_overlay::packet::write_ip_header;
    let (now, (from, to)) = (Duration::ZERO, (addresses(9).v4.into(), addresses(1).v4.into()));
    let mut stack = Netstack::new(addresses(1), 1390, 1, now);
    let mut ping = vec![0; 20 + 8 + 1000];
    write_ip_header(&mut ping, 1, from, to, 1008);
    ping[20] = 8;
    ping[22..24].copy_from_slice(&[0xf7, 0xff]);
    let dropped = (0..10_000).map(|_| stack.ingress(&ping, now)).sum::<usize>();
    assert!(stack.segments.used() < SEGMENTS + 2000, "{}", stack.segments.used());
    let (answers, _) = sent(&mut stack, now);
    assert_eq!(answers.len() + dropped, 10_000);
    assert!(answers.len() > 1000 && dropped > 1000, "{} answers", answers.len());
    assert_eq!(stack.ingress(&ping, now), 0, "there is room again");
}
