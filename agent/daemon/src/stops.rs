//! Guests that are to stop: asked to shut down, waited for, cut off if that was ordered, and noted as stopped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use throughline_cutover::{GuestName, Stop};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{host::Host, lock::lock, resident::Resident};

/// How often a guest is asked to shut down: one that was booting has not heard it.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How soon a journal that could not be written is written again.
const NOTE_AGAIN: Duration = Duration::from_secs(1);

/// Guests that are to stop, by name.
#[derive(Debug, Default)]
pub struct Stops(Mutex<HashMap<GuestName, Stopping>>);

#[derive(Debug)]
struct Stopping {
    how: watch::Sender<Stop>,
    /// Past withdrawing.
    ending: bool,
}

impl Stops {
    /// Whether that guest is to stop.
    pub fn concern(&self, guest: &GuestName) -> bool {
        lock(&self.0).contains_key(guest)
    }

    /// That guest is to run after all, unless it is past that. What it was asked it may still do.
    pub fn withdraw(&self, guest: &GuestName) {
        let mut stops = lock(&self.0);
        if stops.get(guest).is_some_and(|it| !it.ending) {
            stops.remove(guest);
        }
    }

    /// Says how to somebody who waits already; else, whom to say it to.
    fn say(&self, guest: &GuestName, stop: Stop) -> Option<watch::Receiver<Stop>> {
        let mut stops = lock(&self.0);
        if let Some(stopping) = stops.get(guest) {
            stopping.how.send_if_modified(|how| std::mem::replace(how, stop) != stop);
            return None;
        }
        let (how, hear) = watch::channel(stop);
        stops.insert(guest.clone(), Stopping { how, ending: false });
        Some(hear)
    }

    /// It ends now; false: it was withdrawn.
    fn begin_to_end(&self, guest: &GuestName) -> bool {
        lock(&self.0).get_mut(guest).is_some_and(|stopping| {
            stopping.ending = true;
            true
        })
    }

    fn forget(&self, guest: &GuestName) {
        lock(&self.0).remove(guest);
    }
}

impl Host {
    /// Stops a guest that lives here. Returns at once.
    pub fn stop(self: &Arc<Self>, resident: Arc<Resident>, stop: Stop) {
        let Some(hear) = self.stops.say(&resident.spec.name, stop) else { return };
        info!(guest = %resident.spec.name, cut_after_ms = ?stop.cut_after_ms, "is to stop");
        tokio::spawn(see_off(self.clone(), resident, hear));
    }
}

async fn see_off(host: Arc<Host>, resident: Arc<Resident>, mut hear: watch::Receiver<Stop>) {
    let name = &resident.spec.name;
    loop {
        let stop = *hear.borrow_and_update();
        tokio::select! {
            () = time_is_up(&resident, stop) => break,
            // Told otherwise, or withdrawn.
            told = hear.changed() => if told.is_err() { return },
        }
    }
    if !host.stops.begin_to_end(name) {
        return;
    }
    // Noted first: a guest that is missing without that counts as lost.
    note_stopped(&host, name).await;
    if let Err(error) = resident.vm.quit().await {
        warn!(%error, guest = %name, "the QEMU of a guest that is to stop did not end");
    }
    host.move_out(name).await;
    host.stops.forget(name);
    info!(guest = %name, "stopped");
    host.look_again.notify_one();
}

/// Returns when the guest has shut down, or has had the time it was given for it.
async fn time_is_up(resident: &Resident, stop: Stop) {
    let grace = stop.cut_after_ms.map(|ms| Duration::from_millis(ms.into()));
    if grace == Some(Duration::ZERO) {
        return;
    }
    let shuts_down = async {
        loop {
            if let Err(error) = resident.vm.power_down().await {
                warn!(%error, guest = %resident.spec.name, "cannot be asked to shut down");
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

async fn note_stopped(host: &Arc<Host>, guest: &GuestName) {
    loop {
        let (journal, name) = (host.journal.clone(), guest.clone());
        let noted = tokio::task::spawn_blocking(move || journal.note_power(&name, false)).await;
        match noted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => warn!(%error, %guest, "its stop waits until that can be noted"),
            Err(panicked) => warn!(%panicked, %guest, "its stop waits until that can be noted"),
        }
        sleep(NOTE_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_for_a_guest_and_hears_what_is_ordered() {
        let (stops, web_1) = (Stops::default(), "web-1".parse().unwrap());
        let [asked, cut] = [None, Some(0)].map(|cut_after_ms| Stop { cut_after_ms });
        let mut hear = stops.say(&web_1, asked).expect("nobody waits yet");
        assert!(stops.say(&web_1, asked).is_none() && !hear.has_changed().unwrap(), "the same again");
        assert!(stops.say(&web_1, cut).is_none() && *hear.borrow_and_update() == cut);
        stops.withdraw(&web_1);
        assert!(hear.has_changed().is_err() && !stops.concern(&web_1), "withdrawn");
        assert!(!stops.begin_to_end(&web_1), "and does not end");

        let hear = stops.say(&web_1, asked).expect("anew");
        assert!(stops.begin_to_end(&web_1));
        stops.withdraw(&web_1);
        assert!(stops.concern(&web_1) && hear.has_changed().is_ok(), "past withdrawing");
        stops.forget(&web_1);
        assert!(!stops.concern(&web_1));
    }
}
