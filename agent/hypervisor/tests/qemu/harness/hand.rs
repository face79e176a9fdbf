//! A guest's QEMU by hand: at its monitor, in the agent's place.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};
use throughline_hypervisor::{Guest, RunDir};

use super::{Lab, PATIENCE};

/// A monitor, open.
pub(crate) struct Hand {
    stream: BufReader<UnixStream>,
}

impl Hand {
    fn at(run_dir: &RunDir) -> Self {
        let stream = UnixStream::connect(run_dir.qmp_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut hand = Self { stream: BufReader::new(stream) };
        assert!(hand.line().get("QMP").is_some());
        hand.execute("qmp_capabilities", &json!({}));
        hand
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments, "id": 7});
        writeln!(self.stream.get_mut(), "{line}").unwrap();
        loop {
            let mut answer = self.line();
            if answer["id"] == 7 {
                assert!(answer.get("error").is_none(), "{command}: {answer}");
                return answer["return"].take();
            }
        }
    }

    /// Writes through the guest's device, as its driver would.
    pub(crate) fn write(&mut self, device: &str, pattern: u8, offset: u64, bytes: u64) {
        let line = format!("qemu-io -d {device} \"write -P {pattern} {offset} {bytes}\"");
        let said = self.execute("human-monitor-command", &json!({"command-line": line}));
        // What it did goes to QEMU's log; what went wrong is answered.
        assert_eq!(said, "", "{line}");
    }
}

/// Has `deed` done at a guest's monitor, which no handle may have meanwhile.
pub(crate) async fn by_hand(
    lab: &Lab,
    guest: Guest,
    side: &str,
    deed: impl FnOnce(&mut Hand) + Send + 'static,
) -> Guest {
    let run_dir = guest.run_dir().clone();
    drop(guest);
    tokio::time::sleep(Duration::from_millis(20)).await;
    tokio::task::spawn_blocking(move || deed(&mut Hand::at(&run_dir))).await.unwrap();
    lab.adopt("g", side).await.unwrap().expect("it runs")
}
