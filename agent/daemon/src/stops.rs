//! Guests that are to stop: asked to shut down, waited for, cut off if that was ordered, and noted as stopped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use throughline_cutover::{GuestName, Stop};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    host::Host,
    journal::{Journal, JournalError},
    lock::lock,
    resident::Resident,
};

/// How often a guest is asked to shut down: one that was booting has not heard it.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Guests that are to stop, by name.
#[derive(Debug, Default)]
pub struct Stops(Mutex<HashMap<GuestName, Stopping>>);

#[derive(Debug)]
struct Stopping {
    how: watch::Sender<Stop>,
    /// Past withdrawing.
    ending: bool,
}

/// What whoever waits for one guest's end has of it.
#[derive(Debug)]
struct Watch {
    guest: GuestName,
    hear: watch::Receiver<Stop>,
}

impl Stops {
    /// Whether that guest is to stop.
    pub fn concern(&self, guest: &GuestName) -> bool {
        lock(&self.0).contains_key(guest)
    }

    /// That guest is to run after all, or is ended otherwise; what it was asked it may still do. False: it is past that, and when it has
    /// stopped it is looked again.
    pub fn withdraw(&self, guest: &GuestName) -> bool {
        let mut stops = lock(&self.0);
        let ending = stops.get(guest).is_some_and(|it| it.ending);
        if !ending {
            stops.remove(guest);
        }
        !ending
    }

    /// Says how to somebody who waits already; else, whom to say it to.
    fn say(&self, guest: &GuestName, stop: Stop) -> Option<Watch> {
        let mut stops = lock(&self.0);
        if let Some(stopping) = stops.get(guest) {
            stopping.how.send_if_modified(|how| std::mem::replace(how, stop) != stop);
            return None;
        }
        let (how, hear) = watch::channel(stop);
        stops.insert(guest.clone(), Stopping { how, ending: false });
        Some(Watch { guest: guest.clone(), hear })
    }

    /// It ends now; false: it was withdrawn. A later stop of a guest of that name is another's.
    fn begin_to_end(&self, watch: &Watch) -> bool {
        let mut stops = lock(&self.0);
        // The sender goes with the entry.
        let mine = watch.hear.has_changed().is_ok();
        stops.get_mut(&watch.guest).filter(|_| mine).is_some_and(|stopping| {
            stopping.ending = true;
            true
        })
    }

    fn forget(&self, watch: &Watch) {
        lock(&self.0).remove(&watch.guest);
    }
}

impl Host {
    /// Stops a guest that lives here. Returns at once.
    pub fn stop(self: &Arc<Self>, resident: Arc<Resident>, stop: Stop) {
        let Some(watch) = self.stops.say(&resident.spec.name, stop) else { return };
        info!(guest = %resident.spec.name, cut_after_ms = ?stop.cut_after_ms, "is to stop");
        tokio::spawn(see_off(self.clone(), resident, watch));
    }
}

async fn see_off(host: Arc<Host>, resident: Arc<Resident>, mut watch: Watch) {
    loop {
        let stop = *watch.hear.borrow_and_update();
        tokio::select! {
            () = time_is_up(&host, &resident, stop) => break,
            // Told otherwise, or withdrawn.
            told = watch.hear.changed() => if told.is_err() { return },
        }
    }
    if host.stops.begin_to_end(&watch) {
        end(&host, resident, watch).await;
    }
}

/// Sees a guest off that has shut down by itself, if nobody else does. One that was asked to and not waited for any more has stopped as
/// any other; what is wanted of it now, to run above all, is then done as of any that has. One that was never asked is left as it is
/// found.
pub async fn see_off_who_went(host: Arc<Host>, gone: Weak<Resident>) {
    while let Some(resident) = gone.upgrade() {
        let name = resident.spec.name.clone();
        let is_here = host.resident(&name).await.is_some_and(|it| Arc::ptr_eq(&it, &resident));
        match host.journal.find_guest(&name) {
            Ok(Some(owned)) if owned.asked && is_here => {}
            Ok(_) => break,
            Err(error) => {
                warn!(%error, guest = %name, "it shut down; whether it had been asked to cannot be looked up")
            }
        }
        let is_anothers = host.stops.concern(&name) || host.moves.concerns(&name);
        if !is_anothers
            && let Some(watch) = host.stops.say(&name, Stop::default())
            && host.stops.begin_to_end(&watch)
        {
            info!(guest = %name, "shut down after all, as it had been asked to");
            return end(&host, resident, watch).await;
        }
        drop(resident);
        host.look_again.notify_one();
        sleep(AGAIN).await;
    }
    host.look_again.notify_one();
}

/// Notes a guest as stopped, and ends what there is of it.
async fn end(host: &Arc<Host>, resident: Arc<Resident>, watch: Watch) {
    let name = resident.spec.name.clone();
    // Noted first: a guest that is missing without that counts as lost. It has stopped when nothing runs of it, and not before.
    noted(host, &name, "its stop waits until that can be noted", |journal, name| journal.note_power(name, false)).await;
    let turn = host.senders.take_turn(&name).await;
    while let Err(error) = resident.vm.quit().await {
        warn!(%error, guest = %name, "the QEMU of a guest that is to stop has not ended");
        sleep(AGAIN).await;
    }
    host.move_out_this(&resident).await;
    drop(turn);
    // Its devices go with it, and who starts it again finds none.
    drop(resident);
    host.stops.forget(&watch);
    info!(guest = %name, "stopped");
    host.look_again.notify_one();
}

/// Returns when the guest has shut down, or has had the time it was given for it.
async fn time_is_up(host: &Arc<Host>, resident: &Resident, stop: Stop) {
    let grace = stop.cut_after_ms.map(|ms| Duration::from_millis(ms.into()));
    if grace == Some(Duration::ZERO) {
        return;
    }
    let shuts_down = async {
        // Noted first: it may shut down when nobody that knows it was asked is there any more.
        noted(host, &resident.spec.name, "it is asked to shut down when that can be noted", Journal::note_asked).await;
        loop {
            match resident.vm.power_down().await {
                Ok(()) => info!(guest = %resident.spec.name, "its power button was pressed"),
                Err(error) => warn!(%error, guest = %resident.spec.name, "cannot be asked to shut down"),
            }
            if timeout(ASK_AGAIN, resident.vm.wait_exit()).await.is_ok() {
                return;
            }
        }
    };
    match grace {
        None => shuts_down.await,
        Some(grace) => {
            if timeout(grace, shuts_down).await.is_err() {
                warn!(guest = %resident.spec.name, ?grace, "did not shut down in time; its power is cut");
            }
        }
    }
}

/// Returns when it is in the journal.
async fn noted(
    host: &Arc<Host>,
    guest: &GuestName,
    otherwise: &str,
    note: fn(&Journal, &GuestName) -> Result<(), JournalError>,
) {
    loop {
        let (journal, name) = (host.journal.clone(), guest.clone());
        match tokio::task::spawn_blocking(move || note(&journal, &name)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => warn!(%error, %guest, "{otherwise}"),
            Err(panicked) => warn!(%panicked, %guest, "{otherwise}"),
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_for_a_guest_and_hears_what_is_ordered() {
        let (stops, web_1) = (Stops::default(), "web-1".parse().unwrap());
        let [asked, cut] = [None, Some(0)].map(|cut_after_ms| Stop { cut_after_ms });
        let mut first = stops.say(&web_1, asked).expect("nobody waits yet");
        assert!(stops.say(&web_1, asked).is_none() && !first.hear.has_changed().unwrap(), "the same again");
        assert!(stops.say(&web_1, cut).is_none() && *first.hear.borrow_and_update() == cut);
        assert!(stops.withdraw(&web_1) && first.hear.has_changed().is_err() && !stops.concern(&web_1), "withdrawn");
        assert!(!stops.begin_to_end(&first), "and does not end");

        let second = stops.say(&web_1, asked).expect("anew");
        assert!(!stops.begin_to_end(&first), "nor does it end the next one's guest");
        assert!(stops.begin_to_end(&second));
        assert!(!stops.withdraw(&web_1) && stops.concern(&web_1), "past withdrawing");
        stops.forget(&second);
        assert!(stops.withdraw(&web_1) && !stops.concern(&web_1));
    }
}
