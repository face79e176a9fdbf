//! The handle to a running QEMU.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use qapi::{Command, qmp};
use throughline_cutover::GuestName;
use tokio::{
    net::UnixStream,
    sync::{Mutex, broadcast, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use crate::{
    Confinement, Exit, GuestEvent, GuestEventKind, HypervisorError, RunDir, RunState,
    confinement::Cell,
    guest_agent::Standing,
    process::{Process, Watch},
    qmp::Connection,
};

/// Events a slow receiver may be behind before it loses the oldest.
pub(crate) const EVENTS_KEPT: usize = 1024;
/// How long an adopted QEMU's monitor may take to accept: its previous client may just have died.
const ADOPT_DEADLINE: Duration = Duration::from_secs(2);
/// How often it is tried.
const ADOPT_POLL: Duration = Duration::from_millis(5);
/// How long after its end QEMU's last events may take to be read.
const LAST_EVENTS: Duration = Duration::from_millis(200);
/// How long QEMU may take to follow `quit`, then SIGTERM.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a killed QEMU: it frees the guest's RAM.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A guest's QEMU. Cloning gives another handle to the same one; dropping the last leaves QEMU running and closes the
/// monitor, so that it can be adopted again. Must be made and used on one tokio runtime.
#[derive(Debug, Clone)]
pub struct Guest(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: GuestName,
    run_dir: RunDir,
    cell: Cell,
    process: Process,
    qmp: Connection,
    events: broadcast::Sender<GuestEvent>,
    exit: ExitWatch,
    herald: JoinHandle<()>,
    agent: Arc<Mutex<Standing>>,
    /// Somebody asks the guest's own agent to thaw it.
    being_thawed: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.herald.abort();
    }
}

impl Guest {
    pub(crate) fn new(
        name: GuestName,
        run_dir: RunDir,
        cell: Cell,
        process: Process,
        qmp: Connection,
        events: broadcast::Sender<GuestEvent>,
        exit: ExitWatch,
    ) -> Self {
        let herald = tokio::spawn(herald(exit.clone(), qmp.closed(), events.clone()));
        Self(Arc::new(Inner {
            name,
            run_dir,
            cell,
            process,
            qmp,
            events,
            exit,
            herald,
            agent: Arc::default(),
            being_thawed: AtomicBool::new(false),
        }))
    }

    /// Takes back a guest that another agent process started, or this one before it let go. `None` if none runs there.
    ///
    /// QEMU locks its pid file for as long as it lives: the lock says who runs. That process must be a QEMU, of the user and in
    /// the group this guest has, the monitor's socket must be served by it, and it must call itself `name`. Until all that is
    /// known it is not touched, for what lies in the directory may be made up.
    ///
    /// # Errors
    /// [`HypervisorError::NotThatGuest`] if something runs there that is not this guest; it was not touched.
    pub async fn adopt(
        name: GuestName,
        run_dir: RunDir,
        confinement: &Confinement,
    ) -> Result<Option<Self>, HypervisorError> {
        let unusable = |source| HypervisorError::RunDir { guest: name.clone(), path: run_dir.pid_file(), source };
        let Some(pid) = run_dir.owner().map_err(unusable)? else { return Ok(None) };
        let cell = confinement.cell_of(&name, &run_dir).map_err(unusable)?;
        let stranger =
            |why| HypervisorError::NotThatGuest { guest: name.clone(), run_dir: run_dir.path().to_owned(), why };
        let process = Process::open(pid).map_err(|source| HypervisorError::Process {
            guest: name.clone(),
            action: "hold",
            pid,
            source,
        })?;
        // What is read of the process is read while it is held, and it still is the one.
        cell.has(pid).map_err(stranger)?;
        if !process.lives() {
            return Ok(None);
        }
        let (stream, served_by) = reach(&run_dir)
            .await
            .map_err(|error| stranger(format!("process {pid} runs, but its monitor cannot be reached: {error}")))?;
        if served_by != Some(pid) {
            return Err(stranger(format!("process {pid} holds the pid file, {served_by:?} serves the monitor")));
        }
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let qmp = Connection::open(&name, stream, events.clone()).await?;
        let called = qmp.execute(qmp::query_name {}).await?.name.unwrap_or_default();
        if called != name.as_str() {
            return Err(stranger(format!("it is called {called:?}")));
        }
        let watch = process.watch(None).map_err(|source| HypervisorError::Process {
            guest: name.clone(),
            action: "watch",
            pid,
            source,
        })?;
        let exit = watch_exit(watch, run_dir.clone());
        Ok(Some(Self::new(name, run_dir, cell, process, qmp, events, exit)))
    }

    /// Its name.
    pub fn name(&self) -> &GuestName {
        &self.0.name
    }

    /// Its files.
    pub fn run_dir(&self) -> &RunDir {
        &self.0.run_dir
    }

    /// QEMU's process id, for people and metrics; signals go by pidfd.
    pub fn pid(&self) -> i32 {
        self.0.process.pid()
    }

    /// What happens from now on. Subscribe before the command whose events matter. A receiver that falls 1024 events
    /// behind is told that it lost some.
    pub fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.0.events.subscribe()
    }

    /// Whether it runs, and if not why.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn run_state(&self) -> Result<RunState, HypervisorError> {
        Ok(self.execute(qmp::query_status {}).await?.status.into())
    }

    /// Stops the guest's processors. The event [`GuestEventKind::Stop`] is with its receivers when this returns.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn stop(&self) -> Result<(), HypervisorError> {
        self.execute(qmp::stop {}).await.map(drop)
    }

    /// Starts the guest's processors. At a migration's destination this is the commit.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] while QEMU stands in [`RunState::FinishMigrate`].
    pub async fn cont(&self) -> Result<(), HypervisorError> {
        self.execute(qmp::cont {}).await.map(drop)
    }

    /// Asks the guest to shut down, by ACPI's power button. QEMU ends when it has ([`Guest::wait_exit`]); whether it heard is not known.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn power_down(&self) -> Result<(), HypervisorError> {
        self.execute(qmp::system_powerdown {}).await.map(drop)
    }

    /// Lets every network card announce itself once: RARP by QEMU, and GARP and NA by a guest whose driver does so.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn announce(&self) -> Result<(), HypervisorError> {
        let once = qmp::AnnounceParameters { id: None, interfaces: None, initial: 50, max: 100, rounds: 1, step: 50 };
        self.execute(qmp::announce_self(once)).await.map(drop)
    }

    /// From now on [`GuestEventKind::CardChanged`] is told again, once for each card.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn hear_of_cards(&self) -> Result<(), HypervisorError> {
        self.execute(qmp::query_rx_filter { name: None }).await.map(drop)
    }

    /// Ends QEMU, by `quit`, else SIGTERM, else SIGKILL, waits until it has ended, and removes its files. The guest is
    /// not asked. Can be repeated, and finishes the work for a QEMU that ended by itself.
    ///
    /// # Errors
    /// [`HypervisorError::Deadline`] if even SIGKILL did not end it; [`HypervisorError::RunDir`] if its files stay.
    pub async fn quit(&self) -> Result<Exit, HypervisorError> {
        let guest = self.name();
        if let Err(error) = self.0.qmp.execute_within(qmp::quit {}, PATIENCE).await {
            // It may have ended before, or before it could answer.
            debug!(%guest, %error, "QEMU did not acknowledge quit");
        }
        let mut exit = self.exit_within(PATIENCE).await;
        for (signal, patience) in [(Signal::SIGTERM, PATIENCE), (Signal::SIGKILL, KILL_DEADLINE)] {
            if exit.is_none() {
                warn!(%guest, pid = self.pid(), %signal, "QEMU does not end");
                self.0.process.signal(signal).map_err(|source| self.process_error("signal", source))?;
                exit = self.exit_within(patience).await;
            }
        }
        let exit = exit.ok_or_else(|| HypervisorError::Deadline {
            guest: guest.clone(),
            command: "SIGKILL",
            after: KILL_DEADLINE,
        })?;
        self.0.cell.clear().await;
        self.run_dir().remove().map_err(|source| HypervisorError::RunDir {
            guest: guest.clone(),
            path: self.run_dir().path().to_owned(),
            source,
        })?;
        Ok(exit)
    }

    /// Waits until QEMU has ended, however that comes.
    pub async fn wait_exit(&self) -> Exit {
        self.0.exit.ended().await
    }

    pub(crate) async fn execute<C: Command>(&self, command: C) -> Result<C::Ok, HypervisorError> {
        self.0.qmp.execute(command).await
    }

    /// Carries out what QEMU may refuse, for there may be nothing to be done.
    pub(crate) async fn allow_refusal<C: Command>(&self, command: C) -> Result<(), HypervisorError> {
        match self.execute(command).await {
            Ok(_) | Err(HypervisorError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn execute_within<C: Command>(
        &self,
        command: C,
        deadline: Duration,
    ) -> Result<C::Ok, HypervisorError> {
        self.0.qmp.execute_within(command, deadline).await
    }

    /// Carries out a command of the few that do not wait for QEMU's main loop.
    pub(crate) async fn execute_past<C: Command>(&self, command: C) -> Result<C::Ok, HypervisorError> {
        self.0.qmp.execute_past(command).await
    }

    pub(crate) async fn execute_with<C: Command>(
        &self,
        command: C,
        descriptor: OwnedFd,
    ) -> Result<C::Ok, HypervisorError> {
        self.0.qmp.execute_with(command, descriptor).await
    }

    /// Whether somebody asks the guest's own agent to thaw it, and goes on until that is done.
    pub(crate) fn is_being_thawed(&self) -> &AtomicBool {
        &self.0.being_thawed
    }

    /// The guest's own agent.
    pub(crate) fn agent(&self) -> &Arc<Mutex<Standing>> {
        &self.0.agent
    }

    pub(crate) fn cell(&self) -> &Cell {
        &self.0.cell
    }

    pub(crate) fn process(&self) -> &Process {
        &self.0.process
    }

    pub(crate) fn process_error(&self, action: &'static str, source: io::Error) -> HypervisorError {
        HypervisorError::Process { guest: self.name().clone(), action, pid: self.pid(), source }
    }

    async fn exit_within(&self, patience: Duration) -> Option<Exit> {
        timeout(patience, self.wait_exit()).await.ok()
    }
}

/// Connects to an old QEMU's monitor, which serves one client at a time.
async fn reach(run_dir: &RunDir) -> io::Result<(UnixStream, Option<i32>)> {
    let started = Instant::now();
    loop {
        match run_dir.connect().await {
            Err(_) if started.elapsed() < ADOPT_DEADLINE => sleep(ADOPT_POLL).await,
            result => return result,
        }
    }
}

/// Learns of a QEMU's end.
#[derive(Debug, Clone)]
pub(crate) struct ExitWatch(watch::Receiver<Option<Exit>>);

impl ExitWatch {
    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Exit {
        let mut exit = self.0.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            // The watching task only goes away without a word together with its runtime.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// Watches a QEMU to its end and reaps it, whether or not a handle still exists.
pub(crate) fn watch_exit(watch: Watch, run_dir: RunDir) -> ExitWatch {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let status = watch.ended().await.unwrap_or_else(|error| {
            warn!(%error, run_dir = %run_dir.path().display(), "cannot learn how QEMU ended");
            None
        });
        let orderly = status.is_some_and(|status| status.success());
        sender.send_replace(Some(Exit { status, orderly, last_words: run_dir.last_words() }));
    });
    ExitWatch(receiver)
}

/// Makes the end the last event, after all that QEMU itself sent.
async fn herald(exit: ExitWatch, mut closed: watch::Receiver<bool>, events: broadcast::Sender<GuestEvent>) {
    let exit = exit.ended().await;
    let _read_out = timeout(LAST_EVENTS, closed.wait_for(|closed| *closed)).await;
    // No receiver is fine: nobody needs to listen.
    let _heard = events.send(GuestEvent { at: SystemTime::now(), kind: GuestEventKind::Exited(exit) });
}
