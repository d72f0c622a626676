//! Agents that are killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pn_store::{Clock as _, SystemClock};

use crate::churn::Churn;
use crate::machines::{PATIENCE, alone, is_root};
use crate::platform::{Pair, Platform};
use crate::probe;

/// Ten times at random moments, while containers come and go on every node. `PN_MEASURE=1` says that the machine is quiet, makes
/// a minute of it and believes no excuses.
#[test]
fn an_agent_that_is_killed_comes_back_and_others_do_not_notice() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let is_quiet = std::env::var_os("PN_MEASURE").is_some();
    let mut platform = Platform::with_etcd(3);
    let Pair { waf, stream, .. } = platform.pair();
    let (third, _) = platform.container("my-app", "my-app-backend", 3);
    let _server = third.serve(3000, "three", &platform.fleet.dir);
    let suffix = platform.suffix("my-app");
    let names = [1, 2].map(|n| format!("{n}.my-app-backend.{suffix}"));
    platform.run(&["scale", "my-app-backend:5", "--app", "my-app"]);
    let churns = [(1, 3), (2, 4), (3, 5)].map(|(node, index)| Churn::new(&mut platform, node, index));

    let stop = AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        let busy: Vec<_> = churns.iter().map(|churn| scope.spawn(|| churn.until(&stop))).collect();
        // Whatever happens here, they are to end.
        let killed = scope.spawn(|| {
            let most = if is_quiet { 9_000 } else { 1_000 };
            let times: Vec<Duration> = (0..10)
                .map(|_| {
                    std::thread::sleep(Duration::from_millis(200 + SystemClock.random() % most));
                    platform.kill_agent(2);
                    platform.start_agent(2, &[]);
                    let begun = Instant::now();
                    // It is reached by its name, and answers others' names.
                    let is_reached = || waf.inside(|| probe::fetch(&names[1], 3000));
                    let answers = || third.inside(|| probe::resolve(&names[0]));
                    let mut last = String::new();
                    while begun.elapsed() < PATIENCE {
                        match is_reached().and_then(|page| answers().map(|addresses| (page, addresses.len()))) {
                            Ok((page, 1)) if page == "three" => return begun.elapsed(),
                            other => last = format!("{other:?}"),
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    panic!("the killed node is not back: {last}");
                })
                .collect();
            times
        });
        let times = killed.join();
        stop.store(true, Ordering::Relaxed);
        let counts: Vec<u32> = busy.into_iter().map(|churn| churn.join().unwrap()).collect();
        println!("containers that came and went meanwhile, by node: {counts:?}");
        assert!(counts.iter().all(|count| *count > 3), "that was not busy: {counts:?}");
        times.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    println!("back after {times:?}");
    let mut sorted = times;
    sorted.sort();
    let limit = if is_quiet { Duration::from_secs(2) } else { Duration::from_secs(4) };
    assert!(sorted[9] < limit, "{sorted:?}");
    assert!(sorted[5] < Duration::from_secs(2), "{sorted:?}");
    stream.assert_intact();
}
