//! The systems that are measured, and how each is set up between two namespaces.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Error;
use crate::netns::{Daemon, Namespaces, wait_for};
use crate::node::CONTAINER;

/// One that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Veth,
    Vxlan,
    Boringtun { threads: u8 },
    Gotatun,
    WireguardGo,
    Nebula,
    VxlanOverBoringtun,
    Userspace { idle: u16 },
    BehindVxlan,
    Kernel,
    InProcess,
}

impl System {
    pub(crate) const ALL: [Self; 13] = [
        Self::Veth,
        Self::Vxlan,
        Self::Boringtun { threads: 1 },
        Self::Boringtun { threads: 4 },
        Self::Gotatun,
        Self::WireguardGo,
        Self::Nebula,
        Self::VxlanOverBoringtun,
        Self::Userspace { idle: 0 },
        Self::Userspace { idle: 999 },
        Self::Kernel,
        Self::BehindVxlan,
        Self::InProcess,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Vxlan => "vxlan",
            Self::Boringtun { threads: 1 } => "boringtun-t1",
            Self::Boringtun { .. } => "boringtun",
            Self::Gotatun => "gotatun",
            Self::WireguardGo => "wireguard-go",
            Self::Nebula => "nebula",
            Self::VxlanOverBoringtun => "vxlan+boringtun",
            Self::Userspace { idle: 0 } => "pn-userspace",
            Self::Userspace { .. } => "pn-userspace-1000",
            Self::BehindVxlan => "pn-linux-vxlan",
            Self::Kernel => "pn-linux",
            Self::InProcess => "pn-in-process",
        }
    }

    /// Returns the program that it needs and that is not there.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let wanted: &[&'static str] = match self {
            Self::Veth | Self::Vxlan | Self::Userspace { .. } | Self::InProcess => &["ip"],
            Self::BehindVxlan | Self::Kernel => &["ip", "nft"],
            Self::Boringtun { .. } | Self::VxlanOverBoringtun => &["boringtun-cli", "wg"],
            Self::Gotatun => &["gotatun", "wg"],
            Self::WireguardGo => &["wireguard-go", "wg"],
            Self::Nebula => &["nebula", "nebula-cert"],
        };
        wanted.iter().find(|program| find(program).is_none()).copied()
    }

    /// Sets it up between the nodes.
    pub(crate) fn start(
        self,
        namespaces: &Namespaces,
        scratch: &Path,
        threads_of_ours: NonZeroUsize,
    ) -> Result<Running, Error> {
        let mut running =
            Running { client: "node0", server: "node1", address: "10.0.99.2".into(), daemons: Vec::new() };
        match self {
            Self::Veth => {}
            Self::Vxlan => running.vxlan(namespaces, ["10.0.99.1", "10.0.99.2"], 1450)?,
            Self::Boringtun { threads } => {
                let threads = threads.to_string();
                let words = ["-f", "--disable-drop-privileges", "-t", &threads];
                running.wireguard(namespaces, scratch, "boringtun-cli", &words)?;
            }
            Self::Gotatun => {
                running.wireguard(
                    namespaces,
                    scratch,
                    "gotatun",
                    &["-f", "--disable-drop-privileges", "-v", "error"],
                )?;
            }
            Self::WireguardGo => running.wireguard(namespaces, scratch, "wireguard-go", &["-f"])?,
            Self::Nebula => running.nebula(namespaces, scratch)?,
            Self::VxlanOverBoringtun => {
                let words = ["-f", "--disable-drop-privileges", "-t", "1"];
                running.wireguard(namespaces, scratch, "boringtun-cli", &words)?;
                running.vxlan(namespaces, ["10.77.0.1", "10.77.0.2"], 1370)?;
            }
            Self::Userspace { .. } | Self::BehindVxlan | Self::Kernel => {
                for n in 0..2 {
                    let mut command = namespaces.command(&format!("node{n}"), &this_program()?);
                    let namespace = format!("/run/netns/{}", namespaces.name(&format!("cont{n}")));
                    command.args(["node", &n.to_string(), "--namespace", &namespace]);
                    if let Self::Userspace { idle } = self {
                        command.args(["--idle", &idle.to_string(), "--threads", &threads_of_ours.to_string()]);
                    } else {
                        command.arg(if self == Self::BehindVxlan { "--behind-vxlan" } else { "--kernel" });
                    }
                    running.daemons.push(Daemon::start_and_wait(command)?);
                }
                (running.client, running.server) = ("cont0", "cont1");
                running.address = CONTAINER[1].to_string();
            }
            Self::InProcess => {
                let mut command = namespaces.command("node1", &this_program()?);
                command.args(["node", "1"]);
                running.daemons.push(Daemon::start_and_wait(command)?);
                return Ok(running);
            }
        }
        wait_for(&format!("a way through {}", self.name()), || {
            let mut ping = namespaces.command(running.client, "ping");
            ping.args(["-c1", "-W1", "-q", &running.address]).output().is_ok_and(|output| output.status.success())
        })?;
        if let Self::Userspace { idle: 1.. } = self {
            // Peers that are configured are greeted once, 64 a second, each for 5 s. What is measured is what they cost after that.
            std::thread::sleep(Duration::from_secs(22));
        }
        Ok(running)
    }
}

/// A system that was set up.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where load comes from and goes to.
    pub(crate) client: &'static str,
    pub(crate) server: &'static str,
    /// The server's address inside.
    pub(crate) address: String,
    pub(crate) daemons: Vec<Daemon>,
}

impl Running {
    /// Two kernels' VXLAN, with static neighbours.
    fn vxlan(&mut self, namespaces: &Namespaces, local: [&str; 2], mtu: u16) -> Result<(), Error> {
        for n in 0..2 {
            let (me, other) = (n + 1, 2 - n);
            let (here, there) = (local[n], local[1 - n]);
            namespaces.sh(
                &format!("node{n}"),
                &format!(
                    "ip link add vx0 address 02:00:00:00:00:0{me} mtu {mtu} type vxlan id 42 local {here} dstport 4789 nolearning
                     ip address add 10.78.0.{me}/24 dev vx0; ip link set vx0 up
                     bridge fdb append 02:00:00:00:00:0{other} dev vx0 dst {there} self permanent
                     ip neighbour add 10.78.0.{other} lladdr 02:00:00:00:00:0{other} dev vx0 nud permanent"
                ),
            )?;
        }
        self.address = "10.78.0.2".into();
        Ok(())
    }

    /// A user-space WireGuard that `wg` can configure.
    fn wireguard(
        &mut self,
        namespaces: &Namespaces,
        scratch: &Path,
        program: &str,
        words: &[&str],
    ) -> Result<(), Error> {
        let program = find(program).ok_or_else(|| format!("{program} is not installed"))?;
        // The sockets that they are configured through are in one folder for all namespaces.
        let device = |n: usize| format!("wgb{n}");
        let mut keys = Vec::new();
        for n in 0..2 {
            let mut command = namespaces.command(&format!("node{n}"), &program.to_string_lossy());
            command.args(words).arg(device(n)).env("WG_PROCESS_FOREGROUND", "1");
            let socket = PathBuf::from(format!("/var/run/wireguard/{}.sock", device(n)));
            // What an earlier run left would be taken for this one's.
            drop(std::fs::remove_file(&socket));
            self.daemons.push(Daemon::start(command)?);
            wait_for("a control socket", || socket.exists())?;
            let private = output(Command::new("wg").arg("genkey"))?;
            let file = scratch.join(device(n));
            std::fs::write(&file, &private)?;
            keys.push((private, output(Command::new("sh").args(["-c", "wg pubkey <\"$0\""]).arg(&file))?));
        }
        for n in 0..2 {
            let (private, public, other) = (&keys[n].0, &keys[1 - n].1, 2 - n);
            let settings = format!(
                "[Interface]\nPrivateKey={private}\nListenPort=51820\n[Peer]\nPublicKey={public}\nEndpoint=10.0.99.{other}:51820\n\
                 AllowedIPs=10.77.0.{other}/32\n"
            );
            let file = scratch.join(device(n));
            std::fs::write(&file, settings)?;
            let (device, me, file) = (device(n), n + 1, file.display());
            // Some are not ready for it yet when their socket is.
            let script = format!(
                "wg setconf {device} {file}; ip address add 10.77.0.{me}/24 dev {device}; ip link set {device} mtu 1420 up"
            );
            wait_for("an interface", || namespaces.sh(&format!("node{n}"), &script).is_ok())?;
        }
        self.address = "10.77.0.2".into();
        Ok(())
    }

    fn nebula(&mut self, namespaces: &Namespaces, scratch: &Path) -> Result<(), Error> {
        let folder = scratch.join("nebula");
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&folder)?;
        let certificates = "nebula-cert ca -name t; nebula-cert sign -name n0 -ip 10.79.0.1/24; nebula-cert sign -name n1 -ip 10.79.0.2/24";
        output(Command::new("sh").args(["-ec", certificates]).current_dir(&folder))?;
        for n in 0..2 {
            let (at, hosts) = (folder.display(), if n == 0 { "" } else { "\"10.79.0.1\"" });
            let settings = format!(
                "pki: {{ca: {at}/ca.crt, cert: {at}/n{n}.crt, key: {at}/n{n}.key}}
static_host_map: {{ \"10.79.0.1\": [\"10.0.99.1:4242\"] }}
lighthouse: {{am_lighthouse: {}, interval: 5, hosts: [{hosts}]}}
listen: {{host: 0.0.0.0, port: 4242, read_buffer: 10485760, write_buffer: 10485760}}
cipher: aes
punchy: {{punch: false}}
tun: {{dev: neb{n}, mtu: 1300, tx_queue: 500}}
logging: {{level: error}}
firewall: {{outbound: [{{port: any, proto: any, host: any}}], inbound: [{{port: any, proto: any, host: any}}]}}
",
                n == 0
            );
            let file = folder.join(format!("n{n}.yml"));
            std::fs::write(&file, settings)?;
            let mut command = namespaces.command(&format!("node{n}"), "nebula");
            command.arg("-config").arg(file);
            self.daemons.push(Daemon::start(command)?);
        }
        self.address = "10.79.0.2".into();
        Ok(())
    }
}

/// Returns the path of this program, which is also the nodes and the loads.
pub(crate) fn this_program() -> Result<String, Error> {
    Ok(std::env::current_exe()?.to_string_lossy().into_owned())
}

/// Finds a program as a shell does.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn output(command: &mut Command) -> Result<String, Error> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?.trim().to_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
