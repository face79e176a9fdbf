//! A guest as libvirt would run and move it: QEMU on an ordinary tap, plain pre-copy, running at the destination by itself,
//! announcing itself as it does by default. What the agent does with QEMU is deliberately not used here.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::demo::cast;
use crate::demo::image::Image;
use crate::lab::Lab;
use crate::play::start_apart;
use crate::signals;

/// Name of the guest's tap on every hypervisor.
pub(super) const TAP: &str = "tap0";

/// How long QEMU may take to open its monitor, to answer, to migrate, to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the destination listens for memory.
const MEMORY_PORT: u16 = 4444;

/// A QEMU that runs.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    monitor: UnixStream,
    said: Receiver<Value>,
    events: Vec<Value>,
    directory: PathBuf,
}

impl Qemu {
    /// Starts it on a host that has the tap, with the devices the agent gives its guests; with `incoming`, waiting there for
    /// its memory.
    pub(super) fn start(lab: &Lab, host: &str, incoming: Option<&str>) -> Result<Self> {
        let directory = lab.node_state(host).join("guest");
        fs::create_dir_all(&directory)?;
        let image = Image::find()?;
        let socket = directory.join("qmp.sock");
        let log = fs::File::create(directory.join("qemu.log"))?;
        let mut command = lab.namespace(host).command("qemu-system-x86_64")?;
        command.args(["-name", "guest=web-1,debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-machine", "q35,usb=off,sata=off,smbus=off,smm=off,vmport=off,hpet=off,dump-guest-core=off"]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "262136k"]);
        command.args(["-overcommit", "mem-lock=off", "-kernel", &image.kernel(), "-initrd", &image.initrd()]);
        command.args(["-append", &cast::cmdline("")]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        command.arg("-chardev").arg(format!("file,id=serial0,path={}", directory.join("serial.log").display()));
        command.args(["-serial", "chardev:serial0"]);
        command.args(["-netdev", &format!("tap,id=net-1,ifname={TAP},script=no,downscript=no,vhost=off")]);
        let card = "virtio-net-pci,id=nic-1,netdev=net-1,bus=pcie.0,addr=0x2,host_mtu=1450,rx_queue_size=1024,romfile=";
        command.args(["-device", &format!("{card},mac={}", cast::GUEST_MAC)]);
        if let Some(address) = incoming {
            command.args(["-incoming", &format!("tcp:{address}:{MEMORY_PORT}")]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = start_apart(lab, command).context("cannot start QEMU")?;
        let (monitor, said) = connect(&socket)
            .with_context(|| fs::read_to_string(directory.join("qemu.log")).unwrap_or_default())
            .with_context(|| format!("QEMU on {host} does not answer"))?;
        let mut qemu = Self { child, monitor, said, events: Vec::new(), directory };
        qemu.execute("qmp_capabilities", json!({}))?;
        Ok(qemu)
    }

    /// Begins to send memory to a destination that waits, with QEMU's own limits.
    pub(super) fn migrate(&mut self, address: &str) -> Result<()> {
        let events = json!([{"capability": "events", "state": true}]);
        self.execute("migrate-set-capabilities", json!({ "capabilities": events }))?;
        self.execute("migrate", json!({ "uri": format!("tcp:{address}:{MEMORY_PORT}") }))?;
        Ok(())
    }

    /// Waits for an event; when it happened, nanoseconds since 1970.
    pub(super) fn event(&mut self, name: &str) -> Result<u64> {
        let found = self.wait(|message| message["event"] == name).with_context(|| format!("no event {name}"))?;
        let at = &found["timestamp"];
        let (seconds, micros) = (at["seconds"].as_u64(), at["microseconds"].as_u64());
        Ok((seconds.context("an event without time")? * 1_000_000 + micros.unwrap_or(0)) * 1000)
    }

    /// Waits until it has sent all its memory.
    pub(super) fn migrated(&mut self) -> Result<()> {
        let over = |message: &Value| {
            message["event"] == "MIGRATION"
                && matches!(message["data"]["status"].as_str(), Some("completed" | "failed" | "cancelled"))
        };
        let event = self.wait(over).context("the migration does not end")?;
        ensure!(event["data"]["status"] == "completed", "QEMU's migration ended so: {event}");
        Ok(())
    }

    /// Ends it.
    pub(super) fn quit(mut self) -> Result<()> {
        self.execute("quit", json!({}))?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "QEMU does not end");
            thread::sleep(Duration::from_millis(2));
        }
        // The next one here begins with empty logs.
        Ok(fs::remove_dir_all(&self.directory)?)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        writeln!(self.monitor, "{}", json!({ "execute": command, "arguments": arguments }))?;
        let is_answer = |message: &Value| message.get("return").is_some() || message.get("error").is_some();
        let answer = self.wait(is_answer).with_context(|| format!("no answer to {command}"))?;
        ensure!(answer.get("error").is_none(), "QEMU refused {command}: {}", answer["error"]);
        Ok(answer["return"].clone())
    }

    /// Waits for a message; events that are none of it are kept for those who ask later.
    fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        if let Some(index) = self.events.iter().position(&wanted) {
            return Ok(self.events.remove(index));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            signals::check()?;
            match self.said.recv_timeout(Duration::from_millis(50)) {
                Ok(message) if wanted(&message) => return Ok(message),
                Ok(message) => self.events.push(message),
                Err(RecvTimeoutError::Timeout) => ensure!(Instant::now() < deadline, "not within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("QEMU has closed its monitor"),
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both only fail if it has ended by itself; whatever is left is the lab's teardown's.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &Path) -> Result<(UnixStream, Receiver<Value>)> {
    let deadline = Instant::now() + PATIENCE;
    let monitor = loop {
        signals::check()?;
        match UnixStream::connect(socket) {
            Ok(monitor) => break monitor,
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    let reading = BufReader::new(monitor.try_clone()?);
    let (say, said) = channel();
    thread::spawn(move || {
        let messages = reading.lines().map_while(Result::ok);
        messages.filter_map(|line| serde_json::from_str(&line).ok()).try_for_each(|message: Value| say.send(message))
    });
    Ok((monitor, said))
}
