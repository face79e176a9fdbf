//! Guests move while they are stopped: nothing on their disks is lost or wrong, and they start where they have come to.

use std::fs;
use std::time::Duration;

use crate::disks::{WRITER, WRITTEN};
use crate::fencing::{kill_controller, start_daemon};
use crate::lab::{GUEST, Lab, wait_for};
use crate::power::BOOTED;
use crate::probe::Probe;

const SOON: Duration = Duration::from_secs(60);

/// Cold moves in a row: `THROUGHLINE_COLD_MOVES`, else 2.
fn moves() -> usize {
    let asked = std::env::var("THROUGHLINE_COLD_MOVES").ok();
    asked.map_or(2, |asked| asked.parse().expect("THROUGHLINE_COLD_MOVES is a number"))
}

impl Lab {
    /// Moves the guest, which is stopped, and is so after.
    fn migrate_stopped(&self, to: &str, flags: &[&str]) {
        let mut last = self.throughline(&[&["migrate", GUEST, "--to", to], flags].concat()).done();
        let migration = last["migration"].take();
        assert_eq!(migration["phase"], "DONE", "{migration:#}");
        self.wait_for_state("STOPPED");
        let guest = self.throughline(&["guest", "get", GUEST]).done();
        assert_eq!(guest["host"], to, "{guest:#}");
    }
}

#[test]
fn a_stopped_guest_moves_with_its_disks_and_starts_there() {
    let lab = Lab::up("cold");
    lab.boot_guest_with(WRITER, &WRITTEN);
    drop(Probe::start(&lab));
    for (from, to) in [("h1", "h2"), ("h2", "h1")].into_iter().cycle().take(moves()) {
        std::thread::sleep(Duration::from_secs(2));
        lab.stop_guest(&[]).done();
        let before = lab.disk_sums(from);
        lab.migrate_stopped(to, &[]);
        assert_eq!(lab.disk_sums(to), before, "byte for byte");
        assert_eq!(lab.disk_files(from), [""; 0], "left behind on {from}");
        lab.assert_disks_are_whole(to);
        lab.start_guest().done();
        lab.assert_runs_on(to);
        lab.assert_answers(&format!("the guest started on {to}, with its addresses"));
    }
    let mut probe = Probe::start(&lab);
    lab.migrate(if moves().is_multiple_of(2) { "h2" } else { "h1" });
    probe.assert_unnoticed(&lab, "it moved as it ran, too");
    probe.assert_disks_read_back();
}

#[test]
fn a_cold_move_that_breaks_off_leaves_the_guest_and_the_next_goes_on() {
    let mut lab = Lab::up("coldcut");
    lab.boot_guest_with_large_disk();
    lab.stop_guest(&["--cut-after", "0"]).done();
    let before = lab.disk_sums("h1");

    // An operator, the destination's agent, the source's agent.
    for (what, over) in [("cancel", 16 << 20), ("h2", 16 << 20), ("h1", 32 << 20)] {
        let id = lab.begin_disk_move("h2", over);
        let killed = match what {
            "cancel" => {
                lab.throughline(&["migration", "cancel", &id]).done();
                None
            }
            host => Some(lab.kill_agent(host)),
        };
        if let Some(killed) = &killed {
            lab.start_again(killed);
        }
        let ended = wait_for("the migration ends", SOON, || {
            let now = lab.migration(&id);
            matches!(now["phase"].as_str(), Some("DONE" | "ABORTED")).then_some(now)
        });
        assert_eq!(ended["phase"], "ABORTED", "{ended:#}");
        lab.wait_for_state("STOPPED");
        assert_eq!(lab.disk_sums("h1"), before, "the source is as it was, after {what}");
        let left = lab.disk_files("h2");
        let parts = left.iter().filter(|file| file.ends_with(".part")).count();
        assert_eq!((parts > 0, parts), (what != "cancel", left.len()), "{what}: {left:?}");
    }

    // What came before is not sent again: at this rate all of it would take six seconds.
    let began = std::time::Instant::now();
    lab.migrate_stopped("h2", &["--bandwidth", "8MiB"]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(lab.disk_sums("h2"), before);
    lab.start_guest().done();
    lab.assert_runs_on("h2");
    let taken =
        fs::metadata(lab.disk_dir("h2").join("big.raw")).map(|it| std::os::unix::fs::MetadataExt::blocks(&it) * 512);
    assert!(taken.unwrap() < 64 << 20, "it came sparse");
}

#[test]
fn a_stopped_guest_without_disks_changes_hosts_at_once() {
    let lab = Lab::up("coldbare");
    lab.boot_guest();
    drop(Probe::start(&lab));
    lab.stop_guest(&["--cut-after", "0"]).done();
    lab.migrate_stopped("h2", &[]);
    lab.start_guest().done();
    lab.assert_answers("a guest without disks started on h2");
}

#[test]
fn a_guest_is_shut_down_moved_and_booted_there_by_one_request() {
    let mut lab = Lab::up("stopmove");
    lab.boot_guest_with(WRITER, &WRITTEN);
    drop(Probe::start(&lab));
    std::thread::sleep(Duration::from_secs(2));
    let moved = lab.throughline(&["migrate", GUEST, "--to", "h2", "--stop"]).done()["migration"].take();
    assert_eq!((&moved["phase"], &moved["stop_first"]["deadline_ms"]), (&"DONE".into(), &60_000.into()), "{moved:#}");
    assert_eq!(lab.disk_files("h1"), [""; 0], "left behind");
    lab.wait_for_state("RUNNING");
    lab.assert_runs_on("h2");
    lab.assert_answers("it was booted where it had come to, with its addresses");

    // The controller's death in the middle costs nobody anything.
    let back = ["migrate", GUEST, "--to", "h1", "--stop", "--detach"];
    let id = lab.throughline(&back).done()["id"].as_str().expect("an id").to_owned();
    let controller = kill_controller(&lab);
    start_daemon(&mut lab, "ctl", &controller);
    wait_for("the migration has ended well", SOON, || {
        let shown = lab.throughline(&["migration", "show", &id]);
        (shown.code == 0 && shown.result["phase"] == "DONE").then_some(())
    });
    lab.wait_for_state("RUNNING");
    lab.assert_runs_on("h1");
    let mut probe = Probe::start(&lab);
    lab.migrate("h2");
    probe.assert_unnoticed(&lab, "it moved as it ran, too");
    probe.assert_disks_read_back();
}

#[test]
fn a_guest_that_does_not_shut_down_to_be_moved_stays_or_is_cut_off() {
    let lab = Lab::up("deafmove");
    lab.boot_guest_with("tl.probe=off tl.button=no", &[]);
    wait_for("the guest is up", SOON, || lab.console("h1").contains(BOOTED).then_some(()));
    let asked = ["migrate", GUEST, "--to", "h2", "--stop", "--stop-within", "1s"];
    let stayed = lab.throughline(&asked);
    let reason = &stayed.result["migration"]["failure"]["reason"];
    assert_eq!((stayed.code, reason.as_str()), (7, Some("GUEST_DID_NOT_STOP")), "{:#}", stayed.result);
    lab.wait_for_state("RUNNING");
    lab.assert_runs_on("h1");
    assert_eq!(lab.console("h1").matches(BOOTED).count(), 1, "it ran all along");
    let moved = lab.throughline(&[&asked[..], &["--if-it-runs-on", "cut"]].concat()).done()["migration"].take();
    assert_eq!(moved["phase"], "DONE", "{moved:#}");
    lab.assert_no_qemu("h1");
    lab.wait_for_state("RUNNING");
    lab.assert_runs_on("h2");
}

#[test]
fn a_guest_that_shuts_down_when_nobody_waits_for_it_any_more_boots_where_it_is() {
    let mut lab = Lab::up("latemove");
    lab.boot_guest_with("tl.probe=off tl.button=late", &[]);
    let is_up = |lab: &Lab| {
        wait_for("the guest is up", SOON, || lab.console("h1").contains(BOOTED).then_some(()));
        // What hears its button may be a little later.
        std::thread::sleep(Duration::from_secs(3));
    };
    let has_booted_after = |lab: &Lab, before: Vec<i32>| {
        wait_for("it has shut down and boots again", SOON, || {
            let now = lab.qemus("h1");
            (now.len() == 1 && now != before).then_some(())
        });
        is_up(lab);
        lab.wait_for_state("RUNNING");
        lab.assert_runs_on("h1");
    };
    is_up(&lab);
    let before = lab.qemus("h1");
    let asked = ["migrate", GUEST, "--to", "h2", "--stop", "--stop-within", "1s"];
    lab.throughline(&asked).refused(7, "GUEST_DID_NOT_STOP");
    assert_eq!(lab.qemus("h1"), before, "it runs on");
    has_booted_after(&lab, before);

    // An agent that did not ask it knows that it was asked.
    let before = lab.qemus("h1");
    lab.throughline(&asked).refused(7, "GUEST_DID_NOT_STOP");
    let agent = lab.kill_agent("h1");
    lab.start_again(&agent);
    assert_eq!(lab.qemus("h1"), before, "it runs on");
    has_booted_after(&lab, before);
}
