//! TCP to a guest with the programs on its port, and without.

use std::time::Duration;

use throughline_loader::PortHandle;

use crate::{
    guest::{Stacks, Wire},
    report::{Report, Target},
    support::{
        second_port::at_rest,
        topology::{CARRY_ID, DEPTH, DESTINATION, Fabric, Host},
    },
};

/// Many short ones: the machine's own drift, far greater than what is looked for, is then alike in both of a pair.
const PAIRS: usize = 150;
const WINDOW: Duration = Duration::from_millis(100);
const SETTLE: Duration = Duration::from_millis(20);
const WARM_UP: Duration = Duration::from_millis(500);

pub(crate) fn measure(report: &mut Report) {
    report.part("tcp");
    pairs(report, Wire::Kernel, "redirected in the kernel");
    pairs(report, Wire::Tap, "copied through the tap by a thread");
}

fn pairs(report: &mut Report, wire: Wire, how: &str) {
    let fabric = Fabric::new();
    let stacks = Stacks::new(&fabric, wire, false);
    let stream = stacks.stream(&fabric);
    let source = &fabric.source;
    source.close();
    std::thread::sleep(WARM_UP);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let again = stream.retransmits();
    for pair in 0..PAIRS {
        // With and without, without and with, so that a drift takes from both alike.
        for attached in [pair % 2 == 0, pair % 2 == 1] {
            let port = attached.then(|| open(source));
            std::thread::sleep(SETTLE);
            let rate = stream.rate(WINDOW);
            if let Some(port) = port {
                assert!(port.counters().passed > 0, "frames went past the program");
                source.netns.run(|| port.close().unwrap());
                with.push(rate);
            } else {
                without.push(rate);
            }
        }
    }
    let ratio = with.iter().zip(&without).map(|(with, without)| 100.0 * with / without).collect();
    report.row(format!("TCP to a guest, {how}: no programs"), "Gbit/s", without);
    report.row(format!("TCP to a guest, {how}: programs, pass"), "Gbit/s", with);
    let again = stream.retransmits() - again;
    report.row(format!("TCP to a guest, {how}: segments sent again"), "segments", vec![again as f64]);
    let name = format!("TCP to a guest, {how}: with of without");
    report.row_with_target(&name, "% a pair", ratio, Target::AtLeast(99.0));
}

fn open(host: &Host) -> PortHandle {
    host.netns.run(|| {
        let config = at_rest(&host.tap, &host.hold, CARRY_ID, DESTINATION, DEPTH);
        host.datapath.open_port(&config).unwrap()
    })
}
