//! Whether a run kept the promise, in sentences.

use super::record::Run;

/// What was broken in a run; empty if nothing was.
pub(super) fn broken(run: &Run) -> Vec<String> {
    let faults = [
        (run.sent_to_guest == 0, "nothing was sent to the guest, so nothing was shown".to_owned()),
        (run.sent_from_guest == 0, "the guest sent nothing, so nothing was shown".to_owned()),
        (run.tcp_messages == 0, "the TCP stream stood still, so nothing was shown".to_owned()),
        (run.lost_to_guest > 0, lost_to_guest(run)),
        (run.lost_from_guest > 0, format!("{} packets from the guest were lost", run.lost_from_guest)),
        (run.duplicated > 0, format!("{} packets came more than once", run.duplicated)),
        (run.reordered > 0, format!("{} packets came out of order, by up to {}", run.reordered, run.displacement)),
        (run.overflowed > 0, format!("{} frames found a hold full", run.overflowed)),
        (run.tcp_resets > 0, format!("a TCP connection broke ({} times)", run.tcp_resets)),
        (run.stalls > 0, format!("the guest was out of reach for over 10 s ({} times)", run.stalls)),
        (run.tcp_damaged > 0, format!("{} TCP messages were damaged or stuck", run.tcp_damaged)),
        (!run.memory_ok, "the guest's memory was corrupted".to_owned()),
    ];
    let say = |what| format!("{} → {}: {what}", run.from, run.to);
    faults.into_iter().filter(|(broken, _)| *broken).map(|(_, what)| say(what)).collect()
}

fn lost_to_guest(run: &Run) -> String {
    let mut text = format!("{} packets to the guest were lost ({} of them pings)", run.lost_to_guest, run.pings_lost);
    for trace in &run.lost_traces {
        text += &format!("\n    {trace}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::good_run;
    use super::*;

    #[test]
    fn a_good_run_breaks_nothing() {
        assert_eq!(broken(&good_run()), Vec::<String>::new());
    }

    #[test]
    fn every_fault_breaks_it() {
        let faults: [fn(&mut Run); 12] = [
            |run| run.sent_to_guest = 0,
            |run| run.sent_from_guest = 0,
            |run| run.tcp_messages = 0,
            |run| run.lost_to_guest = 1,
            |run| run.lost_from_guest = 1,
            |run| run.duplicated = 1,
            |run| run.reordered = 1,
            |run| run.overflowed = 1,
            |run| run.tcp_resets = 1,
            |run| run.stalls = 1,
            |run| run.tcp_damaged = 1,
            |run| run.memory_ok = false,
        ];
        for fault in faults {
            let mut run = good_run();
            fault(&mut run);
            assert_eq!(broken(&run).len(), 1, "{run:?}");
        }
    }
}
