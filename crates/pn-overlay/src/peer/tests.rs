//! What a peer holds and refuses.

use super::*;

#[test]
fn k8_a_private_key_is_not_printed() {
    let key = PrivateKey::from_bytes([7; 32]);
    assert_eq!(format!("{key:?}"), "PrivateKey(..)");
    assert!(!format!("{:?}", Identity::new(key)).contains('7'));
}

#[test]
fn a_public_key_is_computed_as_the_rfc_does() {
    // Alice's keys of RFC 7748 §6.1.
    let private = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let public = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    assert_eq!(PrivateKey::from_bytes(private).public_key(), PublicKey::new(public));
}

fn hex(text: &str) -> [u8; 32] {
    core::array::from_fn(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
}

#[test]
fn short_buffers_are_refused_before_boringtun_panics() {
    let identity = Identity::new(PrivateKey::from_bytes([1; 32]));
    let mut peer = Peer::new(PrivateKey::from_bytes([2; 32]).public_key(), 1);
    for len in [0, 31, 147] {
        assert!(peer.seal(&identity, &[0; 20], &mut vec![0; len]).is_err());
        assert!(peer.begin(&identity, &mut vec![0; len]).is_err());
        assert!(peer.tick(&mut vec![0; len], &mut 0).is_err());
    }
    assert!(peer.seal(&identity, &[0; 1400], &mut [0; 1400]).is_err());
    assert!(peer.open(&identity, IpAddr::from([127, 0, 0, 1]), &[4; 200], &mut [0; 199]).is_err());
}

/// N6: every network has the same addresses, and one's flood must not be another's.
#[test]
fn flows_of_two_networks_are_two() {
    let tunnel = |n: u8| IpAddr::from([100, 64, 0, n]);
    let flow_in = |vni: u32, port: u8| {
        let mut inside = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 240, 0, 1, 10, 240, 0, 2, 0, port, 0, 9];
        inside.extend([0, 8, 0, 0]);
        let payload = [&vxlan::header(pn_core::Vni::new(vni).unwrap())[..], &[0; ETHERNET_LEN], &inside].concat();
        let mut packet = vec![0; 28 + payload.len()];
        UdpPacket::write_headers(&mut packet, (tunnel(1), 7), (tunnel(2), vxlan::PORT), payload.len());
        packet[28..].copy_from_slice(&payload);
        flow(&packet)
    };
    let flows: std::collections::BTreeSet<_> = (1..=20).map(|vni| flow_in(vni, 1)).collect();
    assert_eq!(flows.len(), 20);
    assert_eq!(flow_in(7, 1), flow_in(7, 1));
    assert_ne!(flow_in(7, 1), flow_in(7, 2));
}

#[test]
fn a_handshake_that_nothing_waits_for_is_given_up() {
    let identity = Identity::new(PrivateKey::from_bytes([1; 32]));
    let mut buffer = [0; 200];
    for has_packet in [false, true] {
        let mut peer = Peer::new(PrivateKey::from_bytes([2; 32]).public_key(), 1);
        assert!(matches!(peer.begin(&identity, &mut buffer), Ok(Step::Send([INITIATION, ..]))));
        assert!(matches!(peer.begin(&identity, &mut buffer), Ok(Step::Done)));
        if has_packet {
            assert!(matches!(peer.seal(&identity, &[0x45; 20], &mut buffer), Ok(Step::Done)));
        }
        for _ in 0..PATIENCE {
            assert!(peer.tunn.is_some());
            peer.tick(&mut buffer, &mut 0).unwrap();
        }
        assert_eq!(peer.tunn.is_some(), has_packet);
    }
}
