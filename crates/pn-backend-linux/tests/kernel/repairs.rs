//! What others break is repaired (X9): by the next apply, and by an agent that nobody tells, within its comparison interval.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use crate::breakages::Cuts::{self, Both, Local, Remote};
use crate::breakages::Where::{self, Container, Network, Transport};
use crate::breakages::{self, breakages, difference};
use crate::hosts;

use std::fs::File;
use std::future::pending;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hosts::{Host, Region, is_root, network};
use pn_core::backend::{Observed, OverlayBackend as _};
use pn_core::*;
use pn_overlay::{Agent, AgentHandle, AgentOptions, Leave};

/// The network whose parts are broken, of both families.
const BROKEN: u128 = 3;

/// A host with two containers, and another with one.
struct Scene {
    region: Region,
    containers: [ContainerId; 3],
}

impl Scene {
    async fn start() -> Self {
        let mut region = Region::start(2).await;
        region.add_network(BROKEN, |request| request.families = Families::DualStack);
        let containers = [region.add(BROKEN, 1).await, region.add(BROKEN, 2).await, region.add(BROKEN, 1).await];
        region.apply().await;
        Self { region, containers }
    }

    fn host(&self) -> &Host {
        &self.region.hosts[0]
    }

    fn plan(&self) -> NodePlan {
        self.region.state.node_plan(self.host().id)
    }

    /// Runs a command line somewhere.
    fn sh(&self, place: Where, line: &str) -> String {
        let vni = self.region.state.plan().networks[&network(BROKEN)].vni;
        let line = line.replace("$VNI", &vni.to_string());
        match place {
            Network => self.host().sh_in(&network(BROKEN).to_string(), &line),
            Transport => self.host().sh_in("transport", &line),
            Container => self.region.netns(self.containers[0]).sh(&line),
        }
    }

    /// Says what there is.
    fn look(&self) -> String {
        let is_there = |place| place != Transport || self.host().has_transport();
        breakages::look(|place, line| if is_there(place) { self.sh(place, line) } else { String::new() })
    }

    fn reaches(&self, to: usize) -> bool {
        let [from, to] = [0, to].map(|n| self.containers[n]);
        let address = self.region.address(to);
        let by_ipv6 = Ipv6Prefix::of_network(network(BROKEN)).address(address);
        self.region.netns(from).works(&format!("ping -c 1 -W 10 {address} && ping -c 1 -W 10 {by_ipv6}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn x9_what_others_break_is_repaired() {
    if !is_root() {
        return;
    }
    let scene = Scene::start().await;
    assert!(scene.reaches(1) && scene.reaches(2));
    let (backend, plan) = (scene.host().linux(), scene.plan());
    for (place, line, _) in breakages(scene.host().has_transport()) {
        scene.sh(place, line);
        let observed = backend.observe().await.unwrap();
        assert_ne!(observed, Observed::from(&plan), "{place:?}: {line}: nobody would notice");
        let report = backend.apply(&plan).await;
        let failures: Vec<String> = report.failures().map(hosts::explain).collect();
        assert!(failures.is_empty() && !report.is_unchanged(), "{place:?}: {line}: {failures:?}");
        assert_eq!(backend.observe().await.unwrap(), Observed::from(&plan), "{place:?}: {line}");
        let again = backend.apply(&plan).await;
        assert!(again.is_unchanged(), "{place:?}: {line}: {:?}", again.outcomes);
        assert!(scene.reaches(1), "{place:?}: {line}: no traffic to the other host");
        assert!(scene.reaches(2), "{place:?}: {line}: no traffic on this host");
    }
    scene.region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_family_is_somebody_elses() {
    if !is_root() {
        return;
    }
    let scene = Scene::start().await;
    let (backend, plan) = (scene.host().linux(), scene.plan());
    let rules = "add chain $T c; add rule $T c counter accept";
    for (place, table) in
        [(Network, "ip private_network"), (Transport, "bridge private_network"), (Transport, "ip6 private_network")]
    {
        if place == Transport && !scene.host().has_transport() {
            continue;
        }
        scene.sh(place, &format!("nft \"add table {table}; {}\"", rules.replace("$T", table)));
        let report = backend.apply(&plan).await;
        assert!(report.is_unchanged(), "{table}: {:?}", report.outcomes);
        assert_eq!(backend.observe().await.unwrap(), Observed::from(&plan), "{table}");
        assert!(scene.sh(place, &format!("nft list table {table}")).contains("counter"), "{table} has gone");
    }
    assert!(scene.reaches(1) && scene.reaches(2));
    scene.region.tear_down().await;
}

/// How long after one comparison the agent of these tests makes the next.
const INTERVAL: Duration = Duration::from_secs(3);

/// What a repair may take besides, reading the kernel, `nft`, a handshake, all of it on a busy machine: less than an interval, so
/// that it was the first comparison that found what was broken.
const ALLOWANCE: Duration = Duration::from_millis(2900);

/// The kernel takes a namespace down in its own time, and its VNI is free only then.
const NAMESPACE_ALLOWANCE: Duration = Duration::from_secs(20);

/// How many agents share the work, since they wait most of the time.
const AGENTS: usize = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn x9_an_agent_repairs_what_is_broken_within_its_interval() {
    if !is_root() {
        return;
    }
    let mut running = tokio::task::JoinSet::new();
    for first in 0..AGENTS {
        running.spawn(agent_repairs(first));
    }
    let (took, line) = running.join_all().await.into_iter().max().unwrap();
    println!("an interval of {INTERVAL:?}; the longest repair took {took:?}: {line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn x9_an_agent_makes_namespaces_anew_that_are_not_kept_any_more() {
    if !is_root() {
        return;
    }
    let watched = Watched::start(Scene::start().await).await;
    let kept = watched.scene.host().directory.join(watched.scene.host().id.to_string());
    let transport = watched.scene.host().has_transport().then(|| "transport".to_owned());
    for place in [network(BROKEN).to_string()].into_iter().chain(transport) {
        let line = format!("umount {}", kept.join(place).display());
        watched.is_repaired(&line, Remote, NAMESPACE_ALLOWANCE, || drop(hosts::sh(&line))).await;
    }
    watched.end().await;
}

/// Breaks one thing after the other, of those from the first every few, and waits for the agent; returns which took it longest.
async fn agent_repairs(first: usize) -> (Duration, &'static str) {
    let watched = Watched::start(Scene::start().await).await;
    let mut longest = (Duration::ZERO, "");
    let breakages = breakages(watched.scene.host().has_transport());
    for (place, line, cuts) in breakages.into_iter().skip(first).step_by(AGENTS) {
        let took = watched.is_repaired(line, cuts, ALLOWANCE, || drop(watched.scene.sh(place, line))).await;
        longest = longest.max((took, line));
    }
    watched.end().await;
    longest
}

/// A source that has one plan.
#[derive(Debug)]
struct One(Option<NodePlan>);

#[async_trait]
impl PlanSource for One {
    async fn next(&mut self) -> Followed {
        match self.0.take() {
            Some(plan) => Followed::Plan(plan),
            None => pending().await,
        }
    }
}

/// A scene whose first host has an agent, and packets under way all the time.
struct Watched {
    scene: Scene,
    agent: AgentHandle,
    running: tokio::task::JoinHandle<pn_overlay::AgentStatus>,
    /// To the other host, and on this one.
    pings: [Pings; 2],
    whole: String,
}

impl Watched {
    async fn start(scene: Scene) -> Self {
        let mut options = AgentOptions::new(1);
        options.compare_every = INTERVAL;
        let (overlay, names) = (Arc::new(scene.host().linux().clone()), scene.host().names.clone());
        let (agent, handle) = Agent::new(scene.host().id, overlay, vec![names], options);
        let running = tokio::spawn(agent.run(One(Some(scene.plan()))));
        let mut status = handle.subscribe();
        status.wait_for(|status| status.announced == Some(scene.plan().generation)).await.unwrap();
        assert!(scene.reaches(1) && scene.reaches(2));
        let pings = [1, 2].map(|to| Pings::start(&scene, to));
        let whole = scene.look();
        Self { scene, agent: handle, running, pings, whole }
    }

    /// Breaks something, and waits until everything is as it was and packets come through; returns how long that took.
    async fn is_repaired(&self, line: &str, cuts: Cuts, allowance: Duration, break_it: impl Fn()) -> Duration {
        let is_cut = [matches!(cuts, Remote | Both), matches!(cuts, Local | Both)];
        // Where it is repaired before the next packet, nobody has seen that it was broken.
        for _ in 0..5 {
            let repairs = self.agent.status().repairs;
            let before = self.pings.each_ref().map(Pings::at);
            let broken = Instant::now();
            break_it();
            let mut status = self.agent.subscribe();
            let repaired = status.wait_for(|status| status.repairs > repairs && !status.is_pending);
            let deadline = INTERVAL + allowance;
            let told = tokio::time::timeout(deadline, repaired).await;
            assert!(told.is_ok(), "{line}: {:?}", self.agent.status());
            drop(told);
            let repaired_at = self.pings.each_ref().map(Pings::at);
            loop {
                let (look, took) = (self.scene.look(), broken.elapsed());
                let answered =
                    self.pings.iter().zip(repaired_at).all(|(pings, at)| pings.since(at).contains("bytes from"));
                if look == self.whole && answered {
                    break;
                }
                let differs = difference(&self.whole, &look);
                assert!(
                    took < deadline,
                    "{line}: {took:?}: answered: {answered}; {differs}; {:?}",
                    self.agent.status()
                );
            }
            let took = broken.elapsed();
            assert!(self.agent.status().failures.is_empty(), "{line}: {:?}", self.agent.status());
            let seen = self.pings.iter().zip(before).zip(is_cut);
            if seen.into_iter().all(|((pings, at), is_cut)| !is_cut || lost(&pings.since(at))) {
                return took;
            }
        }
        panic!("{line}: no packet was lost");
    }

    async fn end(self) {
        self.agent.shutdown(Leave::Running);
        self.running.await.unwrap();
        self.scene.region.tear_down().await;
    }
}

/// Packets from the first container to another, one every 20 ms.
struct Pings {
    file: String,
    _ping: hosts::netns::Running,
}

impl Pings {
    fn start(scene: &Scene, to: usize) -> Self {
        let netns = scene.region.netns(scene.containers[0]);
        let file = format!("/tmp/{}-{to}.pings", netns.0);
        let to = scene.region.address(scene.containers[to]);
        // `ip netns exec` would keep copies of the mounts that namespaces are kept by.
        let (path, said) = (netns.path(), File::create(&file).unwrap());
        let mut ping = Command::new("nsenter");
        ping.arg(format!("--net={}", path.display())).args(["ping", "-n", "-O", "-i", "0.02", &to.to_string()]);
        ping.stderr(said.try_clone().unwrap()).stdout(said);
        let pings = Self { file, _ping: hosts::netns::Running(ping.spawn().unwrap()) };
        hosts::eventually("a ping", || {
            std::fs::read_to_string(&pings.file).is_ok_and(|said| said.contains("bytes from"))
        });
        pings
    }

    /// Returns where its report ends now.
    fn at(&self) -> u64 {
        std::fs::metadata(&self.file).unwrap().len()
    }

    /// Returns what was reported since.
    fn since(&self, at: u64) -> String {
        let mut file = File::open(&self.file).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        let mut said = String::new();
        file.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.file));
    }
}

/// Returns whether some packets were not answered.
fn lost(said: &str) -> bool {
    said.lines().any(|line| !line.is_empty() && !line.contains("bytes from") && line.len() > 10)
}
