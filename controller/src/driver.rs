//! The task that owns the [`Core`], and the way to it. Jobs run one after the other; none of them waits.

use throughline_cutover::Failure;
use throughline_wire::Refusal;
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};

use crate::{core::Core, store::StoreError};

/// Jobs that may wait for their turn; past it callers wait to hand theirs in.
const JOBS: usize = 1024;

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Hands jobs to the driver. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    jobs: mpsc::Sender<Job>,
}

impl Handle {
    /// A handle and the queue the driver reads.
    pub(crate) fn new() -> (Self, Jobs) {
        let (jobs, queue) = mpsc::channel(JOBS);
        (Self { jobs }, Jobs { queue })
    }

    /// Runs a job and returns its result once every change made so far is durable.
    ///
    /// # Errors
    /// The job's own, or [`Refusal::Unavailable`] when the controller is stopping.
    pub(crate) async fn call<T, E>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Refusal>
    where
        T: Send + 'static,
        E: Into<Refusal> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job = move |core: &mut Core| {
            let result = job(core);
            core.when_durable(move |_| {
                // Nobody waits for it any more: the caller went away.
                let _ = answer.send(result);
            });
        };
        self.post(job).await?;
        answered.await.map_err(|_| stopping())?.map_err(Into::into)
    }

    /// As [`Handle::call`], for a job that changes something: only while this controller commands.
    ///
    /// # Errors
    /// The job's own, `STALE_TERM` once this controller has stood down, or [`Refusal::Unavailable`] when it is stopping.
    pub(crate) async fn command<T, E>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Refusal>
    where
        T: Send + 'static,
        E: Into<Refusal> + Send + 'static,
    {
        let job = move |core: &mut Core| {
            core.commands()?;
            job(core).map_err(Into::into)
        };
        self.call::<T, Refusal>(job).await
    }

    /// Hands in a job whose end nobody waits for.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] when the controller is stopping.
    pub(crate) async fn post(&self, job: impl FnOnce(&mut Core) + Send + 'static) -> Result<(), Refusal> {
        self.jobs.send(Box::new(job)).await.map_err(|_| stopping())
    }
}

fn stopping() -> Refusal {
    Refusal::Unavailable(Failure::new("STOPPING", "the controller is stopping; try again when it is back"))
}

/// Jobs in their order.
pub(crate) struct Jobs {
    queue: mpsc::Receiver<Job>,
}

/// Runs until `stop`, when it closes the record, or until the record cannot be written: then what is in memory is not what is on disk, and only a
/// restart from the disk makes them one again.
///
/// Cancel-safe in each branch: receiving and sleeping lose nothing when another branch wins.
pub(crate) async fn run(
    mut core: Core,
    mut jobs: Jobs,
    mut durable: mpsc::UnboundedReceiver<Result<u64, StoreError>>,
    mut stop: oneshot::Receiver<()>,
) -> Result<(), StoreError> {
    core.flush();
    loop {
        let next = core.next_tick().unwrap_or_else(|| Instant::now() + time::Duration::from_secs(3600));
        tokio::select! {
            biased;
            _ = &mut stop => break,
            outcome = durable.recv() => core.became_durable(outcome.unwrap_or(Err(StoreError::WriterStopped))?),
            Some(job) = jobs.queue.recv() => job(&mut core),
            () = time::sleep_until(next) => core.tick(),
        }
        core.flush();
    }
    drop(core);
    // The writer's last commits; then the record is closed.
    while let Some(outcome) = durable.recv().await {
        outcome?;
    }
    Ok(())
}
