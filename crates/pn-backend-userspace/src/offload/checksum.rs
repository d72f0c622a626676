//! The Internet checksum (RFC 1071), in the processor's own byte order: it comes out the same, in that order.

use crate::sys;

/// A sum that is not folded yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds octets. What is added before must have had an even number of them.
    pub(super) fn add(self, octets: &[u8]) -> Self {
        let blocks = octets.len() & !31;
        let mut sum = self.0 + sys::sum_words(&octets[..blocks]);
        let mut pairs = octets[blocks..].chunks_exact(2);
        for pair in &mut pairs {
            sum += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
        }
        if let [last] = pairs.remainder() {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// Adds a number as the network writes it.
    pub(super) fn add_number(self, number: u16) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// Returns the folded sum, as it is written.
    pub(super) const fn folded(self) -> [u8; 2] {
        // 64 bits to 33, to 17, to 16 and a carry, to 16.
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum as u16).to_ne_bytes()
    }

    /// Returns the checksum, as it is written.
    pub(super) const fn checksum(self) -> [u8; 2] {
        let [a, b] = self.folded();
        [!a, !b]
    }

    /// Returns whether what was added, its checksum included, is as it was sent.
    pub(super) const fn is_valid(self) -> bool {
        matches!(self.folded(), [0xff, 0xff])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the RFC has it.
    fn naive(octets: &[u8]) -> u16 {
        let mut sum: u32 =
            octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_the_rfc(octets in prop::collection::vec(any::<u8>(), 0..3000), split: prop::sample::Index, number: u16) {
            let split = split.index(octets.len() + 1) & !1;
            let sum = Sum::default().add(&octets[..split]).add(&octets[split..]);
            prop_assert_eq!(u16::from_be_bytes(sum.folded()), naive(&octets));
            let with = naive(&[&number.to_be_bytes()[..], &octets].concat());
            prop_assert_eq!(u16::from_be_bytes(sum.add_number(number).folded()), with);
            let even = octets.len() & !1;
            let sum = Sum::default().add(&octets[..even]);
            prop_assert!(sum.add(&sum.checksum()).is_valid());
        }
    }

    #[test]
    fn the_largest_sum_folds() {
        assert_eq!(Sum(u64::MAX).folded(), [0xff; 2]);
        assert_eq!(Sum::default().add(&[0xff; 65_535]).folded(), Sum::default().add(&[0xff, 0xff, 0xff]).folded());
    }
}
