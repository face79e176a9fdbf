//! Nanoseconds `steer` takes a frame, by `BPF_PROG_TEST_RUN`, beside a program that does nothing; and that a port at rest
//! has none.

use std::{
    borrow::Cow,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use throughline_loader::{Datapath, LANE_OF_ALL, Mode, PortHandle};

use crate::{
    report::{Report, Target},
    support::{
        frames::{GUEST, numbered},
        netns::{Netns, ip},
        second_port::at_rest,
        tap::Tap,
        topology::DESTINATION,
    },
};

const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 9;
/// Frames held between two looks at the ring, which takes them all.
const HELD_AT_ONCE: u32 = 30_000;
const RING: u32 = 32_768;

pub(crate) fn measure(report: &mut Report) {
    report.part("steer");
    Netns::new().run(|| {
        ip("link add carry0 type vxlan external dstport 4790 nolearning");
        ip("link set carry0 up");
        let (tap, hold) = (Tap::new("guest0", 1_000), Tap::hold("hold0", RING));
        let datapath = Datapath::load(None).unwrap();
        let programs = || SchedClassifier::query_tcx(&tap.name, TcAttachType::Egress).unwrap().1;
        let mut at_rest_count = vec![programs().len() as f64];
        let port = datapath.open_port(&at_rest(&tap, &hold, 7, DESTINATION, RING - 32)).unwrap();
        let steer = SchedClassifier::from_program_info(programs().remove(0), Cow::Borrowed("steer")).unwrap();

        time(report, &Bench { steer, port: &port, tap: tap.ifindex, hold: &hold });
        let moving = programs().len() as f64;
        port.close().unwrap();
        at_rest_count.push(programs().len() as f64);
        report.row_with_target("programs on the tap of a port at rest", "programs", at_rest_count, Target::AtMost(0.0));
        report.row("programs on the tap of a port on the move", "programs", vec![moving]);
    });
}

struct Bench<'a> {
    steer: SchedClassifier,
    port: &'a PortHandle,
    tap: u32,
    hold: &'a Tap,
}

/// A row: its name, the port's mode, whether frames bear the port's mark.
const CASES: [(&str, Mode, bool); 6] = [
    ("pass", Mode::Pass, false),
    ("mute", Mode::Mute, false),
    ("carry", Mode::Carry, false),
    ("release, nothing in line", Mode::Release, false),
    ("a frame that bears the mark, behind a gate", Mode::Hold, true),
    ("hold, the way into the hold's ring included", Mode::Hold, false),
];

fn time(report: &mut Report, bench: &Bench<'_>) {
    let empty = empty_program();
    let mut harness = Vec::new();
    let mut samples: [Vec<f64>; CASES.len()] = Default::default();
    for _ in 0..ROUNDS {
        harness.push(bench.run(&empty, 0, REPEAT));
        for (samples, (_, mode, marked)) in samples.iter_mut().zip(CASES) {
            bench.port.set_mode(mode);
            let mark = if marked { bench.port.counters().mark } else { 0 };
            samples.push(if mode == Mode::Hold && !marked {
                bench.hold()
            } else {
                bench.run(&bench.steer, mark, REPEAT)
            });
        }
    }
    bench.port.set_mode(Mode::Pass);
    report.row("an empty program, as the harness has it", "ns a frame", harness.clone());
    for ((name, mode, _), samples) in CASES.into_iter().zip(samples) {
        let name = format!("steer: {name}");
        if mode == Mode::Pass {
            let added = samples.iter().zip(&harness).map(|(with, without)| with - without).collect();
            report.row(name, "ns a frame", samples);
            let name = "steer: pass, less the empty program";
            report.row_with_target(name, "ns a frame", added, Target::AtMost(35.0));
        } else {
            report.row(name, "ns a frame", samples);
        }
    }
}

impl Bench<'_> {
    /// Mean of `repeat` runs.
    fn run(&self, program: &SchedClassifier, mark: u32, repeat: u32) -> f64 {
        let frame = numbered(GUEST, 1);
        // `struct __sk_buff`: mark is its third word, ifindex its eleventh.
        let mut context = [0_u8; 192];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[40..44].copy_from_slice(&self.tap.to_ne_bytes());
        let options = TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), repeat, ..TestRunOptions::new() };
        program.test_run(options).unwrap().duration.as_nanos() as f64
    }

    /// As many runs, but the ring has to be emptied on the way.
    fn hold(&self) -> f64 {
        let turns = REPEAT.div_ceil(HELD_AT_ONCE);
        let mut sum = 0.0;
        for _ in 0..turns {
            sum += self.run(&self.steer, 0, HELD_AT_ONCE);
            while self.hold.read().is_some() {}
            assert_eq!(self.port.line(), i64::from(HELD_AT_ONCE), "all were held");
            let length = numbered(GUEST, 1).len() as u32;
            (0..HELD_AT_ONCE).for_each(|_| self.port.subtract_line(LANE_OF_ALL, length));
        }
        sum / f64::from(turns)
    }
}

/// `r0 = TC_ACT_UNSPEC; exit`.
fn empty_program() -> SchedClassifier {
    /// `union bpf_attr` of BPF_PROG_LOAD, as far as it matters here.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 13],
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let load = Load {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        rest: [0; 13],
    };
    // SAFETY: the attributes are as long as said, and what they point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    assert!(fd >= 0, "BPF_PROG_LOAD: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just returned to us and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    from_fd(&fd)
}

/// aya knows programs by what the kernel says of them.
fn from_fd(fd: &OwnedFd) -> SchedClassifier {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let id: u32 =
        info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok()).expect("a program's id");
    let found = aya::programs::loaded_programs().map(Result::unwrap).find(|info| info.id() == id);
    SchedClassifier::from_program_info(found.expect("loaded"), Cow::Borrowed("empty")).unwrap()
}
