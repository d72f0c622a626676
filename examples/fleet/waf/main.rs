//! A web application firewall for real: nginx with ModSecurity and the OWASP rules is public, the backend behind it is in a
//! private network and nowhere else. Hosts and containers are network namespaces; the data plane is the kernel's.

#![expect(clippy::print_stderr, reason = "it is a program, and this is what it says")]

mod counter;
mod namespaces;
mod nginx;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use clap::Parser;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_core::*;
use pn_dns::Names;
use pn_examples::{Check, Report, answers, chain};
use rustix::fs::FlockOperation;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::counter::Counter;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Builds the use case on this machine and checks what it promises. It needs root, or a user namespace with a /run of its own.
#[derive(Debug, Parser)]
struct Options {
    /// How many hosts to make: two at least, so that there is a wire to look at.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=20))]
    nodes: u8,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Keep running after the checks, until Ctrl-C.
    #[arg(long)]
    serve: bool,
}

/// A host with its data plane and its names.
struct Host {
    id: NodeId,
    netns: String,
    backend: LinuxBackend,
    names: Arc<Names>,
}

/// All data planes there are, for whoever has to wait for them.
type Backends = Mutex<Vec<LinuxBackend>>;

/// The hosts, and the state they follow.
struct Cluster {
    state: State,
    hosts: Vec<Host>,
    underlay: String,
}

/// What containers have their addresses of, in every network.
pub(crate) const NETWORK: &str = "10.240.0.0/22";

/// The machine on the underlay that is no node.
const STRANGER: &str = "192.0.2.99";

/// Where the public reaches nginx.
const PUBLIC_URL: &str = "http://198.51.100.1/";

/// How anybody can be root enough.
const IN_A_USER_NAMESPACE: &str = "unshare --user --map-root-user --net --mount \\\n    \
     sh -c 'mount -t tmpfs run /run && exec target/release/examples/waf'";

/// What takes longer does not come any more.
const SOON: Duration = Duration::from_secs(30);

impl Cluster {
    async fn start(nodes: u8, backends: &Backends) -> Result<Self, Error> {
        let underlay = namespaces::add_switch("underlay").await?;
        let mut cluster = Self { state: State::new(Region::default()), hosts: Vec::new(), underlay };
        for n in 1..=nodes {
            let netns = namespaces::add(&format!("host{n}")).await?;
            namespaces::plug(&netns, &cluster.underlay, &format!("192.0.2.{n}/24")).await?;
            // It passes on what anybody sends by way of it, as far as it can.
            namespaces::route(&netns).await?;
            let (id, names) = (NodeId::from_u128(n.into()), Arc::new(Names::new(n.into())));
            let backend = LinuxBackend::builder(id)
                .listen(format!("192.0.2.{n}:51820").parse()?)
                .resolver(names.clone())
                .directory(namespaces::DIRECTORY)
                .namespace(namespaces::path(&netns))
                .build()
                .await?;
            backends.lock().unwrap_or_else(PoisonError::into_inner).push(backend.clone());
            let tunnel = format!("100.64.0.{n}").parse()?;
            let label = format!("host-{n}").parse()?;
            cluster.change(Change::AddNode(Node::new(
                id,
                label,
                backend.local_addr(),
                tunnel,
                backend.public_key(),
            )))?;
            cluster.hosts.push(Host { id, netns, backend, names });
        }
        Ok(cluster)
    }

    fn change(&mut self, change: Change) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        self.state.apply(Timestamp::ZERO.after(now), change)?;
        Ok(())
    }

    fn add_project(&mut self, label: &str) -> Result<(ProjectId, NetworkId), Error> {
        let project = ProjectId::from_u128(Uuid::new_v4().as_u128());
        let network = NetworkId::from_u128(Uuid::new_v4().as_u128());
        let terms = Terms { accepted_by: "you".parse()?, version: "beta".parse()?, accepted_at: Timestamp::ZERO };
        self.change(Change::AddProject(Project::new(project, label.parse()?)))?;
        self.change(Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)))?;
        Ok((project, network))
    }

    /// Adds an app and starts its containers, each in a namespace of its own, on the next of these hosts.
    async fn add_app(
        &mut self,
        project: ProjectId,
        label: &str,
        formation: &str,
        hosts: &[usize],
    ) -> Result<(AppId, Vec<(Container, String)>), Error> {
        let app = AppId::from_u128(Uuid::new_v4().as_u128());
        let formation: Formation = formation.parse()?;
        self.change(Change::AddApp(App::new(app, project, label.parse()?)))?;
        self.change(Change::Scale { app, formation: formation.clone() })?;
        let slots = formation.types().flat_map(|(of, count)| (1..=count).map(move |n| Slot::new(app, *of, n)));
        let mut containers = Vec::new();
        for (slot, host) in slots.collect::<Vec<_>>().into_iter().zip(hosts.iter().cycle()) {
            let id = ContainerId::from_u128(Uuid::new_v4().as_u128());
            let host = (host - 1) % self.hosts.len();
            let netns = namespaces::add(&format!("{label}{}", containers.len() + 1)).await?;
            self.hosts[host].backend.attach(id, namespaces::path(&netns)).await?;
            self.change(Change::Start { container: id, slot: slot?, node: self.hosts[host].id })?;
            self.change(Change::Ready(id))?;
            let container = self.state.container(id).ok_or("the container is gone")?;
            containers.push((container, netns));
        }
        Ok((app, containers))
    }

    /// Makes every host what the state says, names last.
    async fn apply(&self) -> Result<(), Error> {
        for host in &self.hosts {
            host.backend.apply(&self.state.node_plan(host.id)).await.into_result()?;
        }
        for host in &self.hosts {
            host.names.publish(&self.state.node_plan(host.id).zones()).await.into_result()?;
        }
        Ok(())
    }

    /// Counts what the networks dropped because it claimed to be somebody else's.
    async fn forged(&self) -> Result<u64, Error> {
        let mut count = 0;
        for host in &self.hosts {
            count += host.backend.status().await?.drops.get("forged_source").copied().unwrap_or_default();
        }
        Ok(count)
    }

    /// Takes every host down.
    async fn tear_down(&self) -> Result<(), Error> {
        for host in &self.hosts {
            let empty = NodePlan::empty(host.id, self.state.generation().next());
            host.backend.apply(&empty).await.into_result()?;
        }
        Ok(())
    }
}

/// Has containers serve a page each, and returns the pages.
async fn serve(
    kind: &str,
    containers: &[(Container, String)],
    requests: &Arc<AtomicU64>,
) -> Result<Vec<String>, Error> {
    let mut pages = Vec::new();
    for (container, netns) in containers {
        let page = format!("hello from {kind} {}, {}", container.slot.index(), Uuid::new_v4());
        let listener = namespaces::listen(netns, "0.0.0.0:3000").await?;
        tokio::spawn(serve_page(listener, page.clone(), Arc::clone(requests)));
        pages.push(page);
    }
    Ok(pages)
}

/// Serves a page, and counts requests.
async fn serve_page(listener: tokio::net::TcpListener, page: String, requests: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (page, requests) = (page.clone(), Arc::clone(&requests));
        let service = service_fn(move |_: Request<hyper::body::Incoming>| {
            requests.fetch_add(1, Ordering::Relaxed);
            let response = Response::new(page.clone());
            async { Ok::<_, Infallible>(response) }
        });
        // A client that goes away ends its own connection only.
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// Fetches a page from a namespace: the status, 000 where there is no answer, and the page.
async fn fetch(netns: &str, url: &str) -> Result<(String, String), Error> {
    let curl = ["curl", "-s", "--max-time", "3", "-w", "\n%{http_code}", url];
    let output = namespaces::run(netns, &curl).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (page, status) = said.rsplit_once('\n').unwrap_or(("", "000"));
    Ok((status.to_owned(), page.to_owned()))
}

async fn run(options: &Options, backends: &Backends) -> Result<bool, Error> {
    let directory = PathBuf::from(namespaces::DIRECTORY).join("nginx");
    std::fs::create_dir_all(&directory).map_err(|error| {
        format!(
            "cannot make {}: {error}; run it as root, or in a user namespace:\n{IN_A_USER_NAMESPACE}",
            directory.display()
        )
    })?;
    let mut cluster = Cluster::start(options.nodes, backends).await?;
    let (shop, network) = cluster.add_project("shop")?;
    let (my_app, backends) = cluster.add_app(shop, "my-app", "web:0 my-app-backend:2", &[1, 2]).await?;
    let (_, firewall) = cluster.add_app(shop, "waf", "web:1", &[2]).await?;
    // The intruder comes third, so that in its network others have the addresses that the backends have in theirs.
    let (elsewhere, foreign) = cluster.add_project("elsewhere")?;
    let (_, intruders) = cluster.add_app(elsewhere, "intruder", "web:3", &[1, 2, 1]).await?;
    cluster.apply().await?;

    // nginx and its clients meet outside, where the backends are not.
    let outside = namespaces::add_switch("outside").await?;
    let client = namespaces::add("client").await?;
    namespaces::plug(&client, &outside, "198.51.100.2/24").await?;
    let (_, public) = firewall.first().ok_or("there is no firewall")?;
    namespaces::plug(public, &outside, "198.51.100.1/24").await?;
    namespaces::route(public).await?;
    let stranger = namespaces::add("stranger").await?;
    namespaces::plug(&stranger, &cluster.underlay, &format!("{STRANGER}/24")).await?;

    let requests = Arc::new(AtomicU64::new(0));
    let (pages, of_others) =
        (serve("backend", &backends, &requests).await?, serve("intruder", &intruders, &Arc::default()).await?);
    let capture = directory.join("underlay.pcap").display().to_string();
    let _capturing = namespaces::spawn(&cluster.underlay, &["dumpcap", "-q", "-i", "br0", "-w", &capture])?;
    let name = Name::of_type(network, my_app, "my-app-backend".parse()?).to_string();
    let _nginx = nginx::start(public, &directory, &name)?;
    let started = async {
        while fetch(&client, PUBLIC_URL).await?.0 != "200" {
            sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, Error>(())
    };
    timeout(SOON, started).await.map_err(|_| {
        let log = std::fs::read_to_string(directory.join("error.log")).unwrap_or_default();
        format!("nginx does not answer: {log}")
    })??;

    let scene = Scene {
        cluster: &cluster,
        client: &client,
        stranger: &stranger,
        outside: &outside,
        backends: &backends,
        intruders: &intruders,
        name: &name,
        pages: &pages,
        of_others: &of_others,
        requests: &requests,
        capture: &capture,
    };
    let checks = check(&scene).await?;
    let tunnel = match cluster.hosts.first().map(|host| host.backend.tunnel()) {
        Some(TunnelKind::Kernel) => "WireGuard in the kernel",
        Some(TunnelKind::UserSpaceBridged) => "WireGuard and VXLAN in this process",
        Some(TunnelKind::UserSpace) | None => "WireGuard in this process",
    };
    let report = Report {
        state: &cluster.state,
        networks: &[("shop", network), ("elsewhere", foreign)],
        checks: &checks,
        public_url: PUBLIC_URL,
        on: format!("{} hosts; encrypted by {tunnel}", cluster.hosts.len()),
    };
    let ok = report.print(options.json);
    if options.serve {
        eprintln!("serving until Ctrl-C; try: ip netns exec {client} curl {PUBLIC_URL}");
        std::future::pending::<()>().await;
    }
    cluster.tear_down().await?;
    Ok(ok)
}

/// What the checks look at.
struct Scene<'a> {
    cluster: &'a Cluster,
    /// A client outside, and a machine on the underlay that is no node.
    client: &'a str,
    stranger: &'a str,
    /// Where the client meets nginx.
    outside: &'a str,
    backends: &'a [(Container, String)],
    intruders: &'a [(Container, String)],
    /// The backends' common name, their pages, and how many requests they got.
    name: &'a str,
    pages: &'a [String],
    /// The pages of the intruder's network.
    of_others: &'a [String],
    requests: &'a AtomicU64,
    capture: &'a str,
}

async fn check(scene: &Scene<'_>) -> Result<Vec<Check>, Error> {
    let mut checks = Vec::new();
    let mut note = |name, ok, evidence| checks.push(Check { name, ok, evidence });
    let Scene { cluster, client, stranger, outside, intruders, name, pages, requests, .. } = scene;

    let mut seen = BTreeMap::<_, u32>::new();
    for _ in 0..20 {
        *seen.entry(fetch(client, PUBLIC_URL).await?).or_default() += 1;
    }
    let good = seen.keys().all(|(status, page)| status == "200" && pages.contains(page));
    note("plain request", good, answers(&seen));
    note("both backends", seen.len() == pages.len(), format!("their shares of 20 requests: {:?}", seen.values()));

    for (what, query) in [
        ("SQL injection", "?id=1%27%20OR%20%271%27=%271%27%20UNION%20SELECT%20password%20FROM%20users--%20"),
        ("cross-site scripting", "?q=%3Cscript%3Ealert(document.cookie)%3C/script%3E"),
    ] {
        let before = requests.load(Ordering::Relaxed);
        let (status, _) = fetch(client, &format!("{PUBLIC_URL}{query}")).await?;
        let reached = requests.load(Ordering::Relaxed) - before;
        note(what, status == "403" && reached == 0, format!("{status}, and {reached} reached a backend"));
    }
    // Before anybody sends to the backends in clear.
    let (ok, evidence) = look_at_the_wire(scene).await?;
    note("no cleartext on the wire", ok, evidence);

    let host = cluster.hosts.first().ok_or("there is no host")?;
    let hosts: Vec<String> = (1..=cluster.hosts.len()).map(|n| format!("192.0.2.{n}")).collect();
    let others = hosts.get(1..).unwrap_or_default();
    let (ok, evidence) = refuse(scene, &host.netns, others, &cluster.underlay).await?;
    note("from the host", ok, evidence);
    let (ok, evidence) = refuse(scene, stranger, &hosts, &cluster.underlay).await?;
    note("from the underlay", ok, evidence);
    let before = cluster.forged().await?;
    let (ok, evidence) = refuse(scene, client, &["198.51.100.1".to_owned()], outside).await?;
    let forged = cluster.forged().await? - before;
    note("from outside", ok && forged > 0, format!("{evidence}; {forged} dropped behind nginx as forged"));

    let intruder = intruders.last().ok_or("there is no intruder")?;
    let (ok, evidence) = ask_as_intruder(scene, intruder).await?;
    note("from another network", ok, evidence);
    let (resolver, dig) = ("@169.254.53.53", ["dig", "+tries=1", "+time=2"]);
    let denied = namespaces::run(&intruder.1, &[&dig[..], &[resolver, name]].concat()).await?;
    let denied = String::from_utf8_lossy(&denied.stdout).contains("NXDOMAIN");
    note("the name in another network", denied, format!("{name}: {}", if denied { "NXDOMAIN" } else { "known" }));
    // 4789, as the kernel lists its own sockets.
    let open = namespaces::run(&host.netns, &["cat", "/proc/net/udp", "/proc/net/udp6"]).await?;
    let open = String::from_utf8_lossy(&open.stdout).lines().filter(|line| line.contains(":12B5 ")).count();
    note("no VXLAN on the underlay", open == 0, format!("{open} sockets of VXLAN on the host"));
    Ok(checks)
}

/// Sends to the backends from somewhere that has routes to them by way of each gateway, and looks whether packets left, on the
/// switch they cross, and whether any arrived.
async fn refuse(scene: &Scene<'_>, netns: &str, gateways: &[String], switch: &str) -> Result<(bool, String), Error> {
    let (left, arrived) = (Counter::on_switch(switch).await?, scene.watch_backends().await?);
    let mut answers = Vec::new();
    for gateway in gateways {
        namespaces::sh(&format!("ip -n {netns} route replace {NETWORK} via {gateway}")).await?;
        for (container, _) in scene.backends {
            let before = left.read().await?;
            let (status, _) = fetch(netns, &format!("http://{}:3000/", container.address)).await?;
            answers.push(status == "000" && left.read().await? > before);
        }
    }
    namespaces::sh(&format!("ip -n {netns} route del {NETWORK}")).await?;
    let (left, arrived) = (left.read().await?, total(&arrived).await?);
    let ways = if gateways.len() == 1 { "way" } else { "ways" };
    let evidence = format!(
        "{} backends addressed in {} {ways}: {left} packets left, {arrived} arrived",
        scene.backends.len(),
        gateways.len()
    );
    Ok((arrived == 0 && answers.iter().all(|refused| *refused), evidence))
}

/// Asks the backends' addresses in another network: whoever has them there is to answer.
async fn ask_as_intruder(scene: &Scene<'_>, intruder: &(Container, String)) -> Result<(bool, String), Error> {
    let (left, arrived) = (Counter::of_what_leaves(&intruder.1).await?, scene.watch_backends().await?);
    let (mut asked, mut by_others) = (0, 0);
    for (container, _) in scene.backends.iter().filter(|(container, _)| container.address != intruder.0.address) {
        let answer = fetch(&intruder.1, &format!("http://{}:3000/", container.address)).await?;
        asked += 1;
        by_others += usize::from(answer.0 == "200" && scene.of_others.contains(&answer.1));
    }
    let (left, arrived) = (left.read().await?, total(&arrived).await?);
    let evidence = format!(
        "{asked} backends addressed: {left} packets left, {arrived} arrived, {by_others} answers of its own network"
    );
    Ok((asked == scene.backends.len() && by_others == asked && left > 0 && arrived == 0, evidence))
}

impl Scene<'_> {
    /// Counts what comes to the backends from now on.
    async fn watch_backends(&self) -> Result<Vec<Counter>, Error> {
        let mut counters = Vec::new();
        for (_, netns) in self.backends {
            counters.push(Counter::of_what_arrives(netns).await?);
        }
        Ok(counters)
    }
}

async fn total(counters: &[Counter]) -> Result<u64, Error> {
    let mut total = 0;
    for counter in counters {
        total += counter.read().await?;
    }
    Ok(total)
}

/// Says what was captured between the hosts.
async fn look_at_the_wire(scene: &Scene<'_>) -> Result<(bool, String), Error> {
    let Scene { client, pages, capture, .. } = scene;
    // What was captured may be a moment behind, or have begun late: more is asked for until there is enough to look at.
    let fields = ["-T", "fields", "-e", "_ws.col.Protocol", "-e", "udp.payload"];
    // Whatever is not how neighbours find each other and say what they listen to: IPv6 as well.
    let filter = ["-Y", "not arp and not icmpv6 and not igmp"];
    let tshark = [&["tshark", "-r", capture][..], &filter, &fields].concat();
    let (mut lines, mut complaint) = (Vec::new(), String::new());
    timeout(SOON, async {
        while lines.len() < 50 {
            fetch(client, PUBLIC_URL).await?;
            let output = namespaces::run(client, &tshark).await?;
            complaint = String::from_utf8_lossy(&output.stderr).lines().take(3).collect::<Vec<_>>().join("; ");
            lines = String::from_utf8_lossy(&output.stdout).lines().map(ToOwned::to_owned).collect();
            sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, Error>(())
    })
    .await
    .map_err(|_| {
        format!("{capture} has {} packets after {SOON:?}, not the 50 to look at. {complaint}", lines.len())
    })??;
    let foreign = lines.iter().filter(|line| !line.starts_with("WireGuard")).count();
    let octets = std::fs::read(capture)?;
    let clear = pages.iter().filter(|page| octets.windows(page.len()).any(|window| window == page.as_bytes())).count();
    let evidence = format!("{} packets, {foreign} of them not WireGuard; {clear} pages in clear", lines.len());
    Ok((foreign == 0 && clear == 0, evidence))
}

/// Takes the place of the one that may run on this machine, or in this user namespace: what it makes has fixed names.
fn take_place() -> Result<File, Error> {
    let run = File::open("/run")?;
    rustix::fs::flock(&run, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        rustix::io::Errno::WOULDBLOCK => "another one runs here: end it first".to_owned(),
        error => format!("cannot lock /run: {error}"),
    })?;
    Ok(run)
}

/// Ends what makes something, and waits until it has ended.
async fn end(backends: &Backends) {
    namespaces::quiet().await;
    let backends = std::mem::take(&mut *backends.lock().unwrap_or_else(PoisonError::into_inner));
    for backend in backends {
        // It answers when it has done all that it was asked before; one that is closed does nothing any more.
        let _: Result<_, BackendError> = backend.attached().await;
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let _place = match take_place() {
        Ok(place) => place,
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            return ExitCode::FAILURE;
        }
    };
    let backends = Backends::default();
    let ran = async {
        // What a crash has left is in the way.
        namespaces::clean_up().await?;
        tokio::select! {
            result = run(&options, &backends) => result,
            stopped = tokio::signal::ctrl_c() => stopped.map(|()| true).map_err(Into::into),
        }
    };
    let ok = ran.await.unwrap_or_else(|error: Error| {
        eprintln!("error: {}", chain(&*error));
        false
    });
    end(&backends).await;
    let cleaned = namespaces::clean_up().await.inspect_err(|error| eprintln!("error: {error}")).is_ok();
    if ok && cleaned { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
