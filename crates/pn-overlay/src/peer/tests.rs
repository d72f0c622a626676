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
