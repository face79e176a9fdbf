//! Disks move with their guest, whatever it writes meanwhile.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use throughline_cutover::{DiskBus, DiskFormat, DiskName};
use throughline_hypervisor::{
    DiskProgress, DiskState, Guest, HypervisorError, Invitation, Launch, MigrationStatus, Rest, RunState,
};
use tokio::task::JoinHandle;

use crate::harness::{
    HOST, Lab, PATIENCE, await_status,
    copying::{awaiting, mirror, with_disks},
    hand::{Hand, by_hand},
    image::Image,
    in_lab, ip, seals, ticks, ticks_past,
};

const BANDWIDTH: u64 = 1_250_000_000;
const SIZE_MIB: u64 = 64;

/// A running guest with one raw disk, of which all writes are being marked, and where it may go.
struct Pair {
    image: Image,
    disk: DiskName,
    there: Image,
    source: Guest,
    destination: Guest,
}

/// The disk's first `full` MiB are written.
async fn a_pair(lab: &Lab, full: u64) -> Pair {
    let image = Image::blank(&lab.dir, "a", "root", DiskFormat::Raw, DiskBus::VirtioBlk, SIZE_MIB);
    if full > 0 {
        image.fill(0x31, 0, full);
    }
    let disk = image.name.parse().unwrap();
    let there = image.elsewhere("b", SIZE_MIB);
    let source = with_disks(lab, "a", std::slice::from_ref(&image)).await;
    let destination = awaiting(lab, "b", std::slice::from_ref(&there)).await;
    source.begin_bitmap(&disk).await.unwrap();
    Pair { image, disk, there, source, destination }
}

async fn progress(source: &Guest, disk: &str) -> DiskProgress {
    let all = source.disk_progress().await.unwrap();
    all.into_iter().find(|progress| progress.disk.as_str() == disk).expect("it is being copied")
}

/// Waits for a state of a disk.
async fn until(source: &Guest, disk: &str, wanted: impl Fn(&DiskProgress) -> bool) -> DiskProgress {
    let started = Instant::now();
    loop {
        let progress = progress(source, disk).await;
        if wanted(&progress) {
            return progress;
        }
        assert!(started.elapsed() < PATIENCE, "{progress:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn mirrored(source: &Guest, disk: &str) -> DiskProgress {
    let is_there = |progress: &DiskProgress| match &progress.state {
        DiskState::Copying => false,
        DiskState::Mirrored => true,
        DiskState::Failed(why) => panic!("{why}"),
    };
    let there = until(source, disk, is_there).await;
    let disk = disk.parse().unwrap();
    for _ in 0..2 {
        source.close_rest(&disk).await.expect("nothing of it is in use");
    }
    there
}

fn names(images: &[Image]) -> Vec<DiskName> {
    images.iter().map(|image| image.name.parse().unwrap()).collect()
}

/// Opens memory's stream and comes to where the guest stands.
async fn stand_still(lab: &Lab, source: &Guest, destination: &Guest) {
    let (awaited, invitation) = destination.listen(HOST, HOST, Some(&lab.sealer)).await.unwrap();
    let receiver = destination.clone();
    let received: JoinHandle<_> = tokio::spawn(async move { receiver.receive(awaited).await });
    lab.send(source, &invitation, BANDWIDTH, false).await.unwrap();
    received.await.unwrap().unwrap();
    let mut events = source.events();
    while source.progress().await.unwrap().passes < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    source.let_stop().await.unwrap();
    await_status(&mut events, MigrationStatus::PreSwitchover).await;
}

/// The rest of a move, from where the guest stands.
async fn switch_over(source: &Guest, destination: &Guest, images: &[Image]) {
    let mut arrived = destination.events();
    let left = ticks(source).unwrap();
    let began = Instant::now();
    source.end_mirrors(&names(images)).await.expect("end");
    let ended = began.elapsed();
    destination.close_disks().await.expect("close");
    println!("mirrors ended in {ended:?}, exports closed {:?} later", began.elapsed() - ended);
    source.continue_switchover().await.unwrap();
    await_status(&mut arrived, MigrationStatus::Completed).await;
    destination.cont().await.unwrap();
    ticks_past(destination, left + 3).await;
    assert_eq!(source.run_state().await.unwrap(), RunState::PostMigrate);
}

/// Writes here and there through the guest's devices for a while.
fn scribble(images: Vec<Image>, seed: u8) -> impl FnOnce(&mut Hand) + Send + 'static {
    move |hand| {
        for step in 0..60_u64 {
            let image = &images[usize::try_from(step).unwrap() % images.len()];
            let offset = (step * 7_919 + u64::from(seed) * 104_729) % (SIZE_MIB * 1024) * 1024 / 4096 * 4096;
            let length = [512, 4096, 65_536][usize::try_from(step / 2).unwrap() % 3];
            hand.write(&image.device(), seed.wrapping_add(u8::try_from(step).unwrap()), offset, length);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn disks_move_with_their_guest_and_back_while_it_writes() {
    in_lab("disks", |lab| async move {
        let root = Image::blank(&lab.dir, "a", "root", DiskFormat::Qcow2, DiskBus::VirtioBlk, SIZE_MIB);
        let data = Image::blank(&lab.dir, "a", "data", DiskFormat::Raw, DiskBus::VirtioScsi, SIZE_MIB);
        root.fill(0xa1, 3, 9);
        data.fill(0xb1, 20, 8);
        let mut here = [root, data];
        let mut guest = with_disks(&lab, "a", &here).await;
        // The second time what was a destination is the source.
        for (from, to) in [("a", "b"), ("b", "c")] {
            let there = here.clone().map(|image| image.elsewhere(to, SIZE_MIB));
            let destination = awaiting(&lab, to, &there).await;
            let [root, data] = &here;
            for (image, rest) in [(root, Rest::Everything), (data, Rest::Marked)] {
                let disk = image.name.parse().unwrap();
                guest.begin_bitmap(&disk).await.unwrap();
                if rest == Rest::Marked {
                    let chart = Image::chart(&lab.dir, SIZE_MIB, &[(20, 8)]);
                    guest.merge_chart(&disk, chart.into()).await.unwrap();
                }
                mirror(&lab, &guest, &destination, image, rest, 8 << 20).await;
            }
            guest = by_hand(&lab, guest, from, scribble(here.to_vec(), 1)).await;
            assert_eq!(progress(&guest, "root").await.state, DiskState::Copying, "it was written to meanwhile");
            println!("{:?}, {:?}", mirrored(&guest, "root").await, mirrored(&guest, "data").await);
            guest = by_hand(&lab, guest, from, scribble(here.to_vec(), 77)).await;
            let asked = Instant::now();
            destination.settle_disks().await.unwrap();
            println!("settled in {:?}", asked.elapsed());
            stand_still(&lab, &guest, &destination).await;
            switch_over(&guest, &destination, &here).await;
            guest.quit().await.unwrap();
            assert!(there[1].allocated_mib() < SIZE_MIB / 2, "{} MiB", there[1].allocated_mib());

            // It can write where it is, and that is what a copy at the source does not have.
            let device = there.clone().map(|image| image.device());
            let write = move |hand: &mut Hand| device.iter().for_each(|device| hand.write(device, 0x5a, 0, 1 << 20));
            guest = by_hand(&lab, destination, to, write).await;
            for image in &here {
                image.fill(0x5a, 0, 1);
            }
            let old = std::mem::replace(&mut here, there);
            if to == "c" {
                guest.quit().await.unwrap();
                for (old, new) in old.iter().zip(&here) {
                    new.assert_equals(old);
                }
                return;
            }
        }
    });
}

/// A whole copy to `side`, and its end.
async fn copy_rest(lab: &Lab, source: &Guest, image: &Image, there: &Image) -> DiskProgress {
    let destination = awaiting(lab, "b", std::slice::from_ref(there)).await;
    mirror(lab, source, &destination, image, Rest::Marked, 0).await;
    let done = mirrored(source, image.name).await;
    source.stop().await.unwrap();
    source.end_mirrors(&names(std::slice::from_ref(image))).await.unwrap();
    destination.close_disks().await.unwrap();
    destination.quit().await.unwrap();
    done
}

#[test]
fn a_cut_stream_fails_the_copy_and_a_second_try_copies_only_what_is_left() {
    in_lab("cut", |lab| async move {
        let Pair { image, disk, there, source, destination } = a_pair(&lab, 32).await;
        source.merge_chart(&disk, Image::chart(&lab.dir, SIZE_MIB, &[(0, 32)]).into()).await.unwrap();
        assert_eq!(source.copy_begun(&disk).await.unwrap(), None, "not all that is left is marked yet");
        mirror(&lab, &source, &destination, &image, Rest::Marked, 16 << 20).await;
        source.name_copy(&disk, "c-1").await.unwrap();
        let first = until(&source, "root", |progress| progress.copied >= 8 << 20).await;
        assert_eq!((first.total, &first.state), (32 << 20, &DiskState::Copying));

        for seal in seals(destination.run_dir().path()) {
            kill(seal, Signal::SIGKILL).unwrap();
        }
        let failed = until(&source, "root", |progress| matches!(progress.state, DiskState::Failed(_))).await;
        println!("cut: {failed:?}");
        // The guest's own writes are not the copy's.
        let device = image.device();
        let source = by_hand(&lab, source, "a", move |hand| hand.write(&device, 0x77, 1 << 20, 4096)).await;
        assert_eq!(source.run_state().await.unwrap(), RunState::Running);
        let not_ended = source.end_mirrors(std::slice::from_ref(&disk)).await.unwrap_err();
        assert!(matches!(not_ended, HypervisorError::Disk { .. }), "{not_ended}");
        source.abandon_mirrors().await.unwrap();
        source.abandon_mirrors().await.unwrap();
        assert!(source.disk_progress().await.unwrap().is_empty());
        destination.quit().await.unwrap();

        assert_eq!(source.copy_begun(&disk).await.unwrap().as_deref(), Some("c-1"));
        let second = copy_rest(&lab, &source, &image, &there).await;
        println!("second try: {second:?}");
        assert!(second.total < (32 << 20) - (6 << 20), "it goes on where the first broke: {second:?}");
        assert!(second.total >= 1 << 16, "with what was written since");
        assert!(there.allocated_mib() <= 33, "{} MiB", there.allocated_mib());
        source.forget_copies().await.unwrap();
        assert_eq!(source.copy_begun(&disk).await.unwrap(), None);
        source.quit().await.unwrap();
        there.assert_equals(&image);
    });
}

#[test]
fn an_undone_switchover_leaves_the_guest_its_disk() {
    in_lab("undone", |lab| async move {
        let image = Image::blank(&lab.dir, "a", "root", DiskFormat::Qcow2, DiskBus::VirtioBlk, SIZE_MIB);
        image.fill(0x31, 0, 16);
        let disk = image.name.parse().unwrap();
        let there = image.elsewhere("b", SIZE_MIB);
        let mut source = with_disks(&lab, "a", std::slice::from_ref(&image)).await;
        source.begin_bitmap(&disk).await.unwrap();
        let mut rest = Rest::Everything;
        // Undone before and after memory's last pages were sent.
        for sent in [false, true] {
            let destination = awaiting(&lab, "b", std::slice::from_ref(&there)).await;
            mirror(&lab, &source, &destination, &image, rest, 0).await;
            println!("{:?}", mirrored(&source, "root").await);
            stand_still(&lab, &source, &destination).await;
            source.end_mirrors(std::slice::from_ref(&disk)).await.unwrap();
            destination.close_disks().await.unwrap();
            if sent {
                let mut arrived = destination.events();
                source.continue_switchover().await.unwrap();
                await_status(&mut arrived, MigrationStatus::Completed).await;
            }
            destination.quit().await.unwrap();
            source.cancel_migration().await.unwrap();
            source.abandon_mirrors().await.unwrap();
            if source.run_state().await.unwrap() != RunState::Running {
                source.cont().await.unwrap();
            }
            let device = image.device();
            source = by_hand(&lab, source, "a", move |hand| hand.write(&device, 0x77, 40 << 20, 1 << 16)).await;
            let seen = ticks(&source).unwrap();
            ticks_past(&source, seen + 3).await;
            rest = Rest::Marked;
        }
        let last = copy_rest(&lab, &source, &image, &there).await;
        assert!(last.total <= 1 << 20, "only what was written since: {last:?}");
        source.quit().await.unwrap();
        there.assert_equals(&image);
    });
}

#[test]
fn a_destination_that_does_not_answer_is_left() {
    in_lab("frozen", |lab| async move {
        let Pair { image, disk, source, destination, .. } = a_pair(&lab, 0).await;
        let frozen = Pid::from_raw(destination.pid());

        // When its disk is asked for.
        let (awaited, invitation) = destination.offer_disk(&disk, HOST, HOST, &lab.sealer).await.unwrap();
        let calling = source.call_disk(&invitation, HOST, &lab.sealer);
        let (admitted, called) = tokio::join!(destination.admit_disk(awaited), calling);
        admitted.unwrap();
        kill(frozen, Signal::SIGSTOP).unwrap();
        let error = source.mirror_disk(&disk, called.unwrap(), Rest::Marked, 0).await.unwrap_err();
        println!("{error}");
        assert!(matches!(error, HypervisorError::Deadline { .. }), "{error}");
        source.abandon_mirrors().await.unwrap();
        kill(frozen, Signal::SIGCONT).unwrap();
        // QEMU waits for who was about to be greeted and is gone, once it hears of it.
        let closed = destination.close_disks().await;
        if !matches!(closed, Err(HypervisorError::Deadline { .. })) {
            closed.unwrap();
        }
        destination.close_disks().await.unwrap();

        // And when its mirror is to end.
        mirror(&lab, &source, &destination, &image, Rest::Marked, 0).await;
        mirrored(&source, "root").await;
        source.stop().await.unwrap();
        kill(frozen, Signal::SIGSTOP).unwrap();
        let error = source.end_mirrors(std::slice::from_ref(&disk)).await.unwrap_err();
        println!("{error}");
        assert!(matches!(error, HypervisorError::Deadline { .. }), "{error}");
        let asked = Instant::now();
        source.abandon_mirrors().await.unwrap();
        println!("abandoned in {:?}", asked.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(1));
        source.cont().await.unwrap();
        let device = image.device();
        let source = by_hand(&lab, source, "a", move |hand| hand.write(&device, 0x77, 0, 4096)).await;
        let seen = ticks(&source).unwrap();
        ticks_past(&source, seen + 3).await;
        kill(frozen, Signal::SIGCONT).unwrap();
        destination.quit().await.unwrap();
        source.quit().await.unwrap();
    });
}

/// TCP would try on for minutes.
#[test]
fn a_link_that_is_dead_delays_a_write_and_no_more() {
    in_lab("deadlink", |lab| async move {
        let Pair { image, there, source, destination, .. } = a_pair(&lab, 0).await;
        mirror(&lab, &source, &destination, &image, Rest::Marked, 0).await;
        mirrored(&source, "root").await;
        ip("link set lo down");
        let device = image.device();
        let write = move |hand: &mut Hand| {
            let began = Instant::now();
            hand.write(&device, 0x77, 0, 4096);
            println!("a write took {:?}", began.elapsed());
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        };
        let source = by_hand(&lab, source, "a", write).await;
        until(&source, "root", |progress| matches!(progress.state, DiskState::Failed(_))).await;
        source.abandon_mirrors().await.unwrap();
        let seen = ticks(&source).unwrap();
        ticks_past(&source, seen + 3).await;
        ip("link set lo up");
        destination.close_disks().await.unwrap();
        destination.quit().await.unwrap();
        // What was not acknowledged there is marked.
        let last = copy_rest(&lab, &source, &image, &there).await;
        assert_eq!(last.total, 1 << 16);
        source.quit().await.unwrap();
        there.assert_equals(&image);
    });
}

#[test]
fn a_disk_is_one_qemus_alone() {
    in_lab("locked", |lab| async move {
        let image = Image::blank(&lab.dir, "a", "root", DiskFormat::Qcow2, DiskBus::VirtioBlk, SIZE_MIB);
        let source = with_disks(&lab, "a", std::slice::from_ref(&image)).await;
        let again = Launch { disks: vec![image.open()], ..lab.plan("b", "", false) };
        let error = lab.launch(again).await.unwrap_err();
        assert!(matches!(error, HypervisorError::Died { .. }) && error.to_string().contains("lock"), "{error}");
        source.quit().await.unwrap();
    });
}

#[test]
fn strangers_at_a_disks_door_get_nothing_and_change_nothing() {
    in_lab("diskdoor", |lab| async move {
        let Pair { image, disk, there, source, destination } = a_pair(&lab, 0).await;
        let (awaited, invitation) = destination.offer_disk(&disk, HOST, HOST, &lab.sealer).await.unwrap();
        let host = destination.clone();
        let admitted = tokio::spawn(async move { host.admit_disk(awaited).await });
        for door in [invitation.mirror.address, invitation.rest.address] {
            let mut stranger = TcpStream::connect(door).unwrap();
            // As a client of NBD begins, and whatever it likes.
            stranger.write_all(&[0; 64]).unwrap();
            stranger.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut said = Vec::new();
            let _broken = stranger.read_to_end(&mut said);
            assert!(said.is_empty(), "it was told {said:?}");
        }
        // Nobody can have the source send its disk in the clear.
        let clear = |invitation: &Invitation| Invitation { sealed: None, ..invitation.clone() };
        let mut plain = invitation.clone();
        (plain.mirror, plain.rest) = (clear(&plain.mirror), clear(&plain.rest));
        let error = source.call_disk(&plain, HOST, &lab.sealer).await.unwrap_err();
        assert!(error.to_string().contains("in the clear"), "{error}");
        assert!(!admitted.is_finished());
        let called = source.call_disk(&invitation, HOST, &lab.sealer).await.unwrap();
        admitted.await.unwrap().unwrap();
        // A second one finds no door.
        assert!(source.call_disk(&invitation, HOST, &lab.sealer).await.is_err());
        source.mirror_disk(&disk, called, Rest::Marked, 0).await.unwrap();
        mirrored(&source, "root").await;
        destination.close_disks().await.unwrap();
        destination.close_disks().await.unwrap();
        // The source learns it when it next writes; the guest does not.
        let device = image.device();
        let source = by_hand(&lab, source, "a", move |hand| hand.write(&device, 0x77, 0, 4096)).await;
        until(&source, "root", |progress| matches!(progress.state, DiskState::Failed(_))).await;
        source.abandon_mirrors().await.unwrap();
        assert!(fs::read(&there.path).unwrap().iter().all(|byte| *byte == 0));
        destination.quit().await.unwrap();
        source.quit().await.unwrap();
    });
}
