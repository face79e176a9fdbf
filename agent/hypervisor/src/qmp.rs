//! A connection to one QEMU's monitor: commands typed by the QMP schema, answers by id, events as they come.
//!
//! Commands of several tasks go out in the order they were made, without waiting for each other's answers. Two tasks
//! serve a connection, a reader and a writer; both end with it, or when the monitor closes. An event this version
//! does not know is passed over: a newer QEMU must not cost the connection.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use qapi::{Command, Execute, ExecuteOob, qmp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use throughline_cutover::{GuestName, Progress};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, warn};

use crate::{GuestEvent, HypervisorError, MigrationProgress, event};

/// How long QEMU may take to answer, unless told otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// Longest line accepted from QEMU, bytes: a broken or hostile QEMU must not fill the agent's memory. How deep a line may nest
/// the parser bounds (128).
const LINE_MAX: u64 = 4 << 20;

/// QMP's error object.
#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

type Answer = Result<Value, Refusal>;
/// Who waits for which answer; `None` once the connection is closed.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// A command on its way, and the descriptor that goes with it.
#[derive(Debug)]
struct Outgoing {
    line: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

/// An open monitor. Closed when dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    guest: GuestName,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    waiting: Waiting,
    next_id: AtomicU64,
    closed: watch::Receiver<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Connection {
    /// Negotiates on a connected `stream`. From here on events go to `events`.
    ///
    /// # Errors
    /// [`HypervisorError::Deadline`] when QEMU does not greet: it hangs, or already talks to somebody else.
    pub(crate) async fn open(
        guest: &GuestName,
        stream: UnixStream,
        events: broadcast::Sender<GuestEvent>,
    ) -> Result<Self, HypervisorError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let command = "greeting";
        let greeting = match timeout(DEADLINE, read_line(&mut reader)).await {
            Ok(Ok(Some(greeting))) if greeting.get("QMP").is_some() => greeting,
            Ok(Ok(Some(_))) => {
                let detail = "it is not a QMP greeting".to_owned();
                return Err(HypervisorError::Answer { guest: guest.clone(), command, detail });
            }
            Ok(Ok(None) | Err(_)) => return Err(HypervisorError::Gone { guest: guest.clone(), command }),
            Err(_) => return Err(HypervisorError::Deadline { guest: guest.clone(), command, after: DEADLINE }),
        };
        let (outgoing, lines) = mpsc::unbounded_channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (closing, closed) = watch::channel(false);
        let tasks = [
            tokio::spawn(read(guest.clone(), reader, waiting.clone(), events, closing)),
            tokio::spawn(write(writer, lines)),
        ];
        let connection = Self { guest: guest.clone(), outgoing, waiting, next_id: AtomicU64::new(0), closed, tasks };
        let enable = out_of_band(&greeting).then(|| vec![qmp::QMPCapability::oob]);
        connection.execute(qmp::qmp_capabilities { enable }).await?;
        Ok(connection)
    }

    /// Carries out `command` within [`DEADLINE`].
    pub(crate) async fn execute<C: Command>(&self, command: C) -> Result<C::Ok, HypervisorError> {
        self.execute_within(command, DEADLINE).await
    }

    /// Carries out `command` within `deadline`. The line is queued before the first await: a caller that goes away has
    /// still sent a whole command.
    pub(crate) async fn execute_within<C: Command>(
        &self,
        command: C,
        deadline: Duration,
    ) -> Result<C::Ok, HypervisorError> {
        self.answer::<C>(self.send(command, None)?, deadline).await
    }

    /// Carries out `command`, one that QEMU allows to overtake those it has not finished (`ALLOW_OOB`).
    pub(crate) async fn execute_past<C: Command>(&self, command: C) -> Result<C::Ok, HypervisorError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answered = self.post::<C>(id, &ExecuteOob::new(command, id), None)?;
        self.answer::<C>(answered, DEADLINE).await
    }

    /// Carries out `command`, which takes `descriptor`; ours is closed when it has been sent.
    pub(crate) async fn execute_with<C: Command>(
        &self,
        command: C,
        descriptor: OwnedFd,
    ) -> Result<C::Ok, HypervisorError> {
        self.answer::<C>(self.send(command, Some(descriptor))?, DEADLINE).await
    }

    async fn answer<C: Command>(
        &self,
        answered: oneshot::Receiver<Answer>,
        deadline: Duration,
    ) -> Result<C::Ok, HypervisorError> {
        let guest = || self.guest.clone();
        let answer = match timeout(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_closed)) => return Err(HypervisorError::Gone { guest: guest(), command: C::NAME }),
            Err(_) => return Err(HypervisorError::Deadline { guest: guest(), command: C::NAME, after: deadline }),
        };
        let value = answer.map_err(|Refusal { class, desc }| HypervisorError::Refused {
            guest: guest(),
            command: C::NAME,
            class,
            desc,
        })?;
        C::Ok::deserialize(value).map_err(|error| self.unreadable(C::NAME, &error))
    }

    /// Becomes true when the monitor has closed and every event it sent has been passed on.
    pub(crate) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.clone()
    }

    fn send<C: Command>(
        &self,
        command: C,
        descriptor: Option<OwnedFd>,
    ) -> Result<oneshot::Receiver<Answer>, HypervisorError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.post::<C>(id, &Execute::with_id(command, id), descriptor)
    }

    fn post<C: Command>(
        &self,
        id: u64,
        message: &impl Serialize,
        descriptor: Option<OwnedFd>,
    ) -> Result<oneshot::Receiver<Answer>, HypervisorError> {
        let mut line = serde_json::to_vec(message).map_err(|error| self.unreadable(C::NAME, &error))?;
        line.push(b'\n');
        let gone = || HypervisorError::Gone { guest: self.guest.clone(), command: C::NAME };
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).as_mut().ok_or_else(gone)?.insert(id, answer);
        self.outgoing.send(Outgoing { line, descriptor }).map_err(|_| gone())?;
        Ok(answered)
    }

    fn unreadable(&self, command: &'static str, error: &serde_json::Error) -> HypervisorError {
        HypervisorError::Answer { guest: self.guest.clone(), command, detail: error.to_string() }
    }
}

/// Whether the monitor reads on while QEMU's main loop is busy. Told so at the beginning, it answers some commands meanwhile.
fn out_of_band(greeting: &Value) -> bool {
    let capabilities = greeting.pointer("/QMP/capabilities").and_then(Value::as_array);
    capabilities.is_some_and(|all| all.iter().any(|capability| capability == "oob"))
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(mut writer: OwnedWriteHalf, mut lines: mpsc::UnboundedReceiver<Outgoing>) {
    while let Some(outgoing) = lines.recv().await {
        // A broken connection is the reader's to report.
        if write_one(&mut writer, outgoing).await.is_err() {
            return;
        }
    }
}

/// A descriptor travels with the first bytes of its command.
async fn write_one(writer: &mut OwnedWriteHalf, Outgoing { line, descriptor }: Outgoing) -> io::Result<()> {
    let sent = match &descriptor {
        None => 0,
        Some(descriptor) => {
            let socket: &UnixStream = (*writer).as_ref();
            let (bytes, descriptors) = ([IoSlice::new(&line)], [descriptor.as_raw_fd()]);
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let send = || Ok(sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, MsgFlags::MSG_NOSIGNAL, None)?);
            socket.async_io(Interest::WRITABLE, send).await?
        }
    };
    writer.write_all(line.get(sent..).unwrap_or_default()).await
}

async fn read(
    guest: GuestName,
    mut reader: BufReader<OwnedReadHalf>,
    waiting: Waiting,
    events: broadcast::Sender<GuestEvent>,
    closing: watch::Sender<bool>,
) {
    let mut warned = false;
    loop {
        match read_line(&mut reader).await {
            Ok(Some(line)) => {
                // Said once: whoever does so on purpose is not to fill the log.
                if !dispatch(&guest, line, &waiting, &events) && !std::mem::replace(&mut warned, true) {
                    warn!(%guest, "QEMU sent an answer to nothing that was asked");
                }
            }
            Ok(None) => break,
            Err(error) => {
                warn!(%guest, %error, "QEMU's monitor is lost");
                break;
            }
        }
    }
    // Drops the senders: whoever waits learns that QEMU is gone.
    lock(&waiting).take();
    closing.send_replace(true);
}

/// The next line; `None` when the monitor has closed.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Value>> {
    let mut line = Vec::new();
    reader.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    if !line.ends_with(b"\n") {
        return if line.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// What one line of a monitor says.
enum Heard {
    /// An event; `None`: one that means nothing here.
    Event(Option<GuestEvent>),
    /// An event this version does not know.
    Unknown(serde_json::Error),
    /// The answer to a command.
    Answer(u64, Answer),
    /// An answer to no command.
    Unasked,
}

/// What a line says, whoever wrote it. Pure.
fn understand(mut line: Value) -> Heard {
    if line.get("event").is_some() {
        return match serde_json::from_value::<qmp::Event>(line) {
            Ok(event) => Heard::Event(event::translate(&event)),
            Err(error) => Heard::Unknown(error),
        };
    }
    let Some(id) = line.get("id").and_then(Value::as_u64) else { return Heard::Unasked };
    let answer = match line.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(refusal(&line)),
    };
    Heard::Answer(id, answer)
}

/// Reads one line of a monitor as a connection does, and what it answers as statistics of a migration: the most that is
/// ever read out of one. The event it tells of, if any.
///
/// # Errors
/// Not JSON: the connection would end.
pub fn read_monitor_line(line: &[u8]) -> Result<Option<GuestEvent>, serde_json::Error> {
    match understand(serde_json::from_slice(line)?) {
        Heard::Event(event) => Ok(event),
        Heard::Answer(_, Ok(value)) => {
            let statistics = qmp::MigrationInfo::deserialize(value);
            // What cannot be read is refused with the command's name; what can must add up.
            let _progress = statistics.map(|info| Progress::from(&MigrationProgress::from(&info)));
            Ok(None)
        }
        Heard::Answer(_, Err(_)) | Heard::Unknown(_) | Heard::Unasked => Ok(None),
    }
}

/// False for what is neither an event nor an answer to something that was asked.
fn dispatch(guest: &GuestName, line: Value, waiting: &Waiting, events: &broadcast::Sender<GuestEvent>) -> bool {
    let (id, answer) = match understand(line) {
        Heard::Answer(id, answer) => (id, answer),
        Heard::Event(event) => {
            // No receiver is fine: nobody needs to listen.
            let _heard = event.map(|event| events.send(event));
            return true;
        }
        Heard::Unknown(error) => {
            debug!(%guest, %error, "passed over an event of QEMU");
            return true;
        }
        Heard::Unasked => return false,
    };
    let Some(waiter) = lock(waiting).as_mut().and_then(|waiting| waiting.remove(&id)) else { return false };
    if waiter.send(answer).is_err() {
        debug!(%guest, "an answer came after its deadline");
    }
    true
}

fn refusal(line: &Value) -> Refusal {
    let error = line.get("error").unwrap_or(line);
    Refusal::deserialize(error).unwrap_or_else(|_| Refusal { class: "unknown".to_owned(), desc: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestEventKind, MigrationStatus};

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#;

    /// Plays a monitor: greets, then sends `replies[n]` and nothing else for the n-th command; `@` stands for its id.
    async fn monitor(
        replies: &'static [&'static str],
    ) -> (Result<Connection, HypervisorError>, broadcast::Receiver<GuestEvent>) {
        let (near, far) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = far.into_split();
            writer.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
            let mut reader = BufReader::new(reader);
            for reply in replies {
                let Ok(Some(command)) = read_line(&mut reader).await else { return };
                let reply = reply.replace('@', &command["id"].to_string());
                writer.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        let (events, receiver) = broadcast::channel(8);
        (Connection::open(&"g".parse().unwrap(), near, events).await, receiver)
    }

    const OK: &str = "{\"return\": {}, \"id\": @}\r\n";

    #[tokio::test]
    async fn an_answer_finds_its_command_and_events_pass_by_in_order() {
        let (connection, mut events) = monitor(&[
            OK,
            "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 0}, \"event\": \"STOP\"}\r\n\
             {\"timestamp\": {\"seconds\": 1, \"microseconds\": 0}, \"event\": \"NEVER_HEARD_OF\", \"data\": {\"x\": 1}}\r\n\
             {\"timestamp\": {\"seconds\": 1, \"microseconds\": 9}, \"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\r\n\
             {\"return\": {\"running\": false, \"status\": \"paused\", \"singlestep\": false}, \"id\": @}\r\n",
        ])
        .await;
        let status = connection.unwrap().execute(qmp::query_status {}).await.unwrap();
        assert_eq!(status.status, qmp::RunState::paused);
        assert_eq!(events.recv().await.unwrap().kind, GuestEventKind::Stop);
        assert_eq!(events.recv().await.unwrap().kind, GuestEventKind::Migration(MigrationStatus::Active));
    }

    #[tokio::test]
    async fn some_commands_overtake_those_qemu_is_busy_with() {
        let (near, far) = UnixStream::pair().unwrap();
        let asked = tokio::spawn(async move {
            let (reader, mut writer) = far.into_split();
            writer.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
            let mut reader = BufReader::new(reader);
            let mut asked = Vec::new();
            for answers in [&[0_usize][..], &[], &[2, 1]] {
                asked.push(read_line(&mut reader).await.unwrap().unwrap());
                for answer in answers {
                    let line = OK.replace('@', &asked[*answer]["id"].to_string());
                    writer.write_all(line.as_bytes()).await.unwrap();
                }
            }
            asked
        });
        let connection = Connection::open(&"g".parse().unwrap(), near, broadcast::channel(8).0).await.unwrap();
        let past = qmp::yank { instances: Vec::new() };
        let (busy, past) = tokio::join!(connection.execute(qmp::stop {}), connection.execute_past(past));
        busy.unwrap();
        past.unwrap();
        let asked = asked.await.unwrap();
        assert_eq!(asked[0]["arguments"]["enable"][0], "oob", "it must be agreed on first");
        assert_eq!((&asked[1]["execute"], &asked[2]["exec-oob"]), (&"stop".into(), &"yank".into()));
    }

    #[test]
    fn a_monitor_that_does_not_read_on_is_not_asked_to() {
        let greeting = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert!(out_of_band(&greeting(GREETING)));
        assert!(!out_of_band(&greeting(r#"{"QMP": {"version": {}, "capabilities": []}}"#)));
    }

    #[tokio::test]
    async fn a_refusal_names_guest_command_class_and_reason() {
        let (connection, _events) =
            monitor(&[OK, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}, \"id\": @}\r\n"])
                .await;
        let error = connection.unwrap().execute(qmp::cont {}).await.unwrap_err().to_string();
        for part in ["guest g", "cont", "no such thing", "GenericError"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn a_late_answer_is_dropped_and_the_connection_lives() {
        let (connection, _events) =
            monitor(&[OK, "", "{\"return\": {}, \"id\": 1}\r\n{\"return\": {}, \"id\": @}\r\n"]).await;
        let connection = connection.unwrap();
        let late = connection.execute_within(qmp::stop {}, Duration::from_millis(20)).await;
        assert!(matches!(late, Err(HypervisorError::Deadline { command: "stop", .. })), "{late:?}");
        connection.execute(qmp::cont {}).await.unwrap();
    }

    #[tokio::test]
    async fn a_line_without_end_or_of_endless_depth_ends_the_connection_and_not_the_agent() {
        for hostile in ["x".repeat(usize::try_from(LINE_MAX).unwrap() + 1), format!("{}\n", "[".repeat(100_000))] {
            let (near, far) = UnixStream::pair().unwrap();
            let monitor = tokio::spawn(async move {
                let (reader, mut writer) = far.into_split();
                writer.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
                let _capabilities = read_line(&mut BufReader::new(reader)).await;
                // The connection may be closed before all is written.
                let _sent = writer.write_all(hostile.as_bytes()).await;
            });
            let (events, _receiver) = broadcast::channel(8);
            let opened = Connection::open(&"g".parse().unwrap(), near, events).await;
            assert!(matches!(opened, Err(HypervisorError::Gone { .. })), "{opened:?}");
            monitor.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_its_command() {
        let (near, far) = UnixStream::pair().unwrap();
        let (connection, _events) = {
            let (events, receiver) = broadcast::channel(8);
            let monitor = tokio::spawn(async move {
                let (reader, mut writer) = far.into_split();
                let mut reader = BufReader::new(reader);
                writer.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
                let hello = read_line(&mut reader).await.unwrap().unwrap();
                writer.write_all(OK.replace('@', &hello["id"].to_string()).as_bytes()).await.unwrap();
                (reader.into_inner(), writer)
            });
            let connection = Connection::open(&"g".parse().unwrap(), near, events).await.unwrap();
            let (reader, mut writer) = monitor.await.unwrap();
            tokio::spawn(async move {
                let socket: &UnixStream = reader.as_ref();
                let received = socket.async_io(Interest::READABLE, || {
                    let (mut bytes, mut space) = ([0; 256], nix::cmsg_space!(std::os::fd::RawFd));
                    let mut into = [std::io::IoSliceMut::new(&mut bytes)];
                    let message = nix::sys::socket::recvmsg::<()>(
                        socket.as_raw_fd(),
                        &mut into,
                        Some(&mut space),
                        MsgFlags::MSG_CMSG_CLOEXEC,
                    )?;
                    Ok(message.cmsgs()?.count())
                });
                assert_eq!(received.await.unwrap(), 1, "one descriptor");
                writer.write_all(OK.replace('@', "1").as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            });
            (connection, receiver)
        };
        let gift: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        connection.execute_with(qmp::getfd { fdname: "gift".to_owned() }, gift).await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_monitor_is_gone_for_those_who_wait_and_those_who_come() {
        let (connection, _events) = monitor(&[OK]).await;
        let connection = connection.unwrap();
        for _ in 0..2 {
            let gone = connection.execute(qmp::stop {}).await;
            assert!(matches!(gone, Err(HypervisorError::Gone { .. })), "{gone:?}");
        }
        assert!(*connection.closed().wait_for(|closed| *closed).await.unwrap());
    }
}
