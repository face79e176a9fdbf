//! Migrating and watching: lines, JSON, a terminal, and what ends a watch.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout},
    time::Duration,
};

use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{
    fake::{Answer, Controller, Step},
    run::{Ended, command, ended, run},
};

fn migration(phase: &str) -> Value {
    json!({
        "id": "m1", "guest": "web-1", "source_host": "h1", "destination_host": "h2", "phase": phase,
        "created_at_ms": 1_000,
    })
}

fn event(sequence: u64, migration: Value, message: &str) -> Step {
    Step::Event(json!({
        "sequence": sequence, "at_ms": 1_000 + 100 * sequence, "migration": migration, "message": message,
    }))
}

fn phase(sequence: u64, phase: &str) -> Step {
    event(sequence, migration(phase), &format!("now {phase}"))
}

fn progress(sequence: u64) -> Step {
    let mut copying = migration("PRECOPY");
    copying["progress"] = json!({ "total": 1 << 28, "remaining": 1 << 26, "rate": 1 << 27, "dirty_rate": 1 << 20, "expected_pause_us": 12_000 });
    event(sequence, copying, "")
}

fn done(sequence: u64) -> Step {
    let mut done = migration("DONE");
    done["ended_at_ms"] = json!(4_200);
    done["report"] = json!({
        "armed_at_ns": 1_000_000_000, "stopped_at_ns": 1_001_000_000, "running_at_ns": 1_011_500_000,
        "held": 12, "carried": 15, "gated": 3, "markers_in": 2,
    });
    event(sequence, done, "everything is at h2")
}

fn a_whole_migration() -> Vec<Step> {
    let mut steps = vec![phase(1, "PREPARING"), phase(2, "PRECOPY")];
    steps.extend((3..20).map(progress));
    steps.extend([phase(20, "ARMED"), phase(21, "PAUSED"), phase(22, "COMMITTED"), phase(23, "SETTLING"), done(24)]);
    steps
}

fn accepting(steps: Vec<Step>) -> Controller {
    let fabric = Controller::start();
    fabric.says("migrate_guest", migration("PREPARING")).watched(steps);
    fabric
}

fn json_lines(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn piped_it_prints_plain_lines_and_a_summary() {
    let fabric = accepting(a_whole_migration());
    let ended = run(fabric.address, "migrate web-1 --to h2").with(0);
    assert!(!ended.stdout.replace('\n', "").contains(char::is_control), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let phases = ["preparing", "pre-copy", "armed", "paused", "committed", "settling", "done"];
    let course = lines.iter().filter(|line| line.contains(" s  ") && !line.contains('%'));
    let course: Vec<&str> = course.map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(course, phases, "{ended:?}");
    let progress = lines
        .iter()
        .filter(|line| line.contains(" 75 %, 64 MiB left, 128 MiB/s, dirty 1 MiB/s, pause 12.0 ms expected"))
        .count();
    assert_eq!(progress, 1, "17 of them came within a second: {ended:?}");
    let summary = lines.iter().position(|line| *line == "migration m1: web-1 from h1 to h2: done in 3.2 s");
    let summary = &lines[summary.expect("a summary") + 1..];
    let expected = [
        "pause        10.5 ms",
        "held         12 frames",
        "overflowed   0 frames",
        "armed        1.0 ms before the stop",
    ];
    for expected in expected {
        assert!(summary.contains(&expected), "{expected}: {summary:#?}");
    }
}

#[test]
fn what_is_asked_is_what_was_typed() {
    let fabric = accepting(vec![done(1)]);
    run(
        fabric.address,
        "migrate web-1 --to h2 --request-id r-1 --stop --stop-within 2m --if-it-runs-on cut --longest-pause 50 --bandwidth 10Gbit --deadline 5m \
         --on-stall longer-pause --longest-pause-at-most 2000 --flatten --watch",
    )
    .with(0);
    let limits = json!({
        "longest_pause_ms": 50, "bandwidth": 1_250_000_000, "deadline_ms": 300_000,
        "on_stall": "LONGER_PAUSE", "longest_pause_at_most_ms": 2_000,
    });
    let stop_first = json!({ "deadline_ms": 120_000, "otherwise": "CUT" });
    let request = json!({
        "request_id": "r-1", "guest": "web-1", "destination_host": "h2", "limits": limits, "stop_first": stop_first,
        "flatten": true,
    });
    assert_eq!(fabric.asked("migrate_guest"), [request]);
    assert_eq!(fabric.asked("watch_migration"), [json!({ "id": "m1" })]);
}

#[test]
fn each_run_is_a_request_of_its_own() {
    let fabric = Controller::start();
    fabric.says("migrate_guest", migration("PREPARING")).says("migrate_guest", migration("PREPARING"));
    for _ in 0..2 {
        run(fabric.address, "migrate web-1 --detach").with(0);
    }
    let ids: Vec<_> = fabric.asked("migrate_guest").iter().map(|request| request["request_id"].clone()).collect();
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.as_str().is_some_and(|id| id.len() == 36)), "{ids:?}");
}

#[test]
fn as_json_it_prints_one_event_a_line() {
    let fabric = accepting(a_whole_migration());
    let ended = run(fabric.address, "migrate web-1 --to h2 -o json").with(0);
    let events = json_lines(&ended);
    assert_eq!(events.len(), 24);
    assert_eq!(events[2]["migration"]["phase"], json!("PRECOPY"));
    assert_eq!(events[23]["migration"]["report"]["held"], json!(12));
}

#[test]
fn detached_it_does_not_watch() {
    let fabric = accepting(vec![]);
    let ended = run(fabric.address, "migrate web-1 --detach -o json").with(0);
    assert_eq!(ended.json()["id"], json!("m1"));
    assert!(fabric.asked("watch_migration").is_empty());
}

#[test]
fn an_aborted_migration_is_7() {
    let aborted = || {
        let mut aborted = migration("ABORTED");
        aborted["failure"] = json!({ "reason": "DESTINATION_LOST", "message": "h2 went away" });
        vec![phase(1, "PRECOPY"), event(2, aborted, "")]
    };
    let fabric = accepting(aborted());
    fabric.watched(aborted());
    let ended = run(fabric.address, "migrate web-1 --to h2").with(7);
    assert!(
        ended.stderr.starts_with("error: migrate guest web-1 to h2: h2 went away (DESTINATION_LOST)\n"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("next: the guest stays at h1"), "{ended:?}");
    let ended = run(fabric.address, "migration watch m1 -o json").with(7);
    assert_eq!(json_lines(&ended).len(), 2);
    assert_eq!(ended.error()["reason"], json!("DESTINATION_LOST"));
}

#[test]
fn what_becomes_of_a_guest_that_is_stopped_first_is_said() {
    let stopped = |phase: &str, reason: &str, otherwise: &str| {
        let mut end = migration(phase);
        end["stop_first"] = json!({ "deadline_ms": 120_000, "otherwise": otherwise });
        if !reason.is_empty() {
            end["failure"] = json!({ "reason": reason, "message": "it did not" });
        }
        vec![event(1, end, "")]
    };
    let fabric = accepting(stopped("DONE", "", "STAY"));
    let moved = run(fabric.address, "migrate web-1 --to h2 --stop").with(0);
    let last = moved.stderr.lines().last().unwrap();
    assert!(last.starts_with("web-1 is booted at h2 now; whether it runs: throughline guest get web-1"), "{moved:?}");
    for (reason, otherwise, expected) in [
        (
            "GUEST_DID_NOT_STOP",
            "STAY",
            "next: the guest runs on at h1; migrate again with a longer --stop-within, or with --if-it",
        ),
        ("GUEST_DID_NOT_STOP", "CUT", "next: the guest is to run at h1 again"),
        ("DESTINATION_LOST", "STAY", "next: the guest is to run at h1 again"),
    ] {
        fabric.watched(stopped("ABORTED", reason, otherwise));
        let ended = run(fabric.address, "migration watch m1").with(7);
        assert!(ended.stderr.contains(expected), "{ended:?}");
    }
    let listed = stopped("DONE", "", "CUT").remove(0);
    let Step::Event(listed) = listed else { unreachable!() };
    fabric.says("list_migrations", json!({ "migrations": [listed["migration"]] }));
    fabric.says("get_migration", listed["migration"].clone());
    assert!(run(fabric.address, "migration list").with(0).stdout.contains("within 2 min 00 s, else cut"));
    assert!(
        run(fabric.address, "migration show m1")
            .with(0)
            .stdout
            .contains("stopped first  within 2 min 00 s, else cut\n")
    );
}

#[test]
fn a_refused_migration_is_3_and_an_unknown_one_4() {
    let fabric = Controller::start();
    let refusal = throughline_wire::status(Code::FailedPrecondition, "ALREADY_MIGRATING", Some("guest"), "it migrates");
    fabric.answer("migrate_guest", Answer::Error(refusal));
    assert_eq!(run(fabric.address, "migrate web-1 -o json").with(3).error()["field"], json!("guest"));
    run(fabric.address, "migration watch nonsense").with(4);
    fabric.answer("cancel_migration", Answer::Error(Status::failed_precondition("it has committed")));
    run(fabric.address, "migration cancel m1").with(3);
}

#[test]
fn a_migration_is_shown_and_cancelled() {
    let fabric = Controller::start();
    fabric.says("get_migration", migration("ARMED")).says("cancel_migration", migration("ABORTED"));
    assert!(run(fabric.address, "migration show m1").with(0).stdout.contains("phase     armed\n"));
    assert!(run(fabric.address, "migration cancel m1").with(0).stdout.contains("phase     aborted\n"));
    fabric.says("list_migrations", json!({ "migrations": [migration("DONE")] }));
    assert!(run(fabric.address, "migration list --guest web-1").with(0).stdout.contains("1970-01-01 00:00:01Z"));
    assert_eq!(fabric.asked("list_migrations")[0]["guest"], json!("web-1"));
}

/// Starts a watch and reads its first line.
fn watching(fabric: &Controller, line: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = command(fabric.address, line).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    assert!(!first.is_empty(), "an event");
    (child, stdout)
}

#[test]
fn a_watch_outlives_the_controllers_restart() {
    let fabric = accepting(vec![phase(1, "PREPARING"), Step::Silence]);
    let (child, mut stdout) = watching(&fabric, "migrate web-1 -o json");
    let address = fabric.address;
    drop(fabric);
    std::thread::sleep(Duration::from_millis(400));
    let fabric = Controller::start_at(address);
    fabric.watched(vec![phase(1, "PREPARING"), phase(2, "PRECOPY"), Step::Wait(Duration::from_millis(50)), done(3)]);
    let ended = ended(child).with(0);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let sequences: Vec<Value> =
        rest.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["sequence"].clone()).collect();
    assert_eq!(sequences, [json!(2), json!(3)], "nothing twice, nothing missing");
    assert!(ended.stderr.contains("lost the controller; the migration goes on"), "{ended:?}");
    assert!(fabric.asked("migrate_guest").is_empty(), "the migration is not begun again");
}

#[test]
fn the_end_is_seen_even_from_a_controller_that_forgot_its_count() {
    let fabric = accepting(vec![phase(1, "PREPARING"), phase(2, "PRECOPY"), phase(3, "ARMED")]);
    fabric.watched(vec![phase(1, "SETTLING"), done(2)]);
    let ended = run(fabric.address, "migrate web-1 -o json").with(0);
    assert_eq!(json_lines(&ended).last().unwrap()["migration"]["phase"], json!("DONE"));
    assert_eq!(ended.stderr.lines().count(), 1, "one notice: {ended:?}");
    serde_json::from_str::<Value>(&ended.stderr).expect("a notice is JSON too");
}

#[test]
fn a_controller_that_stays_away_is_6() {
    let fabric = accepting(vec![phase(1, "PREPARING"), Step::Silence]);
    let (child, _stdout) = watching(&fabric, "migrate web-1 --timeout 600ms");
    drop(fabric);
    let ended = ended(child).with(6);
    assert!(ended.stderr.contains("throughline migration watch m1"), "{ended:?}");
}

#[test]
fn ctrl_c_ends_the_watch_not_the_migration() {
    let fabric = accepting(vec![phase(1, "PREPARING"), Step::Silence]);
    let (child, _stdout) = watching(&fabric, "migrate web-1");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let ended = ended(child).with(130);
    assert!(ended.stderr.contains("the migration goes on (INTERRUPTED)"), "{ended:?}");
    for hint in ["throughline migration watch m1", "throughline migration cancel m1"] {
        assert!(ended.stderr.contains(hint), "{ended:?}");
    }
    assert!(fabric.asked("cancel_migration").is_empty());
}

#[test]
fn a_reader_that_leaves_ends_the_watch() {
    let fabric = accepting(vec![
        phase(1, "PREPARING"),
        Step::Wait(Duration::from_millis(300)),
        phase(2, "PRECOPY"),
        Step::Silence,
    ]);
    let (child, stdout) = watching(&fabric, "migrate web-1");
    drop(stdout);
    assert_eq!(ended(child).with(141).stderr, "");
}

#[test]
fn on_a_terminal_one_line_lives() {
    let fabric = accepting(vec![
        phase(1, "PREPARING"),
        progress(2),
        Step::Wait(Duration::from_millis(700)),
        phase(3, "PAUSED"),
        done(4),
    ]);
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).unwrap();
    let mut child = command(fabric.address, "migrate web-1");
    child.env("TERM", "xterm").stdout(terminal.slave.try_clone().unwrap());
    let started = child.spawn().unwrap();
    drop((child, terminal.slave));
    let shown = read_terminal(terminal.master.into());
    ended(started).with(0);
    assert!(
        shown.contains("pre-copy")
            && shown.contains(" 75 %, 64 MiB left, 128 MiB/s, dirty 1 MiB/s, pause 12.0 ms expected"),
        "{shown:?}"
    );
    let last = shown.rsplit('\r').next().unwrap();
    assert!(shown.contains("\u{1b}[") && !last.contains("75 %"), "the line was drawn over and wiped: {shown:?}");
    assert!(shown.contains("done in 3.2 s"), "{shown:?}");
}

/// All that is written to a terminal until nobody has it open any more; the kernel says EIO then.
fn read_terminal(mut master: File) -> String {
    let mut shown = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = master.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8_lossy(&shown).into_owned()
}
