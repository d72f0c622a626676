//! Buffers of packets that are gone, for those that come.

/// Octets that are kept, each buffer counted with some more for what keeps it.
const KEPT: usize = 256 * 1024;
const OVERHEAD: usize = 32;

/// Octets of a buffer besides twice what it is to hold: a larger one is not used for it, for whoever counts what it keeps would
/// count less than that.
const SLACK: usize = 256;

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    buffers: Vec<Vec<u8>>,
    octets: usize,
}

impl Spares {
    /// Returns octets in a buffer of their own.
    pub(crate) fn fill(&mut self, octets: &[u8]) -> Vec<u8> {
        let spare = self.buffers.pop().inspect(|buffer| self.octets -= cost(buffer));
        let mut buffer = spare.filter(|buffer| buffer.capacity() <= 2 * octets.len() + SLACK).unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(octets);
        buffer
    }

    /// Takes a buffer back, where there are not too many.
    pub(crate) fn put(&mut self, buffer: Vec<u8>) {
        let cost = cost(&buffer);
        if self.octets + cost <= KEPT {
            self.octets += cost;
            self.buffers.push(buffer);
        }
    }
}

const fn cost(buffer: &Vec<u8>) -> usize {
    buffer.capacity() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_are_bounded() {
        let mut spares = Spares::default();
        let first = spares.fill(&[1; 1000]);
        let at = first.as_ptr();
        spares.put(first);
        let again = spares.fill(&[2; 900]);
        assert_eq!((again.as_ptr(), again.as_slice()), (at, &[2; 900][..]));
        assert_eq!(spares.octets, 0);
        for _ in 0..2000 {
            spares.put(Vec::with_capacity(1000));
        }
        assert_eq!(spares.buffers.len(), KEPT / (1000 + OVERHEAD));
        assert_eq!(spares.octets, spares.buffers.len() * (1000 + OVERHEAD));
        spares.put(Vec::with_capacity(KEPT));
        assert!(spares.octets <= KEPT);
    }
}
