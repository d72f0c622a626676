//! The firewall use case cleans up after itself: on Ctrl-C at once, whenever that is, after a crash when it is started next.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::time::Instant;

use crate::machines::{Fleet, Machine, PATIENCE, Running, alone, fail, is_root, succeed, wait_for};

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

/// Finds the example beside the tests, as `cargo test` builds all examples.
fn program() -> PathBuf {
    let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("waf");
    assert!(program.exists(), "{} is not built: cargo build -p pn-fleet --example waf", program.display());
    program
}

/// Makes a machine, and says what there is before anything runs on it.
fn machine(fleet: &mut Fleet) -> (Machine, Left) {
    let machine = fleet.machine("waf", 1);
    let before = wait_for("addresses that nobody else has", || match left(&machine) {
        left if left.machine.iter().any(|said| said.contains("tentative")) => Err("not yet".to_owned()),
        left => Ok(left),
    });
    assert_eq!(before.named, BTreeSet::new(), "something is left of another run");
    (machine, before)
}

/// Presses Ctrl-C, and waits until it has ended.
fn interrupt(mut waf: Running) {
    let begun = Instant::now();
    succeed(Command::new("kill").args(["-s", "INT", &waf.0.id().to_string()]));
    let status = wait_for("it ends", || waf.0.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
    assert!(status.success() && begun.elapsed() < PATIENCE, "{status}");
}

#[test]
fn the_firewall_use_case_cleans_up_after_ctrl_c_and_after_a_crash() {
    if !is_root() {
        return;
    }
    // What it makes has fixed names.
    let _alone = alone();
    let (program, mut fleet) = (program(), Fleet::new());
    let (machine, before) = machine(&mut fleet);

    let (crashed, _) = start(&machine, &program);
    crashed.kill();
    let lying_about = left(&machine).named;
    for what in ["pn-waf-host1", "/run/pn-waf/", "nginx"] {
        assert!(lying_about.iter().any(|line| line.contains(what)), "{what} is gone with the crash: {lying_about:?}");
    }

    let (waf, _stderr) = start(&machine, &program);
    // A second one would take the first one's things away.
    let refused = fail(&mut machine.command(&program), 1);
    assert!(refused.contains("another one runs here: end it first"), "{refused}");
    let page =
        succeed(Command::new("ip").args(["netns", "exec", "pn-waf-client", "curl", "-sS", "http://198.51.100.1/"]));
    assert!(page.starts_with("hello from backend"), "{page}");
    interrupt(waf);
    assert_eq!(left(&machine), before, "something is left");
}

#[test]
fn the_firewall_use_case_cleans_up_whenever_it_is_interrupted() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let (program, mut fleet) = (program(), Fleet::new());
    let (machine, before) = machine(&mut fleet);
    // In the order in which they come: the first host, what backends are asked for, the first network of one, and programs.
    for moment in ["pn-waf-host1", "/ct-", "pn-waf-intruder3", "1/pn-", "pn-waf-client", "dumpcap", "nginx"] {
        let mut waf = machine.command(&program);
        let waf = Running::start(waf.arg("--serve").stdout(Stdio::null()).stderr(Stdio::null()));
        let looks = "ip netns list; cat /proc/self/mountinfo; ps -eo args";
        wait_for(moment, || {
            let there = succeed(Command::new("sh").args(["-c", looks]));
            let is_there = |line: &str| line.contains("pn-waf") && line.contains(moment);
            if there.lines().any(is_there) { Ok(()) } else { Err("not yet".to_owned()) }
        });
        interrupt(waf);
        assert_eq!(left(&machine), before, "something is left of what was interrupted at {moment}");
    }

    // What is being made then is not made afterwards: here by an `ip` that takes its time.
    let [slow, begun, ended] = ["slow", "begun", "ended"].map(|name| fleet.dir.join(name));
    std::fs::create_dir(&slow).unwrap();
    let ip = succeed(Command::new("sh").args(["-c", "command -v ip"]));
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = 'netns add pn-waf-my-app1' ] || exec {ip} \"$@\"\n\
         touch {}; sleep 1; {ip} \"$@\"; status=$?; touch {}; exit $status\n",
        begun.display(),
        ended.display(),
        ip = ip.trim(),
    );
    std::fs::write(slow.join("ip"), script).unwrap();
    std::fs::set_permissions(slow.join("ip"), Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", slow.display(), std::env::var("PATH").unwrap());
    let mut waf = machine.command(&program);
    let waf = Running::start(waf.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null()));
    let exists = |path: &Path| if path.exists() { Ok(()) } else { Err("not yet".to_owned()) };
    wait_for("a namespace is asked for", || exists(&begun));
    interrupt(waf);
    wait_for("it is made", || exists(&ended));
    assert_eq!(left(&machine), before, "something was made after all");
}
