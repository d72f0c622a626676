//! The servers, and how each is told to serve the zone on one port of one address, with so many threads.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use pn_core::NetworkDomain;

use crate::zone;

/// A server that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    PnDns,
    Echo,
    Nsd,
    Knot,
    Bind,
    Unbound,
    Dnsmasq,
    PowerDns,
}

/// How a server learns of one more name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Updates {
    /// A line on its standard input.
    Pipe,
    /// RFC 2136.
    Dynamic,
    /// Not while it runs, or only by reading everything again.
    None,
}

impl Server {
    pub(crate) const ALL: [Self; 8] =
        [Self::PnDns, Self::Echo, Self::Nsd, Self::Knot, Self::Bind, Self::Unbound, Self::Dnsmasq, Self::PowerDns];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PnDns => "pn-dns",
            Self::Echo => "echo",
            Self::Nsd => "nsd",
            Self::Knot => "knot",
            Self::Bind => "bind",
            Self::Unbound => "unbound",
            Self::Dnsmasq => "dnsmasq",
            Self::PowerDns => "pdns",
        }
    }

    /// Returns its program; `None` for what is in this one.
    const fn program(self) -> Option<&'static str> {
        match self {
            Self::PnDns | Self::Echo => None,
            Self::Nsd => Some("nsd"),
            Self::Knot => Some("knotd"),
            Self::Bind => Some("named"),
            Self::Unbound => Some("unbound"),
            Self::Dnsmasq => Some("dnsmasq"),
            Self::PowerDns => Some("pdns_server"),
        }
    }

    /// Returns whether it can be started here.
    pub(crate) fn is_installed(self) -> bool {
        self.program().is_none_or(|program| find(program).is_some())
    }

    pub(crate) const fn updates(self) -> Updates {
        match self {
            Self::PnDns => Updates::Pipe,
            Self::Knot | Self::Bind => Updates::Dynamic,
            Self::Echo | Self::Nsd | Self::Unbound | Self::Dnsmasq | Self::PowerDns => Updates::None,
        }
    }

    /// Writes its configuration into a directory of its own, beside the files of the zone, and says how to start it.
    pub(crate) fn command(
        self,
        directory: &Path,
        zone_files: &Path,
        address: SocketAddr,
        threads: usize,
        names: u32,
        with_state: bool,
    ) -> io::Result<Command> {
        let (d, z, ip, port) = (directory.display(), zone_files.display(), address.ip(), address.port());
        let domain = NetworkDomain(zone::network());
        let file = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).map(|()| path)
        };
        let mut command = match self.program() {
            None => Command::new(std::env::current_exe()?),
            Some(program) => Command::new(find(program).ok_or(io::ErrorKind::NotFound)?),
        };
        match self {
            Self::PnDns | Self::Echo => {
                let what = if with_state { "pn-dns-state" } else { self.name() };
                command.args(["--serve", what, "--address", &address.to_string(), "--names", &names.to_string()]);
            }
            Self::Nsd => {
                let text = format!(
                    "server:\n ip-address: {ip}@{port}\n server-count: {threads}\n reuseport: yes\n zonesdir: \"{z}\"\n \
                     database: \"\"\n username: \"\"\n pidfile: \"{d}/nsd.pid\"\n zonelistfile: \"{d}/nsd.zl\"\n \
                     xfrdfile: \"{d}/xfrd.state\"\n xfrdir: \"{d}\"\n rrl-ratelimit: 0\nremote-control:\n control-enable: no\n\
                     zone:\n name: \"{domain}\"\n zonefile: \"zone\"\n"
                );
                command.arg("-d").arg("-c").arg(file("nsd.conf", text)?);
            }
            Self::Knot => {
                fs::copy(zone_files.join("zone"), directory.join("zone"))?;
                let text = format!(
                    "server:\n    listen: {ip}@{port}\n    rundir: \"{d}\"\n    udp-workers: {threads}\n    tcp-workers: 1\n    \
                     background-workers: 1\ndatabase:\n    storage: \"{d}\"\nacl:\n  - id: update\n    address: {ip}\n    \
                     action: update\nzone:\n  - domain: {domain}\n    file: \"{d}/zone\"\n    acl: update\n    \
                     zonefile-load: whole\n    zonefile-sync: -1\n    journal-content: changes\n"
                );
                command.arg("-c").arg(file("knot.conf", text)?);
            }
            Self::Bind => {
                fs::copy(zone_files.join("zone"), directory.join("zone"))?;
                let text = format!(
                    "options {{ directory \"{d}\"; listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }}; recursion no; \
                     pid-file \"{d}/named.pid\"; session-keyfile \"{d}/session.key\"; minimal-responses yes; \
                     dnssec-validation no; empty-zones-enable no; }};\ncontrols {{ }};\n\
                     zone \"{domain}\" {{ type primary; file \"{d}/zone\"; allow-update {{ {ip}; }}; }};\n"
                );
                command.args(["-f", "-n", &threads.to_string(), "-c"]).arg(file("named.conf", text)?);
            }
            Self::Unbound => {
                let text = format!(
                    "server:\n interface: {ip}@{port}\n access-control: 127.0.0.0/8 allow\n num-threads: {threads}\n \
                     so-reuseport: yes\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n directory: \"{d}\"\n \
                     pidfile: \"{d}/unbound.pid\"\n use-syslog: no\n module-config: \"iterator\"\n \
                     local-zone: \"{domain}.\" static\n include: \"{z}/local-data\"\nremote-control:\n control-enable: no\n"
                );
                command.arg("-d").arg("-c").arg(file("unbound.conf", text)?);
            }
            Self::Dnsmasq => {
                command.args([
                    "--no-daemon",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--bind-interfaces",
                ]);
                command.args([&format!("--port={port}"), &format!("--listen-address={ip}")]);
                command.args([
                    &format!("--addn-hosts={z}/hosts"),
                    "--local=/private-network.internal/",
                    "--local-ttl=5",
                ]);
                command.args(["--user=root", "--cache-size=10000"]);
            }
            Self::PowerDns => {
                file("bind.conf", format!("zone \"{domain}\" {{ type master; file \"{z}/zone\"; }};\n"))?;
                file(
                    "pdns.conf",
                    format!(
                        "local-address={ip}\nlocal-port={port}\nlaunch=bind\nbind-config={d}/bind.conf\n\
                         receiver-threads={threads}\nreuseport=yes\ndistributor-threads=1\nsocket-dir={d}\ndaemon=no\n\
                         guardian=no\nversion-string=anonymous\n"
                    ),
                )?;
                command.arg(format!("--config-dir={d}"));
            }
        }
        Ok(command)
    }
}

/// Finds a program, also where only root looks.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/sbin", "/usr/local/sbin", "/sbin"]);
    places.map(|place| Path::new(place).join(program)).find(|path| path.is_file())
}
