//! The firewall use case cleans up after itself: on Ctrl-C at once, after a crash when it is started next.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};

use crate::machines::{Fleet, Machine, PATIENCE, Running, is_root, succeed, wait_for};

/// Everything it could leave: on its machine, and of what has its name.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    machine: Vec<String>,
    named: BTreeSet<String>,
}

fn left(machine: &Machine) -> Left {
    let looks = [
        "ip -o link",
        "ip -o address show permanent",
        "ip route show table all",
        "ip neigh show nud permanent",
        "nft list ruleset",
    ];
    let on_it = looks.map(|line| succeed(machine.command("sh").args(["-c", line])));
    let named = ["ip netns list", "cat /proc/self/mountinfo", "ls /run", "ps -eo args"].map(|line| {
        succeed(Command::new("sh").args(["-c", &format!("{line} | grep -e pn-waf | grep -v grep || true")]))
    });
    Left { machine: on_it.into(), named: named.iter().flat_map(|said| said.lines().map(str::to_owned)).collect() }
}

/// Starts it and waits until it serves. What it says is to be kept open.
fn start(machine: &Machine, program: &Path) -> (Running, BufReader<ChildStderr>) {
    let mut waf = machine.command(program);
    let mut waf = Running::start(waf.arg("--serve").stdout(Stdio::null()).stderr(Stdio::piped()));
    let (mut stderr, mut said) = (BufReader::new(waf.0.stderr.take().unwrap()), String::new());
    while stderr.read_line(&mut said).unwrap() > 0 {
        if said.contains("serving until Ctrl-C") {
            return (waf, stderr);
        }
    }
    panic!("it does not serve: {said}");
}

#[test]
fn the_firewall_use_case_cleans_up_after_ctrl_c_and_after_a_crash() {
    if !is_root() {
        return;
    }
    // Beside the tests, as `cargo test` builds all examples.
    let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("waf");
    assert!(program.exists(), "{} is not built: cargo build -p pn-fleet --example waf", program.display());
    let mut fleet = Fleet::new();
    let machine = fleet.machine("waf", 1);
    let before = wait_for("addresses that nobody else has", || match left(&machine) {
        left if left.machine.iter().any(|said| said.contains("tentative")) => Err("not yet".to_owned()),
        left => Ok(left),
    });
    assert_eq!(before.named, BTreeSet::new(), "something is left of another run");

    let (crashed, _) = start(&machine, &program);
    crashed.kill();
    let lying_about = left(&machine).named;
    for what in ["pn-waf-host1", "/run/pn-waf/", "nginx"] {
        assert!(lying_about.iter().any(|line| line.contains(what)), "{what} is gone with the crash: {lying_about:?}");
    }

    let (mut waf, _stderr) = start(&machine, &program);
    let page =
        succeed(Command::new("ip").args(["netns", "exec", "pn-waf-client", "curl", "-sS", "http://198.51.100.1/"]));
    assert!(page.starts_with("hello from backend"), "{page}");
    let begun = std::time::Instant::now();
    succeed(Command::new("kill").args(["-s", "INT", &waf.0.id().to_string()]));
    let status = wait_for("it ends", || waf.0.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
    assert!(status.success() && begun.elapsed() < PATIENCE, "{status}");
    assert_eq!(left(&machine), before, "something is left");
}
