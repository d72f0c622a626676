//! The kernel's WireGuard, by generic netlink: one device for a node, and its peers one at a time, in place.
#![expect(clippy::wildcard_enum_match_arm, reason = "the kernel tells more than is looked at")]

use core::fmt;
use core::net::IpAddr;
use std::collections::BTreeMap;
use std::io;

use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use nix::sys::socket::SockProtocol;
use pn_core::PublicKey;
use pn_core::backend::ObservedPeer;
use pn_overlay::PrivateKey;

use crate::kernel::LinkName;
use crate::netlink::Netlink;

/// What the device is configured with. Every method works in the namespace of the calling thread.
pub(crate) struct WireGuard {
    private_key: PrivateKey,
    port: u16,
}

impl fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireGuard").field("port", &self.port).finish_non_exhaustive()
    }
}

impl WireGuard {
    pub(crate) const fn new(private_key: PrivateKey, port: u16) -> Self {
        Self { private_key, port }
    }

    /// Gives the new device its key and its port.
    pub(crate) fn configure(&self) -> io::Result<()> {
        let key = WireguardAttribute::PrivateKey(self.private_key.to_bytes());
        set(vec![key, WireguardAttribute::ListenPort(self.port)])
    }

    /// Reads the peers, of a device that may be missing.
    pub(crate) fn peers(&self) -> io::Result<BTreeMap<PublicKey, ObservedPeer>> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
        let family = family(&mut netlink)?;
        let name = || WireguardAttribute::IfName(LinkName::Tunnel.to_string());
        let found = netlink.dump(|| message(WireguardCmd::GetDevice, vec![name()], family));
        let messages = match found {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => return Ok(BTreeMap::new()),
            found => found?,
        };
        let mut peers = BTreeMap::new();
        for attribute in messages.into_iter().flat_map(|message| message.payload.attributes) {
            if let WireguardAttribute::Peers(found) = attribute {
                peers.extend(found.iter().filter_map(read_peer));
            }
        }
        Ok(peers)
    }

    /// Adds a peer, or changes it in place.
    pub(crate) fn set_peer(&self, key: PublicKey, peer: ObservedPeer) -> io::Result<()> {
        set(vec![WireguardAttribute::Peers(vec![write_peer(key, peer)])])
    }

    /// Removes a peer. The kernel does not mind if there is none.
    pub(crate) fn remove_peer(&self, key: PublicKey) -> io::Result<()> {
        let flags = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
        let peer = vec![WireguardPeerAttribute::PublicKey(*key.as_bytes()), WireguardPeerAttribute::Flags(flags)];
        set(vec![WireguardAttribute::Peers(vec![WireguardPeer(peer)])])
    }
}

fn set(mut attributes: Vec<WireguardAttribute>) -> io::Result<()> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    let family = family(&mut netlink)?;
    attributes.insert(0, WireguardAttribute::IfName(LinkName::Tunnel.to_string()));
    netlink.change(vec![(message(WireguardCmd::SetDevice, attributes, family), 0)]).into_iter().collect()
}

fn message(cmd: WireguardCmd, attributes: Vec<WireguardAttribute>, family: u16) -> GenlMessage<WireguardMessage> {
    let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
    message.set_resolved_family_id(family);
    message
}

/// Asks what number the kernel has given to the WireGuard family.
fn family(netlink: &mut Netlink) -> io::Result<u16> {
    let nlas = vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())];
    let reply = netlink.get(GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas }))?;
    let number = reply.payload.nlas.iter().find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(number) => Some(*number),
        _ => None,
    });
    number.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn write_peer(key: PublicKey, peer: ObservedPeer) -> WireguardPeer {
    let (family, cidr) = match peer.tunnel_address {
        IpAddr::V4(_) => (WireguardAddressFamily::Ipv4, 32),
        IpAddr::V6(_) => (WireguardAddressFamily::Ipv6, 128),
    };
    let allowed = WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(peer.tunnel_address),
        WireguardAllowedIpAttr::Cidr(cidr),
    ]);
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::Endpoint(peer.underlay),
        WireguardPeerAttribute::AllowedIps(vec![allowed]),
    ])
}

fn read_peer(peer: &WireguardPeer) -> Option<(PublicKey, ObservedPeer)> {
    let (mut key, mut underlay, mut tunnel_address) = (None, None, None);
    for attribute in &peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(octets) => key = Some(PublicKey::new(*octets)),
            WireguardPeerAttribute::Endpoint(endpoint) => underlay = Some(*endpoint),
            WireguardPeerAttribute::AllowedIps(allowed) => {
                tunnel_address = allowed.iter().flat_map(|allowed| &allowed.0).find_map(|attribute| match attribute {
                    WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some((key?, ObservedPeer { underlay: underlay?, tunnel_address: tunnel_address? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k6_a_peer_is_written_with_its_one_address_and_read_back() {
        let peer = |address: &str| ObservedPeer {
            underlay: "192.0.2.1:51820".parse().unwrap(),
            tunnel_address: address.parse().unwrap(),
        };
        let key = PublicKey::new([7; 32]);
        for address in ["100.64.0.7", "fd00::7"] {
            assert_eq!(read_peer(&write_peer(key, peer(address))), Some((key, peer(address))));
        }
        assert!(
            write_peer(key, peer("fd00::7"))
                .0
                .contains(&WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps))
        );
    }
}
