//! A connection to a guest's agent. One at a time: QEMU takes the next when this one has gone.

use std::{io, time::Duration};

use qapi::{Command, Execute, qga};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::answer::{LONGEST, NoAnswer, is_in_step, read, sentinel};
use crate::RunDir;

/// How long it may take to answer, unless told otherwise. One that nobody was connected to looks every tenth of a second.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// Why there is nothing to be had of a guest's agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    #[error("it does not answer {command} within {} s", after.as_secs())]
    Silent { command: &'static str, after: Duration },
    #[error("{command}: {problem}")]
    Answer { command: &'static str, problem: NoAnswer },
    #[error("it cannot be reached: {0}")]
    Channel(#[from] io::Error),
}

/// A connection to an agent that is in step.
#[derive(Debug)]
pub(super) struct Channel(BufReader<UnixStream>);

impl Channel {
    /// Connects, and sees that the agent answers what it is asked now. `None`: the guest was started without a channel.
    pub(super) async fn open(run_dir: &RunDir, qemu: i32) -> Result<Option<Self>, AgentError> {
        let (stream, served_by) = match run_dir.connect_to(RunDir::AGENT_SOCKET).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            connected => connected?,
        };
        if served_by != Some(qemu) {
            return Err(io::Error::other(format!("its socket is served by {served_by:?}, and not by QEMU")).into());
        }
        let mut channel = Self(BufReader::new(stream));
        channel.synchronise().await?;
        Ok(Some(channel))
    }

    /// Whatever was asked by whoever was connected before may be answered now.
    async fn synchronise(&mut self) -> Result<(), AgentError> {
        let id = i64::from(rand::random::<u32>());
        let command = qga::guest_sync_delimited::NAME;
        let in_step = async {
            self.0.write_all(&sentinel()).await?;
            self.send(&qga::guest_sync_delimited { id }).await?;
            let mut budget = LONGEST;
            while !is_in_step(&self.line(command, &mut budget).await?, id) {}
            Ok(())
        };
        timeout(DEADLINE, in_step).await.map_err(|_| AgentError::Silent { command, after: DEADLINE })?
    }

    /// Has it carry out a command within `deadline`. After an error it may do so later, and this connection is of no use any more.
    pub(super) async fn execute<C: Command>(&mut self, command: C, after: Duration) -> Result<C::Ok, AgentError> {
        let answered = async {
            self.send(&command).await?;
            let line = self.line(C::NAME, &mut LONGEST.clone()).await?;
            read::<C>(&line).map_err(|problem| AgentError::Answer { command: C::NAME, problem })
        };
        timeout(after, answered).await.map_err(|_| AgentError::Silent { command: C::NAME, after })?
    }

    /// Has it carry out a command, though nobody is there any more to hear whether it did.
    pub(super) fn send_at_once<C: Command>(&self, command: &C) {
        let _sent = written(command).and_then(|line| self.0.get_ref().try_write(&line));
    }

    async fn send<C: Command>(&mut self, command: &C) -> io::Result<()> {
        self.0.write_all(&written(command)?).await
    }

    /// The next line, if it is no longer than what is left to be read.
    async fn line(&mut self, command: &'static str, budget: &mut u64) -> Result<Vec<u8>, AgentError> {
        let mut line = Vec::new();
        (&mut self.0).take(*budget).read_until(b'\n', &mut line).await?;
        *budget -= line.len() as u64;
        if line.is_empty() && *budget > 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if !line.ends_with(b"\n") {
            return Err(AgentError::Answer { command, problem: NoAnswer::Garbage });
        }
        Ok(line)
    }
}

fn written<C: Command>(command: &C) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Execute::<&C>::with_command(command))?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;

    /// Connects to whoever serves the socket as `guest` does.
    async fn open(
        test: &str,
        guest: impl FnOnce(UnixListener) + Send + 'static,
    ) -> Result<Option<Channel>, AgentError> {
        let dir = std::env::temp_dir().join(format!("tl-agent-{}-{test}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let run_dir = RunDir::new(&dir);
        let listener = UnixListener::bind(run_dir.agent_socket()).unwrap();
        let guest = std::thread::spawn(move || guest(listener));
        let opened = Channel::open(&run_dir, std::process::id().cast_signed()).await;
        guest.join().unwrap();
        fs::remove_dir_all(dir).unwrap();
        opened
    }

    #[tokio::test]
    async fn who_says_too_much_is_not_heard_to_the_end() {
        use std::io::Write as _;
        for flood in [&b"x"[..], b"{\"return\": 1}\n", b"\xff"] {
            let opened = open("flood", move |listener| {
                let (mut stream, _) = listener.accept().unwrap();
                // Until the other end has gone.
                while stream.write_all(&flood.repeat(512)).is_ok() {}
            });
            let error = opened.await.expect_err("must be refused");
            assert!(matches!(error, AgentError::Answer { problem: NoAnswer::Garbage, .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn who_hangs_up_is_not_waited_for() {
        let opened = open("hangup", |listener| drop(listener.accept()));
        let error = opened.await.expect_err("must be refused");
        assert!(matches!(error, AgentError::Channel(_)), "{error}");
    }

    #[tokio::test]
    async fn a_guest_without_a_channel_has_none_and_a_strangers_is_not_used() {
        let nowhere = RunDir::new("/nonexistent");
        assert!(Channel::open(&nowhere, 1).await.unwrap().is_none());
        let dir = std::env::temp_dir().join(format!("tl-agent-{}-stranger", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let run_dir = RunDir::new(&dir);
        let _listener = UnixListener::bind(run_dir.agent_socket()).unwrap();
        let refused = Channel::open(&run_dir, 1).await.expect_err("QEMU does not serve it").to_string();
        assert!(refused.contains("not by QEMU"), "{refused}");
        fs::remove_dir_all(dir).unwrap();
    }
}
