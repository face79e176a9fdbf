//! Super-frames that the kernel segments after all: because the guest's tap takes none, or because they are too long.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{os::fd::AsRawFd, time::Duration};

use support::{
    crafted::tcp_super_frame,
    eventually,
    topology::{Fabric, Shape},
    whole_way::{everything_in, neighbour},
};
use throughline_loader::Mode;

#[test]
fn a_guest_that_takes_no_super_frames_loses_no_segment() {
    const SUPER_FRAMES: usize = 100;
    const SEGMENTS: usize = 10;
    let fabric = Fabric::shaped(&Shape { tap_ring: 512, ..Shape::default() });
    let source = &fabric.source;
    // As QEMU does while the guest's driver has not asked for them.
    // SAFETY: the ioctl reads a number.
    assert_eq!(unsafe { libc::ioctl(source.tap.dup().as_raw_fd(), libc::TUNSETOFFLOAD, 0) }, 0);
    let neighbour = neighbour(source);
    source.port.set_mode(Mode::Hold);
    for number in 0..SUPER_FRAMES {
        let (header, frame) = tcp_super_frame(number as u64, SEGMENTS * 1_400, 1_400);
        neighbour.write(&header, &frame);
    }
    eventually("all are held", || source.port.line() == SUPER_FRAMES as i64);
    let pump = source.release_to_tap();
    let mut seen = 0;
    eventually("the line is empty", || {
        std::thread::sleep(Duration::from_millis(5));
        seen += everything_in(&source.tap).len();
        pump.is_line_empty()
    });
    seen += everything_in(&source.tap).len();
    assert_eq!(seen, SUPER_FRAMES * SEGMENTS);
}

#[test]
fn a_frame_too_long_to_stay_whole_does_not_break_the_count() {
    let fabric = Fabric::new();
    let source = &fabric.source;
    let neighbour = neighbour(source);
    source.port.set_mode(Mode::Hold);
    let (header, frame) = tcp_super_frame(0, 65_535 - 40, 1_400);
    neighbour.write(&header, &frame);
    eventually("it has been seen", || source.port.counters().held + source.port.counters().overflowed == 1);
    let pump = source.release_to_tap();
    std::thread::sleep(Duration::from_millis(50));
    drop(pump);
    let state = source.port.counters();
    assert_eq!((state.line, state.line_bytes, state.overflowed), (0, 0, 1));
}
