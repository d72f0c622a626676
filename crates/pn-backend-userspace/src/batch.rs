//! Packets that leave a stack, in one buffer.

use core::ops::Range;
use std::collections::VecDeque;

use pn_overlay::vtep::MAX_OVERHEAD;

/// Memory that an empty batch keeps, in octets.
const KEPT: usize = 512 * 1024;

/// Packets one behind the other, each with room in front of it for all that it is wrapped into: it is wrapped where it lies.
///
/// They leave in the order they came. An empty batch keeps its memory, unless it is much, so nothing is allocated once the
/// largest was seen.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// As much as was ever needed; what is written begins at 0.
    octets: Vec<u8>,
    used: usize,
    /// Where those are that have not left.
    packets: VecDeque<Range<usize>>,
}

impl Batch {
    /// Appends a packet of so many octets, and returns them to be written: what is in them before is anything.
    pub(crate) fn push(&mut self, len: usize) -> &mut [u8] {
        let start = self.used + MAX_OVERHEAD;
        self.used = start + len;
        if self.octets.len() < self.used {
            self.octets.resize(self.used, 0);
        }
        self.packets.push_back(start..self.used);
        &mut self.octets[start..self.used]
    }

    /// Takes the oldest packet, and returns where it is. It stays there until the batch is cleared.
    pub(crate) fn pop(&mut self) -> Option<Range<usize>> {
        self.packets.pop_front()
    }

    /// Returns the packets' buffer.
    pub(crate) fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Returns the packets' buffer, to wrap them in.
    pub(crate) fn octets_mut(&mut self) -> &mut [u8] {
        &mut self.octets
    }

    /// Returns how many packets have not left.
    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    /// Returns whether every packet has left.
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Returns how much of the buffer is in use.
    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    /// Forgets every packet.
    pub(crate) fn clear(&mut self) {
        self.packets.clear();
        self.used = 0;
        if self.octets.len() > KEPT {
            self.octets = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_leave_in_order_with_room_in_front() {
        let mut batch = Batch::default();
        for n in 0..3u8 {
            batch.push(n.into()).fill(n);
        }
        assert_eq!((batch.len(), batch.used()), (3, 3 * MAX_OVERHEAD + 3));
        let mut end = 0;
        for n in 0..3u8 {
            let packet = batch.pop().unwrap();
            assert!(packet.start >= end + MAX_OVERHEAD);
            assert_eq!(batch.octets()[packet.clone()], vec![n; n.into()]);
            // What is wrapped touches no other.
            batch.octets_mut()[packet.start - MAX_OVERHEAD..packet.end].fill(9);
            end = packet.end;
        }
        assert!(batch.is_empty() && batch.pop().is_none());
        batch.clear();
        assert_eq!(batch.used(), 0);
    }

    #[test]
    fn an_empty_batch_keeps_what_is_not_much() {
        let mut batch = Batch::default();
        for (len, kept) in [(100_000, 100_000 + MAX_OVERHEAD), (1_000_000, 0)] {
            batch.push(len);
            batch.clear();
            assert_eq!(batch.octets().len(), kept);
        }
    }
}
