//! What this machine can do, tried out in a namespace that is thrown away.

use std::io;
use std::path::PathBuf;

use nix::sys::socket::SockProtocol;
use pn_core::{BackendError, ErrorKind};

use crate::firewall::Nft;
use crate::kernel::{Link, LinkKind, LinkName};
use crate::message;
use crate::netlink::Netlink;
use crate::worker::error;

/// What not every kernel has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Features {
    pub(crate) has_wireguard: bool,
}

/// Tries every kind of link in the namespace of the calling thread.
pub(crate) fn features() -> Result<Features, BackendError> {
    let here = std::fs::File::open("/proc/thread-self/ns/net").map_err(|source| error("read", "/proc", source))?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&here);
    let mut netlink =
        Netlink::open(SockProtocol::NetlinkRoute).map_err(|source| error("open", "a netlink socket", source))?;
    let link = |kind| Link { kind, mtu: 1280, mac: None, alias: None, port: None, is_up: true };
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
            required(kind, tried)?;
        }
    }
    let wireguard = attempt(message::create_wireguard(&link(LinkKind::WireGuard(None)), fd));
    Ok(Features { has_wireguard: wireguard.is_ok() })
}

/// Says what a kernel lacks that cannot make a kind of link.
fn required(kind: &str, tried: io::Result<()>) -> Result<(), BackendError> {
    tried.map_err(|source| {
        let object = format!("a link of kind {kind}: the kernel needs its module, modprobe {kind}");
        BackendError::new(ErrorKind::Unsupported, "create", object).with_source(source)
    })
}

/// Loads every rule.
pub(crate) fn filters(program: PathBuf) -> Result<Nft, BackendError> {
    Nft::probe(program).map_err(|source| error("load", "the packet filter's rules", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_a_kind_of_link_is_told_which_module_it_needs() {
        assert!(required("vxlan", Ok(())).is_ok());
        let lacks = required("vxlan", Err(io::Error::from_raw_os_error(nix::libc::EOPNOTSUPP))).unwrap_err();
        assert_eq!(lacks.kind(), ErrorKind::Unsupported);
        assert!(lacks.to_string().contains("kind vxlan") && lacks.to_string().contains("modprobe vxlan"), "{lacks}");
    }
}
