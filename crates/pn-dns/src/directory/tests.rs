use std::sync::atomic::{AtomicU32, Ordering};

use pn_core::{Change, DnsBackend, Outcome, ProjectId};

use super::*;
use crate::ZoneFile;
use crate::fixture::{Model, app, network, shop};

/// A directory that goes with its owner.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dns-more-files-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Publishes what a model plans and checks what is reported: what was done, and to which network.
async fn check(files: &ZoneFile, model: &Model, expected: &[(Action, u128)]) {
    let report = files.publish(&model.zones()).await;
    let outcome = |outcome: &Outcome| (*outcome.result.as_ref().unwrap(), outcome.object.clone());
    let expected: Vec<_> = expected.iter().map(|(action, n)| (*action, format!("zone {}", network(*n)))).collect();
    assert_eq!(report.outcomes.iter().map(outcome).collect::<Vec<_>>(), expected);
}

fn print(files: &ZoneFile, n: u128) -> Print {
    fs::metadata(files.path(network(n))).unwrap().into()
}

fn text(files: &ZoneFile, n: u128) -> String {
    fs::read_to_string(files.path(network(n))).unwrap()
}

/// Returns the one failure of a publication: its kind, what it says, and what its source says.
async fn failure(files: &ZoneFile, set: &ZoneSet) -> (ErrorKind, String) {
    let report = files.publish(set).await;
    let failures: Vec<_> = report.failures().collect();
    assert_eq!(failures.len(), 1, "{report:?}");
    let source = std::error::Error::source(failures[0]).map_or_else(|| failures[0].to_string(), ToString::to_string);
    (failures[0].kind(), source)
}

#[tokio::test]
async fn a_file_is_written_when_its_zone_changed_and_only_then() {
    let dir = TempDir::new();
    let (files, mut model) = (ZoneFile::new(&dir.0), shop());
    check(&files, &model, &[(Action::Created, 1), (Action::Created, 2)]).await;
    let serial = |model: &Model| format!("nobody.invalid. {} 3600 1200 604800 1\n", model.zones().serial());
    assert!(text(&files, 1).contains(&serial(&model)) && text(&files, 2).contains(&serial(&model)));
    check(&files, &model, &[]).await;

    let (first, second) = (print(&files, 1), print(&files, 2));
    let stopped = model.run(3, "worker", 2);
    check(&files, &model, &[(Action::Updated, 1)]).await;
    assert_ne!(print(&files, 1), first);
    assert_eq!(print(&files, 2), second, "the other network's file is as it was");
    assert!(text(&files, 1).contains(&serial(&model)) && !text(&files, 2).contains(&serial(&model)));

    let gone = model.state.containers(network(2)).next().unwrap().id;
    model.apply(Change::Fail(gone));
    model.apply(Change::Stop(stopped));
    model.apply(Change::RemoveApp(app(2)));
    model.apply(Change::DisablePrivateNetwork(ProjectId::from_u128(2)));
    check(&files, &model, &[(Action::Updated, 1), (Action::Removed, 2)]).await;
    assert!(!files.path(network(2)).exists());
    let names: Vec<_> = fs::read_dir(&dir.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing is left over: {names:?}");
}

#[tokio::test]
async fn what_somebody_changed_is_written_again() {
    let dir = TempDir::new();
    let (files, model) = (ZoneFile::new(&dir.0), shop());
    check(&files, &model, &[(Action::Created, 1), (Action::Created, 2)]).await;
    let good = text(&files, 1);
    fs::write(files.path(network(1)), good.replace("10.240.0.1", "10.240.0.9")).unwrap();
    check(&files, &model, &[(Action::Updated, 1)]).await;
    assert_eq!(text(&files, 1), good);
    fs::remove_file(files.path(network(1))).unwrap();
    check(&files, &model, &[(Action::Created, 1)]).await;
    assert_eq!(text(&files, 1), good);
    check(&files, &model, &[]).await;
}

#[tokio::test]
async fn a_publisher_that_starts_again_goes_on_where_the_one_before_was() {
    let dir = TempDir::new();
    let mut model = shop();
    let older = model.zones();
    model.run(3, "worker", 2);
    let files = ZoneFile::new(&dir.0);
    check(&files, &model, &[(Action::Created, 1), (Action::Created, 2)]).await;
    let (first, second) = (print(&files, 1), print(&files, 2));
    drop(files);

    let files = ZoneFile::new(&dir.0);
    assert_eq!(failure(&files, &older).await.0, ErrorKind::Superseded);
    check(&files, &model, &[]).await;
    assert_eq!((print(&files, 1), print(&files, 2)), (first, second), "no file is written again");
    drop(files);

    // Changed while nobody was there to see it.
    let files = ZoneFile::new(&dir.0);
    let good = text(&files, 1);
    fs::write(files.path(network(1)), good.clone() + "evil A 10.240.0.9\n").unwrap();
    check(&files, &model, &[(Action::Updated, 1)]).await;
    assert_eq!(text(&files, 1), good);
}

#[tokio::test]
async fn what_is_not_ours_stays() {
    let dir = TempDir::new();
    fs::create_dir_all(&dir.0).unwrap();
    let (files, model) = (ZoneFile::new(&dir.0), shop());
    let others = [files.path(network(1)), files.path(network(9)), dir.0.join("example.zone"), dir.0.join("README")];
    for path in &others {
        fs::write(path, b"\xff precious").unwrap();
    }
    let (kind, source) = failure(&files, &model.zones()).await;
    assert_eq!(kind, ErrorKind::Conflict);
    assert!(source.contains(others[0].to_str().unwrap()) && source.ends_with("move it away"), "{source}");
    assert!(text(&files, 2).contains("SOA"), "the other network is published");
    assert!(others.iter().all(|path| fs::read(path).unwrap() == b"\xff precious"));
    fs::remove_file(&others[0]).unwrap();
    check(&files, &model, &[(Action::Created, 1)]).await;
}

#[tokio::test]
async fn two_processes_do_not_share_a_directory() {
    let dir = TempDir::new();
    let (first, second, model) = (ZoneFile::new(&dir.0), ZoneFile::new(&dir.0), shop());
    check(&first, &model, &[(Action::Created, 1), (Action::Created, 2)]).await;
    let (kind, source) = failure(&second, &model.zones()).await;
    assert_eq!(kind, ErrorKind::Conflict);
    assert!(source.ends_with("give each its own directory"), "{source}");
    drop(first);
    check(&second, &model, &[]).await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_an_error_and_the_last_good_zone_stays() {
    let dir = TempDir::new();
    fs::create_dir_all(&dir.0).unwrap();
    let mut model = shop();
    let blocked = dir.0.join("file");
    fs::write(&blocked, "").unwrap();
    for path in [blocked.clone(), blocked.join("below"), PathBuf::from("/proc/dns-more")] {
        let (kind, source) = failure(&ZoneFile::new(&path), &model.zones()).await;
        assert!(matches!(kind, ErrorKind::Io | ErrorKind::PermissionDenied), "{kind:?}");
        assert!(source.contains(path.to_str().unwrap()) && source.contains("may write"), "{source}");
    }

    let files = ZoneFile::new(dir.0.join("zones"));
    check(&files, &model, &[(Action::Created, 1), (Action::Created, 2)]).await;
    let good = text(&files, 1);
    // A disk that is full looks like this to root, too.
    fs::create_dir(dir.0.join("zones").join(TEMPORARY)).unwrap();
    model.run(3, "worker", 2);
    assert_eq!(failure(&files, &model.zones()).await.0, ErrorKind::Io);
    assert_eq!(text(&files, 1), good);
    fs::remove_dir(dir.0.join("zones").join(TEMPORARY)).unwrap();
    check(&files, &model, &[(Action::Updated, 1)]).await;
}

#[test]
fn the_first_line_reads_back() {
    for written in [(Generation::new(7), Stage::Meanwhile), (Generation::new(u64::MAX), Stage::Settled)] {
        let line = first_line(';', written);
        assert_eq!(read_first_line(';', line.trim_end()), Some(written));
        assert_eq!(read_first_line('#', line.trim_end()), None);
        assert!(line.len() < FIRST_LINE as usize);
    }
    for line in ["", ";", "; written", "; written from the plan, changes are lost, generation x, settled"] {
        assert_eq!(read_first_line(';', line), None);
    }
}
