//! An agent that was given too little says so before it touches anything.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use throughline_agent::privilege;

/// An agent whose capabilities are bounded so, as setpriv(1) writes it.
fn start(bounding: &str, flags: &[&str], state: &PathBuf) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", &format!("--bounding-set={bounding}")]);
    command.args([env!("CARGO_BIN_EXE_throughline-agent"), "--host", "h1", "--vtep", "192.0.2.1"]);
    command.args(["--peer-listen", "127.0.0.1:0", "--state-dir"]).arg(state).args(flags);
    command.output().expect("setpriv is there, of util-linux (`make setup`)")
}

#[test]
fn what_is_missing_is_named_with_its_use_and_nothing_is_touched() {
    let state = std::env::temp_dir().join(format!("throughline-lacks-{}", std::process::id()));
    for (bounding, flags, named, not_named) in [
        ("-all", vec![], privilege::kept(false), 0),
        ("-all,+net_admin,+net_raw", vec!["--peer-only"], privilege::EVERY_AGENT[2..].to_vec(), 2),
    ] {
        let ended = start(bounding, &flags, &state);
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success(), "it went on without: {said}");
        for keep in &named {
            assert!(said.contains(&keep.to_string()), "{keep} is not named: {said}");
        }
        for keep in &privilege::EVERY_AGENT[..not_named] {
            assert!(!said.contains(&keep.to_string()), "{keep} was there: {said}");
        }
        assert!(said.contains("by its systemd unit"), "what to do is not said: {said}");
        assert!(!state.exists(), "it made {} before it looked what it may do", state.display());
    }
}
