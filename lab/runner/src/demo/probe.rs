//! One probe: a question is a line to its standard input, an answer a line of JSON.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use crate::signals;

/// How long a probe that has closed its output may take to end.
const END: Duration = Duration::from_secs(1);

/// A probe that runs.
#[derive(Debug)]
pub(crate) struct Probe {
    /// Who it is, for messages.
    name: String,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    words: Words,
}

impl Probe {
    /// Starts it, and waits until it is ready.
    pub(crate) fn start(name: String, mut command: Command, patience: Duration) -> Result<Self> {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().with_context(|| format!("cannot start {name}"))?;
        let (Some(questions), Some(answers), Some(said)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all were asked for")
        };
        let words = Words::listen(name.clone(), said);
        let mut probe = Self { name, child, questions, answers: BufReader::new(answers), words };
        let ready: String = probe.answer(patience)?;
        ensure!(ready == "ready", "{} began with {ready:?}", probe.name);
        Ok(probe)
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, question: &str, patience: Duration) -> Result<T> {
        self.tell(question).and_then(|()| self.answer(patience)).with_context(|| format!("no answer to {question:?}"))
    }

    /// Asks, and leaves the answer to [`Probe::answer`].
    pub(crate) fn tell(&mut self, question: &str) -> Result<()> {
        // A pipe to nobody is all that can make writing fail.
        writeln!(self.questions, "{question}").map_err(|_| self.ended())
    }

    /// Waits for an answer.
    pub(crate) fn answer<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<T> {
        let deadline = Instant::now() + patience;
        while !self.has_answer()? {
            signals::check()?;
            let (name, words) = (&self.name, &self.words);
            ensure!(Instant::now() < deadline, "{name} did not answer within {patience:?}; {}", words.last());
        }
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(self.ended());
        }
        serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))
    }

    /// Waits a little for an answer (or the probe's end) so that signals are noticed meanwhile.
    fn has_answer(&self) -> Result<bool> {
        let mut answers = [PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN)];
        match poll(&mut answers, PollTimeout::from(100u16)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What there is to say of a probe that has closed its output.
    fn ended(&mut self) -> Error {
        let deadline = Instant::now() + END;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                Ok(None) => break "closed its output, but still runs".to_owned(),
                Ok(Some(status)) => {
                    self.words.finish();
                    break format!("ended with {status}");
                }
                Err(error) => break format!("ended, its status is unknown ({error})"),
            }
        };
        anyhow!("{} {status}; {}", self.name, self.words.last())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Both only fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a probe says on its standard error: shown at once, and the last of it kept.
#[derive(Debug)]
struct Words {
    last: Arc<Mutex<VecDeque<String>>>,
    listener: Option<JoinHandle<()>>,
}

impl Words {
    /// Lines kept.
    const KEPT: usize = 20;

    fn listen(name: String, said: impl Read + Send + 'static) -> Self {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let kept = last.clone();
        let listener = thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                eprintln!("{name}: {line}");
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                let surplus = kept.len().saturating_sub(Self::KEPT);
                kept.drain(..surplus);
            }
        });
        Self { last, listener: Some(listener) }
    }

    /// Waits for the end of what an ended probe has said.
    fn finish(&mut self) {
        // It only fails if the listener panicked; what it kept until then is still there.
        let _ = self.listener.take().map(JoinHandle::join);
    }

    fn last(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_empty() {
            return "it said nothing".to_owned();
        }
        last.iter().fold("its last words:".to_owned(), |text, line| format!("{text}\n    {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Probe> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Probe::start("the probe on h1".to_owned(), command, Duration::from_secs(5))
    }

    #[test]
    fn one_that_answers() {
        let mut probe = shell(r#"echo '"ready"'; read question; echo 7; read question"#).unwrap();
        assert_eq!(probe.ask::<u32>("mark", Duration::from_secs(5)).unwrap(), 7);
    }

    #[test]
    fn one_that_ends_is_named_with_its_status_and_last_words() {
        let script = r#"echo '"ready"'; read question; seq 30 >&2; echo "the guest refused" >&2; exit 3"#;
        let error = shell(script).unwrap().ask::<u32>("mark", Duration::from_secs(5)).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("the probe on h1 ended with exit status: 3"), "{text}");
        assert!(text.ends_with("    30\n    the guest refused") && !text.contains("    5\n"), "{text}");
    }

    #[test]
    fn one_that_is_silent_is_given_up() {
        let mut probe = shell(r#"echo '"ready"'; exec sleep 60"#).unwrap();
        let error = probe.ask::<u32>("mark", Duration::from_millis(200)).unwrap_err();
        assert!(
            format!("{error:#}").contains("the probe on h1 did not answer within 200ms; it said nothing"),
            "{error:#}"
        );
    }
}
