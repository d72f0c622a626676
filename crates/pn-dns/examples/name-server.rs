//! Serves the names of one private network until its standard input ends: `name-server 127.0.0.1:5353`.
//!
//! It prints what every name leads to, a line each, so that any resolver can be held to it: the name and its IPv4 addresses.

#![expect(clippy::print_stdout, reason = "it is a program, and this is what it says")]

use std::error::Error;
use std::sync::Arc;

use pn_core::*;
use pn_dns::{DnsServer, Names, Secret};

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("say where to listen, for example 127.0.0.1:5353")?.parse()?;
    let (state, network) = shop()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let names = Arc::new(Names::new(fastrand::u64(..)));
        names.publish(&state.zones()).await.into_result()?;
        let builder = DnsServer::builder(network, names).nsid(b"example").cookie_secrets(&[Secret::new([1; 16])]);
        let server = builder.bind(address).await?;
        let zones = state.zones();
        for (name, addresses) in zones.zones.values().flat_map(|zone| zone.names()) {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            println!("{name} {}", addresses.join(" "));
        }
        println!("ready");
        tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop)).await?;
        for (count, times) in server.counts().iter().filter(|(_, times)| *times > 0) {
            println!("{count} {times}");
        }
        server.shutdown().await;
        Ok(())
    })
}

/// A network with IPv6: an app whose backend listens on port 3000, one with nothing public, and one with a crowd.
fn shop() -> Result<(State, NetworkId), Box<dyn Error>> {
    let now = Timestamp::ZERO;
    let mut state = State::new(Region::default());
    let (project, network, node) =
        (ProjectId::from_u128(1), "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse()?, NodeId::from_u128(1));
    let terms = Terms { accepted_by: "ada".parse()?, version: "beta-1".parse()?, accepted_at: now };
    let mut request = NetworkRequest::new(project, network, terms);
    request.families = Families::DualStack;
    state.apply(now, Change::AddProject(Project::new(project, "shop".parse()?)))?;
    state.apply(now, Change::EnablePrivateNetwork(request))?;
    let (underlay, tunnel) = ("192.0.2.10:51820".parse()?, "100.64.0.1".parse()?);
    state.apply(now, Change::AddNode(Node::new(node, "node-1".parse()?, underlay, tunnel, PublicKey::new([1; 32]))))?;
    let apps: [(&str, Formation); 3] = [
        ("ap-6f7d6a1e-3f0e-4b4e-9d4c-0d9a3c1b2e4f", "web:2 my-app-backend:3".parse()?),
        ("ap-1b8f1d0a-92a5-4a62-9a0c-4a6c5a2f7d11", "web:0 worker:1 idle:0".parse()?),
        ("ap-c0ffee00-0000-4000-8000-000000000003", "web:100".parse()?),
    ];
    let mut containers = 0;
    for (id, formation) in apps {
        let app = id.parse()?;
        let types: Vec<(ContainerType, u32)> = formation.types().map(|(of_type, count)| (*of_type, count)).collect();
        state.apply(now, Change::AddApp(App { formation, ..App::new(app, project, "app".parse()?) }))?;
        for (container_type, count) in types {
            for index in 1..=count {
                containers += 1;
                let container = ContainerId::from_u128(containers);
                let slot = Slot::new(app, container_type, index)?;
                state.apply(now, Change::Start { container, slot, node })?;
                state.apply(now, Change::Ready(container))?;
            }
        }
    }
    let (app, container_type) = ("ap-6f7d6a1e-3f0e-4b4e-9d4c-0d9a3c1b2e4f".parse()?, "my-app-backend".parse()?);
    state.apply(now, Change::DeclarePorts { app, container_type, ports: "3000/tcp".parse()? })?;
    Ok((state, network))
}
