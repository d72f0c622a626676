//! The kernel's WireGuard, by generic netlink: one device for a node, and its peers one at a time, in place.
#![expect(clippy::wildcard_enum_match_arm, reason = "the kernel tells more than is looked at")]

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ipnet::IpNet;
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use nix::sys::socket::SockProtocol;
use pn_core::PublicKey;
use pn_overlay::PrivateKey;

use crate::kernel::{Identity, LinkName, Peer, Place};
use crate::netlink::Netlink;
use crate::netns::Namespaces;

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

    /// Returns who the device is.
    pub(crate) fn identity(&self) -> Identity {
        Identity { public_key: self.private_key.public_key(), port: self.port }
    }

    /// Adds a peer, or changes it in place.
    pub(crate) fn set_peer(&self, key: PublicKey, peer: &Peer) -> io::Result<()> {
        set(vec![WireguardAttribute::Peers(vec![write_peer(key, peer)])])
    }

    /// Removes a peer. The kernel does not mind if there is none.
    pub(crate) fn remove_peer(&self, key: PublicKey) -> io::Result<()> {
        let flags = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
        let peer = vec![WireguardPeerAttribute::PublicKey(*key.as_bytes()), WireguardPeerAttribute::Flags(flags)];
        set(vec![WireguardAttribute::Peers(vec![WireguardPeer(peer)])])
    }
}

/// A device as it is.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) identity: Identity,
    pub(crate) peers: BTreeMap<PublicKey, Peer>,
}

/// Reads the device of the transport namespace, if there is one.
pub(crate) fn read_device(namespaces: &Namespaces) -> io::Result<Option<Device>> {
    match namespaces.open(Place::Transport)? {
        Some(_) => namespaces.within(Place::Transport, device),
        None => Ok(None),
    }
}

fn device() -> io::Result<Option<Device>> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    let family = family(&mut netlink)?;
    let name = || WireguardAttribute::IfName(LinkName::Tunnel.to_string());
    let messages = match netlink.dump(|| message(WireguardCmd::GetDevice, vec![name()], family)) {
        // There is none of the name, or one of another kind.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::EOPNOTSUPP)) => {
            return Ok(None);
        }
        found => found?,
    };
    // A device that has no key yet has no public key either.
    let (mut public_key, mut port, mut peers) = (PublicKey::new([0; 32]), 0, BTreeMap::new());
    for attribute in messages.into_iter().flat_map(|message| message.payload.attributes) {
        match attribute {
            WireguardAttribute::PublicKey(octets) => public_key = PublicKey::new(octets),
            WireguardAttribute::ListenPort(found) => port = found,
            WireguardAttribute::Peers(found) => found.iter().for_each(|peer| read_peer(peer, &mut peers)),
            _ => {}
        }
    }
    Ok(Some(Device { identity: Identity { public_key, port }, peers }))
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

fn write_peer(key: PublicKey, peer: &Peer) -> WireguardPeer {
    let allowed = peer.allowed.iter().map(|prefix| {
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(match prefix.addr() {
                IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
                IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
            }),
            WireguardAllowedIpAttr::IpAddr(prefix.addr()),
            WireguardAllowedIpAttr::Cidr(prefix.prefix_len()),
        ])
    });
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::Endpoint(peer.underlay),
        WireguardPeerAttribute::AllowedIps(allowed.collect()),
    ])
}

/// Adds a peer to those that were read; one that has many addresses comes in parts.
fn read_peer(peer: &WireguardPeer, peers: &mut BTreeMap<PublicKey, Peer>) {
    let (mut key, mut underlay, mut allowed) = (None, None, BTreeSet::new());
    for attribute in &peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(octets) => key = Some(PublicKey::new(*octets)),
            WireguardPeerAttribute::Endpoint(endpoint) => underlay = Some(*endpoint),
            WireguardPeerAttribute::AllowedIps(found) => allowed.extend(found.iter().filter_map(read_prefix)),
            _ => {}
        }
    }
    if let Some(key) = key {
        // One that nobody has said where it is.
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let known = peers.entry(key).or_insert_with(|| Peer { underlay: nowhere, allowed: BTreeSet::new() });
        known.underlay = underlay.unwrap_or(known.underlay);
        known.allowed.extend(allowed);
    }
}

fn read_prefix(allowed: &WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut len) = (None, None);
    for attribute in &allowed.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
            WireguardAllowedIpAttr::Cidr(found) => len = Some(*found),
            _ => {}
        }
    }
    IpNet::new(address?, len?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k6_a_peer_is_written_with_what_it_is_allowed_and_read_back() {
        let key = PublicKey::new([7; 32]);
        let underlay = "192.0.2.1:51820".parse().unwrap();
        for allowed in [vec!["100.64.0.7/32"], vec!["fd00::7/128"], vec![], vec!["0.0.0.0/0", "fd00::/8"]] {
            let peer = Peer { underlay, allowed: allowed.iter().map(|prefix| prefix.parse().unwrap()).collect() };
            let written = write_peer(key, &peer);
            // What it was allowed before, it is not any more; no other peer is named.
            assert!(written.0.contains(&WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps)));
            let mut read = BTreeMap::new();
            read_peer(&written, &mut read);
            assert_eq!(read, BTreeMap::from([(key, peer)]));
        }
    }
}
