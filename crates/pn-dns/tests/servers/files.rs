//! Files as programs of others read them.

use std::fs;
use std::path::Path;

use pn_core::{DnsBackend, NetworkDomain};
use pn_dns::{HostsFile, ZoneFile};

use crate::model::{APP, Model, NETWORK};
use crate::support::{Kind, ServedZone, Server, TempDir, command, installed, run};

fn model() -> Model {
    let mut model = Model::new("web:50 My-App-Backend:3 idle:0");
    for index in 1..=50 {
        model.run("web", index);
    }
    model.run("my-app-backend", 2);
    model
}

#[tokio::test]
async fn zone_files_pass_the_checkers() {
    if !installed(&["named-checkzone", "kzonecheck", "nsd-checkzone"]) {
        return;
    }
    let (dir, model) = (TempDir::new(), model());
    let files = ZoneFile::new(&dir.0);
    files.publish(&model.zones()).await.into_result().unwrap();
    let (zone, path) = (NetworkDomain(NETWORK).to_string(), files.path(NETWORK));
    let path = path.to_str().unwrap();
    let text = run("named-checkzone", &["-i", "full", "-k", "ignore", "-n", "fail", "-S", "fail", &zone, path]);
    assert!(text.contains(&format!("loaded serial {}", model.zones().serial())), "{text}");
    assert!(!text.contains("warning"), "{text}");
    run("kzonecheck", &["-o", &zone, path]);
    run("nsd-checkzone", &[&zone, path]);
}

#[tokio::test]
async fn nsd_and_knot_serve_what_a_zone_file_says() {
    if !installed(&["nsd", "knotd", "dig", "kdig"]) {
        return;
    }
    let (dir, model) = (TempDir::new(), model());
    let files = ZoneFile::new(dir.0.join("zones"));
    files.publish(&model.zones()).await.into_result().unwrap();
    for (kind, dig) in [(Kind::Nsd, "dig"), (Kind::Knot, "kdig")] {
        let server = Server::start(kind, &dir, &[ServedZone::of(NETWORK, files.path(NETWORK))]).await;
        let port = server.address.port().to_string();
        let ask = |name: &str, record_type: &str| {
            let name = format!("{name}{}", NetworkDomain(NETWORK));
            let mut lines: Vec<String> = run(dig, &["@127.0.0.1", "-p", &port, "+short", &name, record_type])
                .lines()
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        let mut all: Vec<String> = (1..=50).map(|n| format!("10.240.0.{n}")).collect();
        all.sort();
        assert_eq!(ask(&format!("{APP}."), "A"), all, "{kind:?}");
        assert_eq!(ask(&format!("WEB.{APP}."), "A"), all, "{kind:?}");
        assert_eq!(ask(&format!("7.web.{APP}."), "A"), ["10.240.0.7"], "{kind:?}");
        assert_eq!(ask(&format!("2.my-app-backend.{APP}."), "A"), ["10.240.0.51"], "{kind:?}");
        let soa = format!("localhost. nobody.invalid. {} 3600 1200 604800 1", model.zones().serial());
        assert_eq!(ask("", "SOA"), [soa], "{kind:?}");
        assert_eq!(ask("", "NS"), ["localhost."], "{kind:?}");
    }
}

/// What `getent` says of a name where a hosts file stands in the place of `/etc/hosts`, in a mount namespace of its own.
fn getent(hosts: &Path, arguments: &str) -> Result<String, String> {
    let script = format!("mount --bind {} /etc/hosts && exec getent {arguments}", hosts.display());
    let output = command("unshare").args(["--map-root-user", "--mount", "sh", "-c", &script]).output().unwrap();
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[tokio::test]
async fn the_c_library_reads_hosts_files() {
    if !installed(&["unshare", "getent", "mount"]) {
        return;
    }
    let (dir, model) = (TempDir::new(), model());
    let files = HostsFile::new(&dir.0);
    files.publish(&model.zones()).await.into_result().unwrap();
    let hosts = files.path(NETWORK);
    let domain = NetworkDomain(NETWORK);
    match getent(&hosts, "hosts nothing.example") {
        Err(error) if !error.is_empty() => {
            assert_ne!(std::env::var("PN_REQUIRE_ROOT").as_deref(), Ok("1"), "no mount namespace: {error}");
            println!("ignored: no mount namespace: {error}");
            return;
        }
        _ => {}
    }
    let ahosts = |name: &str| {
        let text = getent(&hosts, &format!("ahostsv4 {name}.{domain}")).unwrap_or_default();
        let addresses = text.lines().filter(|line| line.contains("STREAM")).filter_map(|line| line.split(' ').next());
        let mut addresses: Vec<String> = addresses.map(str::to_owned).collect();
        addresses.sort();
        addresses
    };
    let mut all: Vec<String> = (1..=50).map(|n| format!("10.240.0.{n}")).collect();
    all.sort();
    assert_eq!(ahosts(&APP.to_string()), all);
    assert_eq!(ahosts(&format!("web.{APP}")), all);
    assert_eq!(ahosts(&format!("7.WEB.{APP}")), ["10.240.0.7"]);
    assert_eq!(ahosts(&format!("my-app-backend.{APP}")), ["10.240.0.51"]);
    // An address is its container's name.
    let reverse = getent(&hosts, "hosts 10.240.0.51").unwrap().to_ascii_lowercase();
    assert!(reverse.contains(&format!(" 2.my-app-backend.{APP}.{domain}")), "{reverse}");
    assert!(fs::read_to_string(&hosts).unwrap().lines().count() == 52, "one line for each address, and the first");
}
