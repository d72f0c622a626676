//! A bounded queue that takes from who has most.

use std::collections::VecDeque;

use crate::packet::UDP;

/// How many values of a hash tell flows apart.
const FLOWS: usize = 64;

/// TCP's IP protocol number.
const TCP: u8 = 6;

/// A queue whose items together cost at most so much. They leave in the order they came.
///
/// Where there is no room, the flow with most in it loses its oldest, as in FQ-CoDel (RFC 8290 §4.1.3): who floods loses, and
/// who sends little does not notice.
#[derive(Debug)]
pub struct FairQueue<T> {
    items: VecDeque<Item<T>>,
    cost: usize,
    cost_of: [usize; FLOWS],
    limit: usize,
}

#[derive(Debug)]
struct Item<T> {
    flow: usize,
    cost: usize,
    item: T,
}

impl<T> FairQueue<T> {
    /// Makes an empty queue.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { items: VecDeque::new(), cost: 0, cost_of: [0; FLOWS], limit }
    }

    /// Appends an item of a flow, which [`flow`] tells, and returns how many items were dropped for it.
    #[must_use = "what is dropped is counted"]
    pub fn push(&mut self, flow: u32, cost: usize, item: T) -> usize {
        let mut dropped = 0;
        self.push_with(flow, cost, item, |_| dropped += 1);
        dropped
    }

    /// Does what [`push`](Self::push) does, and hands over what is dropped.
    pub fn push_with(&mut self, flow: u32, cost: usize, item: T, mut drop: impl FnMut(T)) {
        let flow = flow as usize % FLOWS;
        self.items.push_back(Item { flow, cost, item });
        self.cost += cost;
        self.cost_of[flow] += cost;
        while self.cost > self.limit {
            let fattest = (0..FLOWS).max_by_key(|flow| self.cost_of[*flow]);
            let oldest = self.items.iter().position(|item| Some(item.flow) == fattest);
            let Some(item) = oldest.and_then(|at| self.items.remove(at)) else {
                break;
            };
            self.forget(&item);
            drop(item.item);
        }
    }

    /// Takes the oldest item.
    pub fn pop(&mut self) -> Option<T> {
        let item = self.items.pop_front()?;
        self.forget(&item);
        Some(item.item)
    }

    /// Returns the oldest item.
    #[must_use]
    pub fn front(&self) -> Option<&T> {
        self.items.front().map(|item| &item.item)
    }

    /// Returns how many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn forget(&mut self, item: &Item<T>) {
        self.cost -= item.cost;
        self.cost_of[item.flow] -= item.cost;
    }
}

/// Returns a number that is the same for all packets of a flow: from an IP packet's addresses, its protocol, and the ports of
/// TCP and UDP. All that is no IP packet is one flow.
#[must_use]
pub fn flow(packet: &[u8]) -> u32 {
    flow_of(0, packet)
}

/// Returns what [`flow`] does, for a packet of a network: flows of two are not the same, though their addresses are.
#[must_use]
pub fn flow_of(network: u128, packet: &[u8]) -> u32 {
    let (protocol, addresses, header) = match packet {
        [first, ..] if first >> 4 == 4 => (9, 12..20, usize::from(first & 0x0f) * 4),
        [first, ..] if first >> 4 == 6 => (6, 8..40, 40),
        _ => return 0,
    };
    let octets = |range| packet.get(range).unwrap_or_default();
    let protocol = octets(protocol..protocol + 1);
    let has_ports = matches!(protocol, [TCP | UDP]);
    let ports = if has_ports { octets(header..header + 4) } else { &[] };
    // A multiplier with bits all over: what the last octets change shows in the upper half.
    let hash = [protocol, octets(addresses), ports]
        .into_iter()
        .flatten()
        .fold((network ^ network >> 64) as u64, |hash, octet| {
            (hash.rotate_left(5) ^ u64::from(*octet)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn who_has_most_loses_its_oldest_and_the_rest_leaves_in_order() {
        let mut queue = FairQueue::new(10);
        let dropped: usize = (0..100).map(|n| queue.push(u32::from(n % 10 == 0), 1, n)).sum();
        assert_eq!((dropped, queue.len(), queue.front().copied()), (90, 10, Some(50)));
        let left: Vec<_> = core::iter::from_fn(|| queue.pop()).collect();
        // The slow flow has its share of half, and its latest.
        assert_eq!(left, [50, 60, 70, 80, 90, 95, 96, 97, 98, 99]);
        assert!(queue.is_empty());
        assert_eq!(queue.push(7, 11, 0), 1, "what has no room at all is dropped itself");
        assert!(queue.is_empty());
    }

    #[test]
    fn one_that_sends_little_loses_nothing() {
        let mut queue = FairQueue::new(1000);
        let (mut slow, mut sent) = (0, 0);
        for n in 0..10_000u32 {
            let _: usize = queue.push(1, 10, None);
            if n % 100 == 0 {
                assert!(queue.push(2, 10, Some(sent)) <= 1);
                sent += 1;
            }
            if n % 10 == 0
                && let Some(Some(number)) = queue.pop()
            {
                assert_eq!(number, slow);
                slow += 1;
            }
        }
        slow += core::iter::from_fn(|| queue.pop()).flatten().count() as u32;
        assert_eq!((slow, sent), (100, 100));
    }

    #[test]
    fn flows_differ_by_address_protocol_and_port() {
        let packet = |source: u8, protocol: u8, port: u8| {
            let mut packet = [0; 28];
            (packet[0], packet[9], packet[15], packet[21]) = (0x45, protocol, source, port);
            packet
        };
        let mut six = [0; 48];
        (six[0], six[6]) = (0x60, TCP);
        let flows: BTreeSet<_> = [packet(1, TCP, 1), packet(2, TCP, 1), packet(1, UDP, 1), packet(1, TCP, 2)]
            .iter()
            .map(|packet| flow(packet))
            .chain([flow(&six), flow(&[]), flow(b"E")])
            .collect();
        assert_eq!(flows.len(), 6, "what is no packet is of one flow");
        let mut longer = packet(1, TCP, 1).to_vec();
        longer.extend([9; 40]);
        assert_eq!(flow(&longer), flow(&packet(1, TCP, 1)));
        assert_eq!(flow(&packet(1, 1, 1)), flow(&packet(1, 1, 2)), "ICMP has no ports");
    }
}
