//! Pings from the peer to any number of a guest's addresses; its kernel answers, whatever else it does.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use throughline_probe::ping::Pinger;

use crate::lab::{Lab, wait_for};

/// How long the guest may take to boot and answer.
const BOOT: Duration = Duration::from_secs(60);
/// What has not been answered this long after the window's last ping is lost.
const DRAIN: Duration = Duration::from_millis(1500);

/// A pinging session; its windows follow each other without a gap.
pub(crate) struct Pings {
    pinged: Vec<Pinged>,
    stop: Arc<AtomicBool>,
}

struct Pinged {
    address: IpAddr,
    pinger: Arc<Pinger>,
    mark: u64,
}

impl Pings {
    /// Pings each address `rate` times a second; the first window begins when all have answered.
    pub(crate) fn start(lab: &Lab, addresses: &[&str], rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = |(number, address): (usize, &&str)| {
            let address: IpAddr = address.parse().unwrap();
            Pinged { address, pinger: Pinger::start(address, 0x7000 + number as u32, rate, &stop).unwrap(), mark: 0 }
        };
        let mut pinged: Vec<_> = lab.inside("peer", || addresses.iter().enumerate().map(begin).collect());
        for Pinged { address, pinger, mark } in &mut pinged {
            wait_for(&format!("{address} answers"), BOOT, || {
                (pinger.answers.summarise(0..pinger.next()).arrived > 0).then_some(())
            });
            *mark = pinger.next();
        }
        Self { pinged, stop }
    }

    /// Ends a window and begins the next; every ping of it must have been answered once and in order. Returns how many.
    #[track_caller]
    pub(crate) fn assert_answered(&mut self, what: &str) -> u64 {
        let ends: Vec<_> = self.pinged.iter().map(|it| it.pinger.next()).collect();
        thread::sleep(DRAIN);
        let mut sent = 0;
        for (Pinged { address, pinger, mark }, end) in self.pinged.iter_mut().zip(ends) {
            let answers = pinger.answers.summarise(std::mem::replace(mark, end)..end);
            assert!(answers.sent > 0, "nothing was sent to {address} while {what}");
            let broken = answers.lost + answers.duplicated + answers.reordered;
            assert_eq!(broken, 0, "{address} while {what}: {answers:?}");
            sent += answers.sent;
        }
        sent
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
