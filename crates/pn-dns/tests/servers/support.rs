//! Name servers as child processes, and clients to ask them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pn_core::{NetworkDomain, NetworkId, Transport};
use pn_dns::stub;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that goes with its owner.
#[derive(Debug)]
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dns-more-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns whether every program is installed; a test without one says so, and fails where nothing may be left out.
pub(crate) fn installed(programs: &[&str]) -> bool {
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let missing: Vec<_> =
        programs.iter().filter(|name| !paths.split(':').any(|dir| Path::new(dir).join(name).exists())).collect();
    if missing.is_empty() {
        return true;
    }
    assert_ne!(std::env::var("PN_REQUIRE_ROOT").as_deref(), Ok("1"), "not installed: {missing:?}");
    println!("ignored: not installed: {missing:?}");
    false
}

/// Starts a command that `PATH` may lack the directory of.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    command
}

/// Runs a command and returns what it printed; it must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{program} {arguments:?}: {status}\n{text}\n{}", String::from_utf8_lossy(&stderr));
    text
}

/// A port of loopback that nobody has at the moment, for UDP and TCP.
pub(crate) fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The programs under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bind,
    Knot,
    Nsd,
}

/// A zone that a server has.
#[derive(Debug, Clone)]
pub(crate) struct ServedZone {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// What else the server's configuration says of the zone, in its own language.
    pub(crate) more: String,
    /// Where the server gets the zone from, if it is a secondary.
    pub(crate) primary: Option<SocketAddr>,
}

impl ServedZone {
    pub(crate) fn of(network: NetworkId, file: PathBuf) -> Self {
        Self { name: NetworkDomain(network).to_string(), file, more: String::new(), primary: None }
    }
}

/// A key that servers and tests share: name and secret, for hmac-sha256.
pub(crate) const KEY: (&str, &str) = ("tests.", "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldCE=");

/// A name server, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts a server and returns when it answers. Another process may take the port first, so it tries again.
    pub(crate) async fn start(kind: Kind, dir: &TempDir, zones: &[ServedZone]) -> Self {
        let mut log = String::new();
        for _ in 0..5 {
            match Self::start_at(free_port(), kind, dir, zones).await {
                Ok(server) => return server,
                Err(text) => log = text,
            }
        }
        panic!("{kind:?} does not start:\n{log}");
    }

    /// Starts a server on a port; the error is its log.
    pub(crate) async fn start_at(port: u16, kind: Kind, dir: &TempDir, zones: &[ServedZone]) -> Result<Self, String> {
        // Several servers of a kind have their state apart.
        let own = dir.0.join(format!("{kind:?}-{port}"));
        fs::create_dir_all(&own).unwrap();
        let conf = own.join("conf");
        fs::write(&conf, configuration(kind, &own, port, zones)).unwrap();
        let conf = conf.to_str().unwrap();
        let arguments: &[&str] = match kind {
            Kind::Bind => &["named", "-g", "-n", "1", "-c", conf],
            Kind::Knot => &["knotd", "-c", conf],
            Kind::Nsd => &["nsd", "-d", "-c", conf],
        };
        Self::spawn(arguments, port, dir).await
    }

    /// Starts dnsmasq with one hosts file and no other source of names.
    pub(crate) async fn dnsmasq(dir: &TempDir, hosts: &Path) -> Self {
        let mut log = String::new();
        for _ in 0..5 {
            let port = free_port();
            let (port_is, hosts) = (format!("--port={port}"), format!("--addn-hosts={}", hosts.display()));
            let common =
                ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user="];
            let local = ["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/internal/", "--pid-file"];
            let arguments = [&common[..], &local, &[&port_is, &hosts]].concat();
            match Self::spawn(&arguments, port, dir).await {
                Ok(server) => return server,
                Err(text) => log = text,
            }
        }
        panic!("dnsmasq does not start:\n{log}");
    }

    async fn spawn(arguments: &[&str], port: u16, dir: &TempDir) -> Result<Self, String> {
        let log = dir.0.join(format!("{}-{port}.log", arguments[0]));
        let output = fs::File::create(&log).unwrap();
        let mut command = command(arguments[0]);
        command.args(&arguments[1..]).current_dir(&dir.0).stdin(Stdio::null());
        let child = command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        let mut server = Self { child, address: (Ipv4Addr::LOCALHOST, port).into(), log };
        let query = stub::query("version.bind", 1).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            if server.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                return Err(server.log());
            }
            let tcp = ask_tcp(server.address, &query).await;
            if tcp.is_some() && ask_udp(server.address, &query, Duration::from_secs(1)).await.is_some() {
                return Ok(server);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // NSD has children that go with it when it is asked to end.
        let _ = command("kill").arg(self.child.id().to_string()).status();
        for _ in 0..200 {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(kind: Kind, dir: &Path, port: u16, zones: &[ServedZone]) -> String {
    let (dir, (name, secret)) = (dir.display(), KEY);
    let mut text = match kind {
        Kind::Bind => format!(
            "options {{ directory \"{dir}\"; pid-file \"{dir}/named.pid\"; session-keyfile none; lock-file none;
               listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; notify no; dnssec-validation no;
               allow-transfer {{ none; }}; minimal-responses yes; allow-new-zones no; serial-query-rate 1000;
               max-records-per-type 0; }};
             controls {{ }};
             key \"{name}\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n"
        ),
        Kind::Knot => format!(
            "server:\n  rundir: {dir}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             log:\n- target: stderr\n  any: info\ndatabase:\n  storage: {dir}\n\
             key:\n- id: {name}\n  algorithm: hmac-sha256\n  secret: {secret}\n\
             acl:\n- id: with-key\n  key: {name}\n  action: [transfer, update, notify]\nzone:\n"
        ),
        Kind::Nsd => format!(
            "server:\n  ip-address: 127.0.0.1@{port}\n  server-count: 1\n  zonesdir: \"{dir}\"\n  pidfile: \"{dir}/nsd.pid\"\n\
             \x20 xfrdfile: \"{dir}/xfrd.state\"\n  zonelistfile: \"{dir}/zone.list\"\n  xfrdir: \"{dir}\"\n  username: \"\"\n\
             \x20 chroot: \"\"\n  database: \"\"\n  round-robin: yes\n  verbosity: 2\n\
             remote-control:\n  control-enable: no\nkey:\n  name: \"{name}\"\n  algorithm: hmac-sha256\n  secret: \"{secret}\"\n"
        ),
    };
    if let (Kind::Knot, Some(primary)) = (kind, zones.iter().find_map(|zone| zone.primary)) {
        let (address, port) = (primary.ip(), primary.port());
        text = text.replace(
            "zone:\n",
            &format!("remote:\n- id: primary\n  address: {address}@{port}\n  key: {name}\nzone:\n"),
        );
    }
    for ServedZone { name: zone, file, more, primary } in zones {
        let file = file.display();
        let from = primary.map(|primary| (primary.ip(), primary.port()));
        text += &match (kind, from) {
            (Kind::Bind, None) if more.is_empty() => format!("zone \"{zone}\" {{ file \"{file}\"; type primary; }};\n"),
            (Kind::Bind, None) => format!("zone \"{zone}\" {{ file \"{file}\"; {more}}};\n"),
            (Kind::Bind, Some((ip, port))) => format!(
                "zone \"{zone}\" {{ file \"{file}\"; type secondary; primaries port {port} {{ {ip} key {name}; }};
                   allow-notify {{ key {name}; }}; min-refresh-time 1; }};\n"
            ),
            (Kind::Knot, None) => format!("- domain: {zone}\n  file: {file}\n{more}"),
            (Kind::Knot, Some(_)) => format!("- domain: {zone}\n  file: {file}\n  master: primary\n  acl: with-key\n"),
            (Kind::Nsd, None) => format!("zone:\n  name: \"{zone}\"\n  zonefile: \"{file}\"\n{more}"),
            (Kind::Nsd, Some((ip, port))) => format!(
                "zone:\n  name: \"{zone}\"\n  zonefile: \"{file}\"\n  request-xfr: AXFR {ip}@{port} {name}\n\
                 \x20 allow-notify: {ip} {name}\n"
            ),
        };
    }
    text
}

/// Sends a query over UDP and returns the reply to it.
pub(crate) async fn ask_udp(server: SocketAddr, query: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query).await.ok()?;
    let mut reply = vec![0; 65_535];
    let len = timeout(patience, socket.recv(&mut reply)).await.ok()?.ok()?;
    reply.truncate(len);
    Some(reply)
}

/// Sends a query over TCP and returns the reply to it.
pub(crate) async fn ask_tcp(server: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes(), query].concat()).await?;
        let mut reply = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut reply).await?;
        Ok::<_, std::io::Error>(reply)
    };
    timeout(DEADLINE, exchange).await.ok()?.ok()
}

/// Sends a query over a transport.
pub(crate) async fn ask(server: SocketAddr, transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
    match transport {
        Transport::Udp => ask_udp(server, query, DEADLINE).await,
        Transport::Tcp => ask_tcp(server, query).await,
    }
}

/// Sends a datagram without waiting, from a port that nobody gets afterwards, whom a late reply would reach.
pub(crate) fn send(server: SocketAddr, datagram: &[u8]) {
    static SOCKET: LazyLock<UdpSocket> = LazyLock::new(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let _ = SOCKET.send_to(datagram, server);
}

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
