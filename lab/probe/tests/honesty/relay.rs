//! A network of a test's own, and relays in it that do to packets what they are told.

use std::net::{SocketAddr, SocketAddrV4};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use throughline_probe::echo::socket;
use throughline_probe::load::flood;
use throughline_probe::packet::Packet;

use crate::ADDRESS;

/// Gives this thread, and those it starts, a network of their own with nothing but a loopback.
pub(crate) fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own needs root");
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2 is installed");
    assert!(status.success());
}

/// What a relay does with a packet on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Deliver,
    Lose,
    Repeat,
    /// Three packets later.
    Delay,
}

pub(crate) fn faithful(_: u64) -> Fate {
    Fate::Deliver
}

pub(crate) fn treacherous(sequence: u64) -> Fate {
    match sequence % 100 {
        10 => Fate::Lose,
        30 | 60 => Fate::Repeat,
        80 => Fate::Delay,
        _ => Fate::Deliver,
    }
}

/// Passes packets on to `target`, the other way round without interference. Returns its port.
pub(crate) fn relay(target: u16, fate: fn(u64) -> Fate) -> u16 {
    // A relay loses what it is told to lose, and nothing while its thread is not let run.
    let [front, back] = [(); 2].map(|()| socket(SocketAddrV4::new(ADDRESS, 0)).unwrap());
    back.connect((ADDRESS, target)).unwrap();
    let port = front.local_addr().unwrap().port();
    let asker = std::sync::Arc::new(std::sync::Mutex::new(None::<SocketAddr>));

    let (answers, answered, asking) = (back.try_clone().unwrap(), front.try_clone().unwrap(), asker.clone());
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok(length) = answers.recv(&mut buffer) {
            let asker = asking.lock().unwrap().expect("an answer follows a question");
            answered.send_to(&buffer[..length], asker).unwrap();
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut delayed: Vec<(u32, u64, Vec<u8>)> = Vec::new();
        while let Ok((length, sender)) = front.recv_from(&mut buffer) {
            *asker.lock().unwrap() = Some(sender);
            let bytes = &buffer[..length];
            let echoed = Packet::decode(bytes).map(|packet| (0, packet.sequence));
            let numbered = echoed.or_else(|| flood::Packet::decode(bytes).map(|packet| (packet.flow, packet.number)));
            let (flow, sequence) = numbered.expect("only probe packets come here");
            let copies = match fate(sequence) {
                Fate::Deliver => 1,
                Fate::Repeat => 2,
                Fate::Lose => 0,
                Fate::Delay => {
                    delayed.push((flow, sequence + 3, bytes.to_vec()));
                    0
                }
            };
            (0..copies).for_each(|_| drop(back.send(bytes)));
            for (_, _, bytes) in delayed.extract_if(.., |(of, due, _)| *of == flow && *due <= sequence) {
                back.send(&bytes).unwrap();
            }
        }
    });
    port
}

/// How many of the first numbers of a window meet a fate, give or take the hundred it was cut in.
pub(crate) fn about(sent: u64, a_hundred: u64, counted: u64) {
    let expected = sent * a_hundred / 100;
    assert!(counted.abs_diff(expected) <= a_hundred, "{counted} of {sent}, not {expected}");
    assert!(counted > 0);
}
