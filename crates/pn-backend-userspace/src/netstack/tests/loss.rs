//! What a loss costs a connection, in virtual time.

use super::*;

/// How long a packet takes.
const DELAY: Duration = Duration::from_micros(100);

/// Two stacks, and packets on their way, one of a hundred of which is lost.
struct LossyWire {
    stacks: [Netstack; 2],
    on_their_way: [VecDeque<(Duration, Vec<u8>)>; 2],
    now: Duration,
    random: u64,
}

impl LossyWire {
    fn new(seed: u64) -> Self {
        let stacks = [1, 2].map(|n| Netstack::new(addresses(n), 1390, n.into(), Duration::ZERO));
        Self { stacks, on_their_way: Default::default(), now: Duration::ZERO, random: seed }
    }

    /// Carries what there is and moves on to when there is something again.
    fn step(&mut self) {
        let mut next = None;
        for n in 0..2 {
            let (packets, due) = sent(&mut self.stacks[n], self.now);
            next = next.into_iter().chain(due).min();
            for packet in packets {
                self.random =
                    self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if !(self.random >> 33).is_multiple_of(100) {
                    self.on_their_way[1 - n].push_back((self.now + DELAY, packet));
                }
            }
        }
        let arrivals = self.on_their_way.iter().filter_map(|packets| packets.front().map(|(at, _)| *at));
        let next = next.into_iter().chain(arrivals).min().expect("a connection has timers");
        self.now = next.max(self.now + Duration::from_micros(1));
        for (stack, packets) in self.stacks.iter_mut().zip(&mut self.on_their_way) {
            while packets.front().is_some_and(|(at, _)| *at <= self.now) {
                let (_, packet) = packets.pop_front().expect("there is one");
                assert_eq!(stack.ingress(&packet, self.now), 0);
            }
        }
    }

    /// Sends octets over a connection, and returns how long that took.
    fn send(&mut self, octets: usize) -> Duration {
        self.stacks[1].listen(PORT).unwrap();
        let client = self.stacks[0].connect((addresses(2).v4, PORT).into()).unwrap();
        let (began, mut server, mut sent, mut received) = (self.now, None, 0, 0);
        loop {
            if self.stacks[0].connected(client).is_some() {
                let left = (octets - sent).min(65_536);
                sent += self.stacks[0].tcp(client).send_slice(&vec![7; left]).unwrap();
            }
            server = server.or_else(|| self.stacks[1].accept(PORT).unwrap());
            if let Some(server) = server {
                received += self.stacks[1].tcp(server).recv(|octets| (octets.len(), octets.len())).unwrap_or(0);
            }
            if received == octets {
                return self.now - began;
            }
            self.step();
        }
    }
}

/// Without what [`Holes`] does it takes 7 s, and with the second that smoltcp waits 34 s.
#[test]
fn one_loss_in_a_hundred_does_not_stop_a_connection() {
    let took: Vec<_> = (1..=5).map(|seed| LossyWire::new(seed).send(10_000_000)).collect();
    assert!(took.iter().sum::<Duration>() < 5 * Duration::from_secs(4), "{took:?}");
}
