//! What QEMU and the kernel say.

use throughline_hypervisor::read_monitor_line;
use throughline_netlink::read_answer;

/// One line of a QEMU's monitor.
pub(crate) fn qmp(bytes: &[u8]) {
    let _event = read_monitor_line(bytes);
}

/// A datagram of rtnetlink.
pub(crate) fn netlink(bytes: &[u8]) {
    let _things = read_answer(bytes);
}
