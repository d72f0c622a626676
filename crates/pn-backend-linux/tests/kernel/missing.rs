//! Machines that lack something: rights, `nft`, a device, room for namespaces. (Kernels that lack a module are booted by
//! ci/linux-wireguard.sh.)

use crate::hosts;

use hosts::{Netns, directory, explain, is_root};
use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_core::{ErrorKind, NodeId};

#[tokio::test(flavor = "multi_thread")]
async fn without_what_it_needs_it_does_not_start_and_says_what_is_missing() {
    if !is_root() {
        return;
    }
    // In other processes, since what is missing is the process's own.
    let this = std::env::current_exe().unwrap();
    let test = format!("{} --ignored --exact --nocapture missing::says_why_it_does_not_start", this.display());
    let without = |caps: &str| format!("setpriv --bounding-set={caps} --inh-caps={caps} {test}");
    for (line, expected) in [
        (
            format!("setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all {test}"),
            ["PermissionDenied", "CAP_NET_ADMIN", "network namespace"],
        ),
        (without("-sys_admin"), ["PermissionDenied", "CAP_SYS_ADMIN", "network namespace"]),
        (without("-net_admin"), ["PermissionDenied", "CAP_NET_ADMIN", "a link of kind bridge"]),
        (format!("PATH=/nowhere {test}"), ["NotFound", "nft cannot be run", "install the package nftables"]),
        (
            format!("unshare --mount sh -c 'mount -t tmpfs none /dev/net && {test}'"),
            ["Unsupported", "/dev/net/tun", "modprobe tun"],
        ),
        (
            format!("unshare --user --map-root-user --net sh -c 'echo 0 >/proc/sys/user/max_net_namespaces && {test}'"),
            ["Io", "network namespace", "sysctl user.max_net_namespaces"],
        ),
    ] {
        let said = hosts::sh(&line);
        assert!(expected.iter().all(|part| said.contains(part)), "{line}: {said}");
    }
    let host = Netns::new("port");
    let builder = |n| LinuxBackend::builder(NodeId::from_u128(n)).directory(directory()).namespace(host.path());
    let listen = "127.0.0.1:51820".parse().unwrap();
    let first = builder(1).listen(listen).tunnel(TunnelKind::UserSpaceBridged).build().await.unwrap();
    let error = builder(2).listen(listen).build().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("127.0.0.1:51820"), "{error}");
    drop(first);
    // The kernel's tunnel, where it has none.
    if builder(4).build().await.unwrap().tunnel() == TunnelKind::Kernel {
        println!("not looked at: a kernel without WireGuard");
    } else {
        let error = builder(5).tunnel(TunnelKind::Kernel).build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("modprobe wireguard"), "{error}");
    }
    let error = builder(3).namespace("/run/netns/linux-nobody").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
#[ignore = "it is run by the test above and by ci/linux-wireguard.sh, where things are missing"]
async fn says_why_it_does_not_start() {
    let builder = LinuxBackend::builder(NodeId::from_u128(1)).directory(directory());
    let error = builder.tunnel(TunnelKind::UserSpaceBridged).build().await.unwrap_err();
    println!("{:?}: {}", error.kind(), explain(&error));
}

/// Runs a program on a kernel that is as if it refused large packets in tunnels (`TUNSETOFFLOAD` with `TUN_F_UDP_TUNNEL_GSO`): a
/// filter of system calls, which goes on in whatever is started.
const OLDER: &str = "import ctypes, os, struct, sys
call = {'x86_64': 16, 'aarch64': 29}[os.uname().machine]
rules = [(32, 0, 0, 0), (21, 0, 4, call), (32, 0, 0, 24), (21, 0, 2, 0x400454d0), (32, 0, 0, 32), (69, 1, 0, 0x180),
         (6, 0, 0, 0x7fff0000), (6, 0, 0, 0x50000 | 22)]
filter = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(rules), ctypes.addressof(filter)))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])";

#[tokio::test(flavor = "multi_thread")]
async fn where_large_packets_in_tunnels_are_refused_vxlan_ends_in_this_process() {
    if !is_root() {
        return;
    }
    let builder = LinuxBackend::builder(NodeId::from_u128(1)).directory(directory());
    if builder.build().await.unwrap().tunnel() == TunnelKind::Kernel {
        println!("not looked at: a kernel without WireGuard");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let test = "--ignored --exact --nocapture missing::says_what_it_takes";
    let said = hosts::sh(&format!("python3 -c \"{OLDER}\" {} {test}", this.display()));
    let parts = ["it takes UserSpaceBridged", "Unsupported", "packets in tunnels cross whole"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is run by the test above, where large packets in tunnels are refused"]
async fn says_what_it_takes() {
    let builder = || LinuxBackend::builder(NodeId::from_u128(1)).directory(directory());
    println!("it takes {:?}", builder().build().await.unwrap().tunnel());
    let error = builder().tunnel(TunnelKind::UserSpace).build().await.unwrap_err();
    println!("{:?}: {}", error.kind(), explain(&error));
}
