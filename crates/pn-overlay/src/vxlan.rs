//! The VXLAN header (RFC 7348 §5).

use pn_core::Vni;

/// The UDP port VXLAN is sent to (RFC 7348 §5). The kernel's own default is another, 8472.
pub const PORT: u16 = 4789;

/// Length of the header, in octets.
pub const HEADER_LEN: usize = 8;

/// The flag that says the header holds a network identifier.
const VALID_VNI: u8 = 0x08;

/// Returns the header of a network.
#[must_use]
pub const fn header(vni: Vni) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.get().to_be_bytes();
    [VALID_VNI, 0, 0, 0, a, b, c, 0]
}

/// Splits a packet into its network and the Ethernet frame it holds.
///
/// `None` where it is too short, holds no identifier, or holds 0, which is no network here. Reserved bits are ignored, as
/// the RFC asks.
#[must_use]
pub fn decode(packet: &[u8]) -> Option<(Vni, &[u8])> {
    let (header, frame) = packet.split_first_chunk::<HEADER_LEN>()?;
    let [flags, _, _, _, a, b, c, _] = *header;
    if flags & VALID_VNI == 0 {
        return None;
    }
    Vni::new(u32::from_be_bytes([0, a, b, c])).map(|vni| (vni, frame))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_header_is_that_of_the_rfc() {
        let vni = Vni::new(0x12_3456).unwrap();
        assert_eq!(header(vni), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(
            decode(&[0xff, 1, 2, 3, 0x12, 0x34, 0x56, 9, 7]),
            Some((vni, &[7][..])),
            "reserved bits are ignored"
        );
    }

    #[test]
    fn what_names_no_network_is_refused() {
        for packet in
            [&[][..], &[8; 7], &[0, 0, 0, 0, 0, 0, 1, 0], &[0xf7, 0, 0, 0, 0, 0, 1, 0], &[8, 0, 0, 0, 0, 0, 0, 0xff]]
        {
            assert_eq!(decode(packet), None, "{packet:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(vni in 1u32..=Vni::MAX, frame: Vec<u8>) {
            let vni = Vni::new(vni).unwrap();
            let packet = [&header(vni)[..], &frame].concat();
            prop_assert_eq!(decode(&packet), Some((vni, &frame[..])));
        }

        #[test]
        fn decoding_is_total(packet: Vec<u8>) {
            if let Some((vni, frame)) = decode(&packet) {
                prop_assert_eq!(&header(vni)[4..7], &packet[4..7]);
                prop_assert_eq!(frame, &packet[8..]);
            }
        }
    }
}
