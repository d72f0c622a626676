//! Headers written and read, and lies about them.

use core::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
        any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(pair in addresses(), ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut octets = vec![0; 48];
        let (source, destination) = pair;
        let len = UdpPacket::write_headers(&mut octets, (source, ports.0), (destination, ports.1), payload.len());
        octets.truncate(len);
        octets.extend(&payload);
        let udp = UdpDatagram { source: ports.0, destination: ports.1, payload: &payload };
        prop_assert_eq!(UdpPacket::parse(&octets), Some(UdpPacket { source, destination, udp }));
        if source.is_ipv4() {
            prop_assert_eq!(checksum(&octets[..IPV4_LEN]), 0, "a header with its checksum sums to zero");
        }
        for cut in 0..octets.len() {
            prop_assert_eq!(UdpPacket::parse(&octets[..cut]), None, "cut to {}", cut);
        }
    }

    #[test]
    fn reading_is_total(octets: Vec<u8>) {
        let mut octets = octets;
        for version in [None, Some(0x45), Some(0x60)] {
            if let (Some(version), Some(first)) = (version, octets.first_mut()) {
                *first = version;
            }
            if let Some(packet) = IpPacket::parse(&octets) {
                prop_assert!(packet.payload().len() + IPV4_LEN <= octets.len());
            }
            let _ = EthernetFrame::header_of(&octets);
        }
        let _ = (UdpPacket::parse(&octets), UdpDatagram::parse(&octets), EthernetFrame::parse(&octets));
    }

    #[test]
    fn frames_round_trip(destination: [u8; 6], source: [u8; 6], ethertype: u16, payload: Vec<u8>) {
        let (destination, source) = (MacAddr::new(destination), MacAddr::new(source));
        let octets = [&EthernetFrame::header(destination, source, ethertype)[..], &payload].concat();
        prop_assert_eq!(EthernetFrame::parse(&octets), Some(EthernetFrame { destination, source, ethertype, payload: &payload }));
    }
}

#[test]
fn lies_about_lengths_and_fragments_are_refused() {
    let (from, to) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let mut good = vec![0; 28];
    UdpPacket::write_headers(&mut good, (from.into(), 1), (to.into(), 2), 0);
    assert!(UdpPacket::parse(&good).is_some());
    for (at, value) in [(0, 0x44), (0, 0x46), (0, 0x55), (3, 29), (3, 19), (6, 0x20), (7, 1), (9, 6), (25, 7), (25, 9)]
    {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(UdpPacket::parse(&bad), None, "octet {at} = {value:#x}");
    }
}

#[test]
fn a_frame_follows_from_the_addresses_in_it() {
    let (from, to) = (Ipv4Addr::new(10, 240, 0, 1), Ipv4Addr::new(10, 240, 3, 254));
    let prefix = pn_core::Ipv6Prefix::of_network(pn_core::NetworkId::from_u128(1));
    let mut packet = [0; IPV6_LEN];
    let addresses = [
        (from.into(), to.into(), ETHERTYPE_IPV4),
        (prefix.address(from).into(), prefix.address(to).into(), ETHERTYPE_IPV6),
    ];
    for (source, destination, ethertype) in addresses {
        let len = write_ip_header(&mut packet, 6, source, destination, 1000);
        let header = EthernetFrame::header(MacAddr::of_ipv4(to), MacAddr::of_ipv4(from), ethertype);
        assert_eq!(EthernetFrame::header_of(&packet[..len]), Some(header), "the header is enough");
        assert_eq!(EthernetFrame::header_of(&packet[..len - 1]), None);
    }
}
