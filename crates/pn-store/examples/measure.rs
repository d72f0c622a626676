//! What starts cost and what a follower keeps, over any store: `measure URL starts COUNT`, `measure URL fill COUNT`, then
//! `measure URL follow`; `measure URL idle SECONDS` says what a store costs that nothing happens in.
#![expect(clippy::print_stdout, reason = "it is for people")]

use std::error::Error;
use std::time::{Duration, Instant};

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, Followed, NetworkId, NetworkRequest, Node, NodeId, PlanSource,
    Policy, Project, ProjectId, PublicKey, Region, Slot, Terms, Timestamp,
};
use pn_store::{Follower, Registry, StoreExt, connect};

type Fallible<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, what, rest @ ..] = &arguments[..] else { return Err("URL starts|fill|follow|idle [COUNT]".into()) };
    let count: u32 = rest.first().map_or(Ok(1000), |count| count.parse())?;
    let mut policy = Policy::default();
    policy.subnet = "10.0.0.0/16".parse()?;
    let registry = Registry::new(connect(url).await?, Region::with_policy(policy));
    match what.as_str() {
        "starts" => starts(&registry, count).await,
        "fill" => fill(&registry, count).await,
        "follow" => follow(&registry).await,
        "idle" => {
            let before = processor_time()?;
            tokio::time::sleep(Duration::from_secs(count.into())).await;
            let used = processor_time()? - before;
            println!("{used} ms of processor time in {count} s: {:.2} %", used as f64 / f64::from(count) / 10.0);
            Ok(())
        }
        _ => Err("starts, fill, follow or idle".into()),
    }
}

fn node(n: u8) -> Fallible<Node> {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Ok(Node::new(NodeId::from_u128(n.into()), "node".parse()?, underlay, tunnel, PublicKey::new([n; 32])))
}

fn start(n: u32, on: u8) -> Fallible<Change> {
    let slot = Slot::new(AppId::from_u128(1), ContainerType::web(), n)?;
    Ok(Change::Start { container: ContainerId::from_u128(n.into()), slot, node: NodeId::from_u128(on.into()) })
}

async fn make(registry: &Registry, containers: u32) -> Fallible<()> {
    let (project, network, app) = (ProjectId::from_u128(1), NetworkId::from_u128(1), AppId::from_u128(1));
    let terms = Terms { accepted_by: "ada".parse()?, version: "1".parse()?, accepted_at: Timestamp::ZERO };
    for change in [
        Change::AddNode(node(1)?),
        Change::AddNode(node(2)?),
        Change::AddProject(Project::new(project, "p".parse()?)),
        Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)),
        Change::AddApp(App::new(app, project, "a".parse()?)),
        Change::Scale { app, formation: format!("web:{containers}").parse()? },
    ] {
        registry.apply(change).await?;
    }
    Ok(())
}

/// Starts containers one after the other in a network of at most 100.
async fn starts(registry: &Registry, count: u32) -> Fallible<()> {
    make(registry, count).await?;
    let (before, _) = registry.store().get_one(&"none".parse()?).await?;
    let mut taken = Vec::new();
    for n in 1..=count {
        let begun = Instant::now();
        registry.apply(start(n, 1)?).await?;
        taken.push(begun.elapsed());
        if n > 100 {
            registry.apply(Change::Fail(ContainerId::from_u128(u128::from(n) - 100))).await?;
        }
    }
    let (after, _) = registry.store().get_one(&"none".parse()?).await?;
    let changes = count + count.saturating_sub(100);
    taken.sort_unstable();
    let at = |part: usize| taken[(taken.len() - 1) * part / 1000];
    println!(
        "{count} starts: median {:?}, p99 {:?}, most {:?}; {:.2} transactions for each change",
        at(500),
        at(990),
        at(1000),
        (after.get() - before.get()) as f64 / f64::from(changes)
    );
    Ok(())
}

/// Starts containers of one network on node 2, and one on node 1.
async fn fill(registry: &Registry, count: u32) -> Fallible<()> {
    make(registry, count + 1).await?;
    let begun = Instant::now();
    registry.apply(start(1, 1)?).await?;
    for n in 2..=count + 1 {
        registry.apply(start(n, 2)?).await?;
    }
    println!("{count} starts in one network took {:?}", begun.elapsed());
    Ok(())
}

async fn follow(registry: &Registry) -> Fallible<()> {
    let before = resident()?;
    let begun = Instant::now();
    let mut follower = Follower::new(registry.join(node(1)?, Duration::from_secs(10)).await?);
    while let Followed::Plan(plan) = follower.next().await {
        let endpoints: usize = plan.networks.values().map(|network| network.endpoints.len()).sum();
        if endpoints > 0 {
            println!("a plan of {endpoints} endpoints after {:?}: {before} kB → {} kB", begun.elapsed(), resident()?);
            return Ok(());
        }
    }
    Err("there is no plan".into())
}

/// Returns this process's resident memory in kB.
fn resident() -> Fallible<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Returns the processor time of this process in milliseconds, at 100 ticks a second.
fn processor_time() -> Fallible<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().ok_or("no stat")?.split_whitespace().collect();
    Ok(10 * (fields[11].parse::<u64>()? + fields[12].parse::<u64>()?))
}
