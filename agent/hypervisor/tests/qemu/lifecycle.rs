//! Guests start, are taken back after their agent died, and go without a trace.

use std::{fs, time::Duration};

use crate::harness::{in_lab, inject, name_of, nic, nic_with_queues, qemus, read_frames, ticks, ticks_past};
use nix::sys::signal::{Signal, kill};
use throughline_cutover::PortId;
use throughline_hypervisor::{FdRole, GuestEventKind, HypervisorError, RunState};

#[test]
fn boots_and_stops_and_goes_on_at_command() {
    in_lab("boot", |lab| async move {
        let started = std::time::Instant::now();
        let guest = lab.launch(lab.plan("a", "", false)).await.unwrap();
        println!("monitor after {:?}", started.elapsed());
        ticks_past(&guest, 0).await;
        println!("guest counts after {:?}", started.elapsed());
        let log = fs::read_to_string(guest.run_dir().serial_log()).unwrap();
        assert!(log.contains("throughline-guest-up"), "{log}");

        let mut events = guest.events();
        guest.stop().await.unwrap();
        assert_eq!(events.try_recv().unwrap().kind, GuestEventKind::Stop, "the event is there when stop returns");
        assert_eq!(guest.run_state().await.unwrap(), RunState::Paused);
        let stood = ticks(&guest).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(ticks(&guest).unwrap() <= stood + 1, "it counted while stopped");
        guest.cont().await.unwrap();
        assert_eq!(guest.run_state().await.unwrap(), RunState::Running);
        ticks_past(&guest, stood + 3).await;
        guest.announce().await.unwrap();

        let occupied = lab.launch(lab.plan("a", "", false)).await;
        assert!(matches!(occupied, Err(HypervisorError::Occupied { .. })), "{occupied:?}");
        assert_eq!(guest.run_state().await.unwrap(), RunState::Running);
        guest.quit().await.unwrap();
    });
}

#[test]
fn quit_leaves_nothing_and_can_be_repeated() {
    in_lab("quit", |lab| async move {
        let guest = lab.counting("a", "").await;
        let mut events = guest.events();
        let exit = guest.quit().await.unwrap();
        assert!(exit.status.unwrap().success(), "{exit}");
        assert!(!guest.run_dir().path().exists());
        assert_eq!(qemus(&lab.dir), []);
        assert!(!fs::exists(format!("/proc/{}", guest.pid())).unwrap(), "reaped");
        let mut last = None;
        while let Ok(Ok(event)) = tokio::time::timeout(Duration::from_secs(1), events.recv()).await {
            last = Some(event.kind);
        }
        assert_eq!(last, Some(GuestEventKind::Exited(exit.clone())), "the end is the last event");
        assert!(matches!(guest.stop().await, Err(HypervisorError::Gone { command: "stop", .. })));
        assert_eq!(guest.quit().await.unwrap(), exit);
        assert!(lab.adopt("g", "a").await.unwrap().is_none());
    });
}

#[test]
fn a_killed_qemu_is_noticed_and_its_place_can_be_used_again() {
    in_lab("killed", |lab| async move {
        let guest = lab.counting("a", "").await;
        kill(nix::unistd::Pid::from_raw(guest.pid()), Signal::SIGKILL).unwrap();
        let exit = guest.wait_exit().await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&exit.status.unwrap()), Some(libc::SIGKILL));
        assert!(guest.run_dir().pid_file().exists(), "a killed QEMU leaves its files");
        assert!(lab.adopt("g", "a").await.unwrap().is_none());
        let again = lab.counting("a", "").await;
        again.quit().await.unwrap();
    });
}

#[test]
fn a_qemu_that_cannot_start_says_why() {
    in_lab("cannot", |lab| async move {
        let mut plan = lab.plan("a", "", false);
        plan.boot.kernel = "/nonexistent/vmlinuz".to_owned();
        let error = lab.launch(plan).await.unwrap_err();
        assert!(matches!(error, HypervisorError::Image { .. }), "{error:?}");
        assert!(error.to_string().contains("/nonexistent/vmlinuz"), "{error}");
        let mut plan = lab.plan("a", "", false);
        plan.boot.kernel = "/etc/passwd".to_owned();
        let error = lab.launch(plan).await.unwrap_err();
        assert!(matches!(error, HypervisorError::Died { .. }), "{error:?}");
        assert!(error.to_string().contains("kernel"), "{error}");
        assert_eq!(qemus(&lab.dir), []);
    });
}

#[test]
fn an_adopted_guest_runs_on_and_gives_back_its_rings() {
    in_lab("adopt", |lab| async move {
        let port = PortId::try_from(7_u32).unwrap();
        let (nic, own) = nic(7);
        let mut plan = lab.plan("a", "", false);
        plan.nics.push(nic);
        let guest = lab.launch(plan).await.unwrap();
        ticks_past(&guest, 3).await;
        let (pid, before) = (guest.pid(), ticks(&guest).unwrap());

        // Frames wait in both rings; then the agent dies: its handle, its monitor and its descriptors are gone.
        guest.stop().await.unwrap();
        inject("tap7", 0..300);
        inject("hold7", 1000..1400);
        drop((guest, own));
        tokio::time::sleep(Duration::from_millis(50)).await;

        let stranger = lab.adopt("other", "a").await;
        assert!(matches!(stranger, Err(HypervisorError::NotThatGuest { .. })), "{stranger:?}");
        let guest = lab.adopt("g", "a").await.unwrap().expect("it runs");
        assert_eq!((guest.pid(), guest.run_state().await.unwrap()), (pid, RunState::Paused));
        let tap = guest.take_fd(FdRole::Tap(port)).await.unwrap();
        let hold = guest.take_fd(FdRole::Hold(port)).await.unwrap();
        // A stopped QEMU reads one frame more before it leaves its tap alone.
        let waiting = read_frames(&tap);
        let taken = waiting.first().copied().unwrap_or(300);
        println!("QEMU took {taken} frames while the guest stood");
        assert!(taken <= 1, "{waiting:?}");
        assert_eq!(waiting, (taken..300).collect::<Vec<_>>());
        assert_eq!(read_frames(&hold), (1000..1400).collect::<Vec<_>>());
        let missing = guest.take_fd(FdRole::Hold(PortId::try_from(8_u32).unwrap())).await;
        assert!(matches!(missing, Err(HypervisorError::NoSuchFd { .. })), "{missing:?}");

        guest.cont().await.unwrap();
        ticks_past(&guest, before + 3).await;
        let exit = guest.quit().await.unwrap();
        println!("adopted guest ended: {exit}");
        assert_eq!(qemus(&lab.dir), []);
        assert!(lab.adopt("g", "a").await.unwrap().is_none());
    });
}

#[test]
fn an_adopted_guest_gives_back_every_queue() {
    in_lab("queues", |lab| async move {
        let port = PortId::try_from(7_u32).unwrap();
        let mut plan = lab.plan("a", "", false);
        plan.vcpus = 3;
        plan.nics.push(nic_with_queues(7, 3));
        drop(lab.launch(plan).await.unwrap());

        let guest = lab.adopt("g", "a").await.unwrap().expect("it runs");
        for queue in 0..3 {
            let taken = guest.take_fd(FdRole::of_tap(port, queue)).await.unwrap();
            assert_eq!(name_of(&taken), "tap7", "queue {queue}");
        }
        let more = guest.take_fd(FdRole::of_tap(port, 3)).await;
        assert!(matches!(more, Err(HypervisorError::NoSuchFd { .. })), "{more:?}");
        guest.quit().await.unwrap();
    });
}
