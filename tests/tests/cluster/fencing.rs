//! What a controller that is not the one of today may not do: on an old record, on an empty one, beside another one. And
//! what the agents do without any.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use throughline_agent::journal::{Journal, Promise};

use crate::lab::{GUEST, Lab, wait_for};
use crate::probe::Probe;
use crate::processes::await_end;

/// Where a second controller listens.
const SECOND: &str = "192.0.2.1:7800";
const AGENTS: [&str; 3] = ["h1", "h2", "peer"];
/// How long agents may take to find a controller that was away.
const BACK: Duration = Duration::from_secs(20);

/// The command line of a daemon.
pub(crate) type CommandLine = Vec<String>;

/// Kills a node's daemon with SIGKILL, the one that has this word on its command line.
fn kill_daemon(lab: &Lab, node: &str, word: &str) -> CommandLine {
    let command_of = |pid: &i32| -> CommandLine {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    };
    let daemons = lab.daemons(node);
    let [pid] =
        daemons.iter().filter(|pid| command_of(pid).iter().any(|it| it == word)).copied().collect::<Vec<_>>()[..]
    else {
        panic!("{node} runs one daemon with {word}, found {daemons:?}")
    };
    let command = command_of(&pid);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    await_end(&format!("{} on {node}", command[0]), pid);
    command
}

pub(crate) fn start_daemon(lab: &mut Lab, node: &str, command: &[String]) {
    let log = OpenOptions::new().append(true).open(lab.log(node)).unwrap();
    let words: Vec<_> = command.iter().map(String::as_str).collect();
    let mut command = lab.on(node, &words);
    command.env("NO_COLOR", "1").stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    lab.started.push(command.spawn().unwrap());
}

pub(crate) fn kill_controller(lab: &Lab) -> CommandLine {
    kill_daemon(lab, "ctl", "192.0.2.1:7700")
}

/// The same command, with the value of a flag replaced, or the flag added.
fn with(command: &[String], flag: &str, value: &str) -> CommandLine {
    let mut command = command.to_vec();
    match command.iter().position(|word| word == flag) {
        Some(at) => value.clone_into(&mut command[at + 1]),
        None => command.extend([flag.to_owned(), value.to_owned()]),
    }
    command
}

fn state(lab: &Lab, name: &str) -> PathBuf {
    lab.state().join("ctl").join(name)
}

/// Puts a copy of the record aside, as a backup would; the controller must not be running.
fn copy_record(lab: &Lab, from: &str, to: &str) {
    let (from, to) = (state(lab, from), state(lab, to));
    let _ = fs::remove_dir_all(&to);
    fs::DirBuilder::new().mode(0o700).create(&to).unwrap();
    fs::copy(from.join("record.redb"), to.join("record.redb")).unwrap();
}

fn wait_for_agents(lab: &Lab, agents: &[&str]) {
    wait_for(&format!("{agents:?} are connected"), BACK, || {
        let hosts = lab.throughline(&["host", "list"]);
        let connected = |name: &str| {
            hosts.result["hosts"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|it| it["name"] == name && it["connected"] == true)
        };
        agents.iter().all(|agent| connected(agent)).then_some(())
    });
}

fn wait_until_guest(lab: &Lab, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, BACK, || {
        let guest = lab.throughline(&["guest", "get", GUEST]).result;
        is(&guest).then_some(guest)
    })
}

/// The reason the only controller that is asked gives for not commanding a host.
fn refusal(lab: &Lab, host: &str) -> String {
    let shown = lab.throughline(&["host", "get", host]).result;
    shown["refusal"]["reason"].as_str().unwrap_or_default().to_owned()
}

fn logged(lab: &Lab, node: &str, words: &str) -> bool {
    fs::read_to_string(lab.log(node)).unwrap_or_default().contains(words)
}

#[test]
fn a_restored_record_does_not_undo_a_newer_commit() {
    let mut lab = Lab::up("restored");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let controller = kill_controller(&lab);
    copy_record(&lab, "state", "aside");
    start_daemon(&mut lab, "ctl", &controller);
    wait_for_agents(&lab, &AGENTS);
    wait_until_guest(&lab, "the guest is reported", |it| it["state"] == "RUNNING");
    lab.migrate("h2");
    lab.throughline(&["network", "create", "green", "--vni", "7002"]).done();
    probe.assert_unnoticed(&lab, "the guest moved");

    kill_controller(&lab);
    copy_record(&lab, "aside", "state");
    start_daemon(&mut lab, "ctl", &controller);
    wait_for_agents(&lab, &AGENTS);
    let guest = wait_until_guest(&lab, "the record follows the host that has the guest", |it| it["host"] == "h2");
    assert!(guest["generation"].as_u64() > Some(1), "{guest}");
    wait_until_guest(&lab, "the guest is reported from there", |it| it["state"] == "RUNNING");
    thread::sleep(Duration::from_secs(2));
    lab.assert_no_qemu("h1");
    probe.assert_unnoticed(&lab, "the controller came back with an older record");
    let bridges = lab.on("h2", &["ip", "-o", "link", "show", "type", "bridge"]).output().unwrap();
    let bridges = String::from_utf8_lossy(&bridges.stdout).lines().count();
    assert_eq!(bridges, 2, "a network that the record does not know is left alone");

    lab.migrate("h1");
    lab.assert_no_qemu("h2");
    probe.assert_unnoticed(&lab, "the guest moved back under the older record");
}

#[test]
fn an_empty_record_ends_nothing() {
    let mut lab = Lab::up("empty");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let controller = kill_controller(&lab);
    fs::rename(state(&lab, "state"), state(&lab, "aside")).unwrap();
    start_daemon(&mut lab, "ctl", &controller);
    for agent in AGENTS {
        wait_for("the controller says that the host is of another fabric", BACK, || {
            (refusal(&lab, agent) == "OTHER_FABRIC").then_some(())
        });
        assert!(
            logged(&lab, agent, "of another fabric") || logged(&lab, agent, "belongs to fabric"),
            "{agent} logs it"
        );
    }
    assert!(lab.throughline(&["guest", "list"]).done()["guests"].as_array().unwrap().is_empty());
    probe.assert_unnoticed(&lab, "a controller with an empty record took the place of theirs");

    // An operator gives one host to the new fabric: its guest is found, and left alone until it is deleted.
    let told = lab.throughline(&["host", "get", "h1"]).done()["refusal"]["message"].to_string();
    let fabric = told.split("--join ").nth(1).unwrap().trim_end_matches('"').to_owned();
    let agent = kill_daemon(&lab, "h1", "h1");
    start_daemon(&mut lab, "h1", &with(&agent, "--join", &fabric));
    wait_for_agents(&lab, &["h1"]);
    let guest = wait_until_guest(&lab, "the guest is shown", |it| it["state"] == "RUNNING");
    assert_eq!((&guest["unknown"], &guest["host"]), (&Value::Bool(true), &Value::from("h1")), "{guest}");
    thread::sleep(Duration::from_secs(1));
    probe.assert_unnoticed(&lab, "its host was given to a new fabric");
    lab.throughline(&["guest", "delete", GUEST]).done();
    lab.assert_no_qemu("h1");
}

#[test]
fn of_two_controllers_one_commands() {
    let mut lab = Lab::up("two");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let first = kill_controller(&lab);
    copy_record(&lab, "state", "second");
    start_daemon(&mut lab, "ctl", &first);
    wait_for_agents(&lab, &AGENTS);
    let second = with(&with(&first, "--listen", SECOND), "--state-dir", state(&lab, "second").to_str().unwrap());
    start_daemon(&mut lab, "ctl", &second);

    // A host is taken over by the second, and comes back to the first.
    let obeyed =
        |lab: &Lab| fs::read_to_string(lab.log("h1")).unwrap_or_default().matches("obeys this controller").count();
    let before = obeyed(&lab);
    let agent = kill_daemon(&lab, "h1", "h1");
    start_daemon(&mut lab, "h1", &with(&agent, "--controller", &format!("https://{SECOND}")));
    // It is connected a moment before it has written that down.
    wait_for("h1 obeys the second controller", BACK, || (obeyed(&lab) > before).then_some(()));
    wait_for("the second controller commands h1", BACK, || {
        let url = format!("https://{SECOND}");
        let host = lab.throughline(&["--controller", &url, "host", "get", "h1"]);
        (host.result["connected"] == true).then_some(())
    });
    kill_daemon(&lab, "h1", "h1");
    start_daemon(&mut lab, "h1", &agent);
    wait_for("the first controller learns that it was beaten", BACK, || {
        (refusal(&lab, "h1") == "STALE_TERM").then_some(())
    });
    lab.throughline(&["network", "create", "green", "--vni", "7002"]).refused(3, "STALE_TERM");
    lab.throughline(&["migrate", GUEST, "--to", "h2"]).refused(3, "STALE_TERM");
    assert!(AGENTS.iter().all(|agent| !lab.is_connected(agent)), "it commands nobody any more");
    assert!(logged(&lab, "ctl", "stands down"), "it says so");
    probe.assert_unnoticed(&lab, "two controllers fought for its host");

    // An operator ends the second and starts the first anew.
    kill_daemon(&lab, "ctl", SECOND);
    kill_controller(&lab);
    start_daemon(&mut lab, "ctl", &first);
    wait_for_agents(&lab, &AGENTS);
    wait_until_guest(&lab, "the guest is reported", |it| it["state"] == "RUNNING");
    lab.migrate("h2");
    lab.assert_no_qemu("h1");
    probe.assert_unnoticed(&lab, "the guest moved once one controller was left");
}

#[test]
fn a_move_goes_on_without_the_controller() {
    let mut lab = Lab::up("alone");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let id = lab.begin_slow_move("h2");
    let controller = kill_controller(&lab);
    wait_for("the two agents commit", Duration::from_secs(60), || logged(&lab, "h2", "committed").then_some(()));
    // Peers have not been told: the source carries.
    thread::sleep(Duration::from_secs(10));
    probe.assert_unnoticed(&lab, "the guest moved while the controller was away");

    start_daemon(&mut lab, "ctl", &controller);
    wait_for_agents(&lab, &AGENTS);
    wait_for("the move is settled", Duration::from_secs(60), || (lab.migration(&id)["phase"] == "DONE").then_some(()));
    wait_until_guest(&lab, "the guest is reported", |it| it["state"] == "RUNNING" && it["host"] == "h2");
    lab.assert_no_qemu("h1");
    probe.assert_unnoticed(&lab, "the controller came back and told the peers");
}

#[test]
fn a_peer_that_missed_its_flip_is_repaired_when_it_returns() {
    let mut lab = Lab::up("missed");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let agent = kill_daemon(&lab, "peer", "--peer-only");
    wait_for("the controller notices", BACK, || (!lab.is_connected("peer")).then_some(()));
    let begun = lab.throughline(&["migrate", GUEST, "--to", "h2", "--detach"]).done();
    let id = begun["id"].as_str().unwrap().to_owned();
    wait_until_guest(&lab, "the guest runs on h2", |it| it["state"] == "RUNNING" && it["host"] == "h2");
    thread::sleep(Duration::from_secs(3));
    probe.assert_unnoticed(&lab, "a peer was not told of the move: the source carries what it sends");

    start_daemon(&mut lab, "peer", &agent);
    wait_for_agents(&lab, &AGENTS);
    wait_for("the move is settled", Duration::from_secs(60), || (lab.migration(&id)["phase"] == "DONE").then_some(()));
    lab.assert_no_qemu("h1");
    probe.assert_unnoticed(&lab, "the peer was told when its agent was back");
}

#[test]
fn an_operators_word_stands_in_for_a_dead_destination() {
    let mut lab = Lab::up("word");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let id = lab.begin_slow_move("h2");
    // As if both died at once: the one is not to hear of the other's end.
    kill(Pid::from_raw(lab.agent("h2")), Signal::SIGSTOP).unwrap();
    let (source, destination) = (kill_daemon(&lab, "h1", "h1"), kill_daemon(&lab, "h2", "h2"));
    lab.kill_qemu("h2");
    // As if both had died in the pause: the source has given the guest up, the destination has just committed.
    let journal = |host: &str| Journal::open(&lab.state().join(host).join("state/journal.redb")).unwrap();
    let plan = journal("h1").find_move(&id).unwrap().and_then(|record| record.plan).expect("the source keeps the plan");
    journal("h1").promise(&id, Some(&plan), Promise::GivenUp).unwrap();
    journal("h2").begin_commit(&plan).unwrap().write().unwrap();

    start_daemon(&mut lab, "h1", &source);
    wait_for_agents(&lab, &["h1"]);
    lab.throughline(&["migration", "resolve", &id, "--guest-stays"]).refused(3, "NOT_UNRESOLVED");
    lab.throughline(&["migration", "cancel", &id]).done();
    thread::sleep(Duration::from_secs(2));
    assert!(lab.migration(&id)["phase"] != "ABORTED", "the source waits for the destination's word");
    lab.throughline(&["migration", "resolve", &id, "--guest-stays"]).done();
    lab.wait_until_aborted(&id);
    let stays = wait_until_guest(&lab, "the source holds it at the new generation", |it| it["state"] == "RUNNING");
    assert_eq!(stays["generation"], plan.generation.0 + 2, "above the one the destination has come to: {stays}");
    probe.assert_unnoticed(&lab, "an operator said that it stays");

    // The destination comes back, and by its journal the guest is its own.
    start_daemon(&mut lab, "h2", &destination);
    wait_for_agents(&lab, &AGENTS);
    thread::sleep(Duration::from_secs(1));
    lab.assert_runs_on("h1");
    lab.migrate("h2");
    lab.assert_no_qemu("h1");
    probe.assert_unnoticed(&lab, "it moved there after all");
}
