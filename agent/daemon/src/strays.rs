//! What came to this host's carry tunnel uncalled is told in the log: somebody probes it, or a host is misconfigured.

use std::{sync::Arc, time::Duration};

use throughline_loader::Strays;
use tracing::warn;

use crate::host::Host;

/// How often it is looked. One line a look, however many frames came.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Watches for the agent's life.
pub async fn watch(host: Arc<Host>) {
    let mut told = Strays::default();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        look.tick().await;
        match host.datapath.strays() {
            Ok(counted) => tell(&mut told, counted),
            // The counters are pinned with all that moves need; who opens the next port says what is wrong with them.
            Err(error) => warn!(%error, "frames that came to the carry tunnel uncalled are not counted"),
        }
    }
}

/// Says what came since the last time, and no more until more comes.
fn tell(told: &mut Strays, counted: Strays) {
    if let Some(more) = more(*told, counted) {
        warn!(
            unknown_id = more.unknown_id,
            without_key = more.without_key,
            "frames that belong to no move came to the carry tunnel (UDP 4790) and were dropped; only the fabric's hosts \
             should reach it"
        );
    }
    *told = counted;
}

/// What is new. Counters of an earlier agent are told once more by its successor.
fn more(told: Strays, counted: Strays) -> Option<Strays> {
    let more = Strays {
        without_key: counted.without_key.saturating_sub(told.without_key),
        unknown_id: counted.unknown_id.saturating_sub(told.unknown_id),
    };
    (more != Strays::default()).then_some(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_told_once() {
        let strays = |without_key, unknown_id| Strays { without_key, unknown_id };
        assert_eq!(more(Strays::default(), Strays::default()), None);
        assert_eq!(more(strays(1, 2), strays(1, 5)), Some(strays(0, 3)));
        assert_eq!(more(strays(1, 5), strays(1, 5)), None);
    }
}
