//! What guests, QEMU and the kernel say.

use throughline_hypervisor::{read_agent_answers, read_monitor_line};
use throughline_netlink::read_answer;

/// What a guest's own agent answers.
pub(crate) fn guest_agent(bytes: &[u8]) {
    read_agent_answers(bytes);
}

/// One line of a QEMU's monitor.
pub(crate) fn qmp(bytes: &[u8]) {
    let _event = read_monitor_line(bytes);
}

/// A datagram of rtnetlink.
pub(crate) fn netlink(bytes: &[u8]) {
    let _things = read_answer(bytes);
}
