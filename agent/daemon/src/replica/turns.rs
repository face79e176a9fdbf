//! Whose turn it is with a guest's disks: a point's, or who moves or ends the guest. The latter do not wait for the former.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// One guest's.
#[derive(Debug)]
pub(super) struct Turn {
    mine: Arc<Mutex<()>>,
    /// How many want it, or have it, that no point may keep waiting.
    wanted: watch::Sender<usize>,
}

/// The turn, until it is dropped: no point is under way, and none is begun.
#[derive(Debug)]
pub struct Taken {
    _mine: OwnedMutexGuard<()>,
    _wanted: Wanted,
}

#[derive(Debug)]
struct Wanted(watch::Sender<usize>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.send_modify(|wanted| *wanted -= 1);
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self { mine: Arc::default(), wanted: watch::Sender::new(0) }
    }
}

impl Turn {
    /// Has a point that is under way given up, and waits for that.
    pub(super) async fn take(&self) -> Taken {
        self.wanted.send_modify(|wanted| *wanted += 1);
        let wanted = Wanted(self.wanted.clone());
        Taken { _mine: self.mine.clone().lock_owned().await, _wanted: wanted }
    }

    /// For a point; `None`: somebody else wants it.
    pub(super) fn try_for_a_point(&self) -> Option<OwnedMutexGuard<()>> {
        let mine = self.mine.clone().try_lock_owned().ok()?;
        (*self.wanted.borrow() == 0).then_some(mine)
    }

    /// Returns when somebody wants it.
    pub(super) async fn is_wanted(&self) {
        let mut wanted = self.wanted.subscribe();
        // The sender is this one's own.
        let _told = wanted.wait_for(|wanted| *wanted > 0).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_wants_the_turn_gets_it_and_no_point_is_begun_meanwhile() {
        let turn = Arc::new(Turn::default());
        let point = turn.try_for_a_point().expect("nobody wants it");
        assert!(turn.try_for_a_point().is_none(), "one point at a time");
        let mover = tokio::spawn({
            let turn = turn.clone();
            async move { turn.take().await }
        });
        tokio::time::timeout(Duration::from_secs(5), turn.is_wanted()).await.expect("the point hears of it");
        drop(point);
        let taken = mover.await.unwrap();
        assert!(turn.try_for_a_point().is_none());
        drop(taken);
        assert!(turn.try_for_a_point().is_some());
    }
}
