//! A guest's own agent (qemu-guest-agent's protocol): asked to have the guest's file systems written out, and nothing written to them, for
//! a point's instant.
//!
//! It is the guest's, and may be absent, slow or hostile: what it says is bounded in bytes and in time, and no point waits for one that did
//! not answer a moment ago. A guest that was frozen is thawed whatever becomes of who had it frozen: by [`Frozen::thaw`]; when [`Frozen`] is
//! dropped; and, if its agent daemon ended in between, by the next one, which asks ([`Guest::thaw_what_is_frozen`]).

mod answer;
mod channel;

use std::{sync::atomic::Ordering, time::Duration};

use qapi::qga::{self, GuestFsfreezeStatus};
use tokio::{
    runtime::Handle,
    sync::OwnedMutexGuard,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

pub use self::answer::read_agent_answers;
use self::channel::{AgentError, Channel, DEADLINE};
use crate::Guest;

/// How long the guest may take to write out its file systems.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long an agent that did not answer is let alone, doubled each time up to the longest.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Pauses between tries to thaw a guest, doubled each time up to [`LONGEST_REST`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What is known of a guest's agent; who has it, has the agent to himself.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Nothing is frozen that an agent daemon, this one or one before it, has had frozen.
    is_thawed: bool,
    rest: Option<Rest>,
}

/// It did not answer.
#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    length: Duration,
}

impl Standing {
    fn rests(&self) -> bool {
        self.rest.is_some_and(|rest| Instant::now() < rest.until)
    }

    /// It did not answer, once more; `true`: this is news.
    fn is_silent(&mut self) -> bool {
        let is_news = self.rest.is_none();
        let length = self.rest.map_or(FIRST_REST, |rest| (rest.length * 2).min(LONGEST_REST));
        self.rest = Some(Rest { until: Instant::now() + length, length });
        is_news
    }

    /// It answers; `true`: this is news.
    fn answers(&mut self) -> bool {
        self.rest.take().is_some()
    }
}

/// A guest whose file systems are frozen, or may be soon. It is thawed when this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen {
    guest: Guest,
    since: Instant,
    channel: Channel,
    /// Until it is thawed.
    standing: Option<OwnedMutexGuard<Standing>>,
}

impl Frozen {
    /// Thaws it. `true`: it had been frozen until now.
    pub(crate) async fn thaw(mut self) -> bool {
        let thawed = self.channel.execute(qga::guest_fsfreeze_thaw {}, DEADLINE).await;
        let guest = self.guest.name();
        match (thawed, self.standing.take()) {
            (Ok(file_systems), Some(mut standing)) => {
                standing.is_thawed = true;
                debug!(%guest, file_systems, after = ?self.since.elapsed(), "the guest is thawed");
                file_systems > 0
            }
            (Err(error), standing) => {
                warn!(%guest, %error, "its guest agent does not thaw it; it is tried again");
                self.standing = standing;
                false
            }
            (Ok(_), None) => false,
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.standing.take().is_some() {
            // The daemon may be ending.
            self.channel.send_at_once(&qga::guest_fsfreeze_thaw {});
            self.guest.thaw_what_is_frozen();
        }
    }
}

impl Guest {
    /// Has the guest's file systems written out and frozen, if it has an agent that does so. What stands in the way is logged, once.
    pub(crate) async fn freeze(&self) -> Option<Frozen> {
        // Who thaws it has it, or is about to: no point waits for that.
        let mut standing = self.agent().clone().try_lock_owned().ok()?;
        if standing.rests() || self.is_being_thawed().load(Ordering::Acquire) {
            return None;
        }
        let channel = match Channel::open(self.run_dir(), self.pid()).await {
            Ok(channel) => channel?,
            Err(error) => {
                self.does_not_answer(&mut standing, &error);
                return None;
            }
        };
        // From before the command on: it may be carried out though nobody hears of it.
        standing.is_thawed = false;
        let mut frozen = Frozen { guest: self.clone(), since: Instant::now(), channel, standing: Some(standing) };
        let done = frozen.channel.execute(qga::guest_fsfreeze_freeze {}, FREEZE_DEADLINE).await;
        let standing = frozen.standing.as_mut()?;
        match done {
            Ok(file_systems) => {
                debug!(guest = %self.name(), file_systems, after = ?frozen.since.elapsed(), "the guest is frozen");
                if standing.answers() {
                    info!(guest = %self.name(), "its guest agent answers again");
                }
                frozen.since = Instant::now();
                Some(frozen)
            }
            Err(error) => {
                self.does_not_answer(standing, &error);
                None
            }
        }
    }

    /// Has the guest thawed if a daemon had it frozen and did not come to thaw it. Does not wait for it: a guest's agent may take its time, or
    /// be none. It is asked for as long as the guest runs, until it says that nothing is frozen; does nothing while it is being asked.
    pub fn thaw_what_is_frozen(&self) {
        let runtime = match Handle::try_current() {
            Ok(runtime) => runtime,
            Err(_) => return warn!(guest = %self.name(), "its guest agent is not asked to thaw it: the daemon ends"),
        };
        if self.is_being_thawed().swap(true, Ordering::AcqRel) {
            return;
        }
        let guest = self.clone();
        runtime.spawn(async move {
            let mut pause = FIRST_PAUSE;
            let asked = async {
                while !guest.try_to_thaw().await {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_REST);
                }
            };
            tokio::select! {
                () = asked => {}
                _ = guest.wait_exit() => {}
            }
            guest.is_being_thawed().store(false, Ordering::Release);
        });
    }

    /// `true`: nothing is frozen.
    async fn try_to_thaw(&self) -> bool {
        let mut standing = self.agent().clone().lock_owned().await;
        if standing.is_thawed {
            return true;
        }
        let thawed = async {
            let Some(mut channel) = Channel::open(self.run_dir(), self.pid()).await? else { return Ok(false) };
            // It answers this when a freeze that was under way is over, however that ended.
            let status = channel.execute(qga::guest_fsfreeze_status {}, DEADLINE).await?;
            let is_frozen = status == GuestFsfreezeStatus::frozen;
            if is_frozen {
                channel.execute(qga::guest_fsfreeze_thaw {}, DEADLINE).await?;
            }
            Ok(is_frozen)
        };
        match thawed.await {
            Ok(was_frozen) => {
                standing.is_thawed = true;
                standing.answers();
                if was_frozen {
                    info!(guest = %self.name(), "the guest is thawed: whoever had it frozen did not come to it");
                }
                true
            }
            Err(error) => {
                self.does_not_answer(&mut standing, &error);
                false
            }
        }
    }

    fn does_not_answer(&self, standing: &mut Standing, error: &AgentError) {
        if standing.is_silent() {
            warn!(guest = %self.name(), %error, "its guest agent is of no help; its points are as after a power cut until it is");
        } else {
            debug!(guest = %self.name(), %error, "its guest agent is of no help still");
        }
    }
}
