//! What this machine can do, tried out in a namespace that is thrown away, and how much it holds.

use std::io;
use std::path::PathBuf;

use netlink_packet_route::neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::SockProtocol;
use pn_core::{BackendError, ErrorKind, Limits};

use crate::backend::NEEDED;
use crate::firewall::{self, Nft};
use crate::kernel::{Link, LinkKind, LinkName};
use crate::message;
use crate::netlink::Netlink;
use crate::sys;
use crate::worker::error;

/// What not every kernel has, and what it holds.
#[derive(Debug)]
pub(crate) struct Features {
    pub(crate) has_wireguard: bool,
    /// Why packets cannot be encrypted in this process, if they cannot.
    pub(crate) tun: Result<(), BackendError>,
    /// Why large packets in tunnels cross no TAP device whole, if they do not.
    pub(crate) whole: io::Result<()>,
    pub(crate) limits: Limits,
}

/// Tries every kind of link in the namespace of the calling thread.
pub(crate) fn features() -> Result<Features, BackendError> {
    let here = std::fs::File::open("/proc/thread-self/ns/net").map_err(|source| error("read", "/proc", source))?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&here);
    let mut netlink =
        Netlink::open(SockProtocol::NetlinkRoute).map_err(|source| error("open", "a netlink socket", source))?;
    let link = |kind| Link { kind, mtu: 1280, mac: None, alias: None, port: None, is_plain: true, is_up: true };
    let local = Some([127, 0, 0, 1].into());
    let vxlan = link(LinkKind::Vxlan { vni: 1, local, port: 4789, is_learning: false });
    let mut attempt = |request| netlink.change(vec![request]).into_iter().collect::<io::Result<()>>();
    let veth = link(LinkKind::Veth);
    let port = LinkName::Port(core::net::Ipv4Addr::LOCALHOST);
    for (kind, request) in [
        ("bridge", Some(message::create_bridge(&link(LinkKind::Bridge)))),
        ("vxlan", message::create_vxlan(&vxlan, fd)),
        ("veth", Some(message::create_veth(message::Pair { port, link: &veth, inner: &veth }, fd))),
    ] {
        if let Some(tried) = request.map(&mut attempt) {
            required(&format!("a link of kind {kind}"), kind, tried)?;
        }
    }
    let has_wireguard = attempt(message::create_wireguard(&link(LinkKind::WireGuard(None)), fd)).is_ok();
    // The name is another than WireGuard's device has.
    let tap = sys::create_tap("tunnel1");
    let whole = tap.as_ref().map_or(Ok(()), |(tap, _)| sys::take_whole(tap));
    let tun = required("a TAP device with /dev/net/tun", "tun", tap.map(drop));
    let mut limits = Limits::default();
    if let Some(neighbours) = neighbours(&mut netlink) {
        limits.neighbours = neighbours;
    }
    Ok(Features { has_wireguard, tun, whole, limits })
}

/// Says what a kernel lacks that cannot do a thing.
fn required(object: &str, module: &str, tried: io::Result<()>) -> Result<(), BackendError> {
    tried.map_err(|source| {
        if matches!(source.kind(), io::ErrorKind::PermissionDenied) {
            return error("create", format!("{object}{NEEDED}"), source);
        }
        let object = format!("{object}: the kernel needs its module, modprobe {module}");
        BackendError::new(ErrorKind::Unsupported, "create", object).with_source(source)
    })
}

/// Reads how many neighbours this kernel holds, in all namespaces together: `gc_thresh3` of ARP's table.
fn neighbours(netlink: &mut Netlink) -> Option<usize> {
    let ask = || {
        let mut message = NeighbourTableMessage::default();
        message.header.family = AddressFamily::Inet;
        RouteNetlinkMessage::GetNeighbourTable(message)
    };
    for message in netlink.dump(ask).ok()? {
        let RouteNetlinkMessage::NewNeighbourTable(table) = message else {
            continue;
        };
        // Parameters of single devices have none.
        for attribute in table.attributes {
            if let NeighbourTableAttribute::Threshold3(limit) = attribute {
                return usize::try_from(limit).ok();
            }
        }
    }
    None
}

/// Loads every rule.
pub(crate) fn filters(program: PathBuf) -> Result<Nft, BackendError> {
    // Before `nft` fails with what it makes of it.
    if let Err(source) = firewall::generation() {
        let object = "packet filters: the kernel needs their module, modprobe nf_tables";
        return Err(BackendError::new(ErrorKind::Unsupported, "load", object).with_source(source));
    }
    Nft::probe(program).map_err(|source| {
        if source.kind() != io::ErrorKind::Other {
            return error("load", "the packet filter's rules", source);
        }
        let object = "the packet filter's rules: the kernel needs filters for bridges with named counters, modprobe -a \
                      nft_objref nft_meta_bridge, and nft has to be 1.0.6 or newer";
        BackendError::new(ErrorKind::Unsupported, "load", object).with_source(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_a_kind_of_link_is_told_which_module_it_needs() {
        let required = |tried| required("a link of kind vxlan", "vxlan", tried);
        assert!(required(Ok(())).is_ok());
        let lacks = required(Err(io::Error::from_raw_os_error(nix::libc::EOPNOTSUPP))).unwrap_err();
        assert_eq!(lacks.kind(), ErrorKind::Unsupported);
        assert!(lacks.to_string().contains("kind vxlan") && lacks.to_string().contains("modprobe vxlan"), "{lacks}");
        let denied = required(Err(io::Error::from_raw_os_error(nix::libc::EPERM))).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
        assert!(denied.to_string().contains("CAP_NET_ADMIN"), "{denied}");
    }
}
