//! The header that a TUN device puts in front of each packet (`struct virtio_net_hdr`).

/// The checksum at `checksum_start + checksum_offset` covers what begins at `checksum_start`, and is to be completed; the field
/// holds the sum of the pseudo header.
const NEEDS_CHECKSUM: u8 = 1;

/// The checksum was verified.
const CHECKSUM_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;

/// With TCP: the first segment alone carries CWR (RFC 3168).
const GSO_ECN: u8 = 0x80;

/// What a TUN device says of a packet, or is told of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioHeader {
    /// Whose checksum is left to whoever sends the packet on: where what it covers begins, and where from there its field is.
    pub partial_checksum: Option<(u16, u16)>,
    /// Whether the checksum was verified.
    pub is_valid: bool,
    /// How the packet is to be cut, where it is larger than the interface's MTU.
    pub segmentation: Option<Segmentation>,
}

/// How a large packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// What it carries.
    pub kind: SegmentKind,
    /// How many octets of payload each segment has; the last may have fewer.
    pub size: u16,
    /// How long the headers are that every segment gets. A hint: who cuts reads them anyway.
    pub header_len: u16,
}

/// What a large packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl VirtioHeader {
    /// How many octets it has.
    pub const LEN: usize = 10;

    /// Reads a header. `None` for a way of cutting that nobody asked for.
    #[must_use]
    pub fn parse(octets: [u8; Self::LEN]) -> Option<Self> {
        let [flags, gso, a, b, c, d, e, f, g, h] = octets;
        let word = u16::from_ne_bytes;
        let kind = match gso & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCP4 => Some(SegmentKind::Tcp4),
            GSO_TCP6 => Some(SegmentKind::Tcp6),
            GSO_UDP => Some(SegmentKind::Udp),
            _ => return None,
        };
        Some(Self {
            partial_checksum: (flags & NEEDS_CHECKSUM != 0).then_some((word([e, f]), word([g, h]))),
            is_valid: flags & CHECKSUM_VALID != 0,
            segmentation: kind.map(|kind| Segmentation { kind, size: word([c, d]), header_len: word([a, b]) }),
        })
    }

    /// Moves what a header says by so many octets: of the link's header in front of the packet.
    #[must_use]
    pub fn shifted(header: [u8; Self::LEN], by: i16) -> [u8; Self::LEN] {
        let [flags, gso, a, b, c, d, e, f, g, h] = header;
        let shift = |is_used: bool, word: [u8; 2]| {
            let by = if is_used { by } else { 0 };
            u16::from_ne_bytes(word).saturating_add_signed(by).to_ne_bytes()
        };
        let ([a, b], [e, f]) = (shift(gso != GSO_NONE, [a, b]), shift(flags & NEEDS_CHECKSUM != 0, [e, f]));
        [flags, gso, a, b, c, d, e, f, g, h]
    }

    /// Writes a header. A large packet whose first segment carries CWR is marked as such by `has_cwr`.
    #[must_use]
    pub fn emit(&self, has_cwr: bool) -> [u8; Self::LEN] {
        let flags = if self.partial_checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let flags = flags | if self.is_valid { CHECKSUM_VALID } else { 0 };
        let gso = self.segmentation.map_or(GSO_NONE, |segmentation| match segmentation.kind {
            SegmentKind::Tcp4 => GSO_TCP4,
            SegmentKind::Tcp6 => GSO_TCP6,
            SegmentKind::Udp => GSO_UDP,
        });
        let gso = gso | if has_cwr { GSO_ECN } else { 0 };
        let (header_len, size) = self.segmentation.map_or((0, 0), |s| (s.header_len, s.size));
        let (start, offset) = self.partial_checksum.unwrap_or_default();
        let [[a, b], [c, d], [e, f], [g, h]] = [header_len, size, start, offset].map(u16::to_ne_bytes);
        [flags, gso, a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            partial_checksum: Option<(u16, u16)>, is_valid: bool, kind in 0..4, size: u16, header_len: u16, ecn: bool,
        ) {
            let kinds = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp];
            let segmentation = kinds.get(kind as usize).map(|kind| Segmentation { kind: *kind, size, header_len });
            let header = VirtioHeader { partial_checksum, is_valid, segmentation };
            prop_assert_eq!(VirtioHeader::parse(header.emit(ecn)), Some(header));
        }

        #[test]
        fn reading_is_total(octets: [u8; 10]) {
            if let Some(header) = VirtioHeader::parse(octets) {
                prop_assert_eq!(VirtioHeader::parse(header.emit(octets[1] & 0x80 != 0)), Some(header));
            }
        }
    }

    #[test]
    fn the_constants_are_the_kernels() {
        let ours = [GSO_TCP4, GSO_TCP6, GSO_UDP, GSO_ECN, NEEDS_CHECKSUM, CHECKSUM_VALID].map(i32::from);
        // <linux/virtio_net.h>
        assert_eq!(ours, [1, 4, 5, 0x80, 1, 2]);
    }
}
