//! QEMU's arguments, from what a guest is. Pure.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::RawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use throughline_cutover::{Boot, GuestName, MacAddr, Mtu, PortId};

use crate::{Accelerator, FdRole, RunDir, ram_kib};

/// First PCI slot of a network card; 0 is the host bridge. Slots are fixed, because a migration finds devices by them.
const FIRST_SLOT: usize = 2;
/// Receive descriptors of a network card, the most QEMU allows. A guest that stands still for a moment must not run out of
/// them: QEMU up to 9.0 may then wait for a kick that never comes, and the card is deaf (hw/net/virtio-net.c, "update event
/// idx if guest has made extra buffers during double check").
const RX_QUEUE: u32 = 1024;

/// A network card by descriptor numbers, as QEMU will inherit them.
pub(crate) struct NicArgs {
    pub(crate) port: PortId,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: Mtu,
    /// The tap QEMU serves, queue by queue.
    pub(crate) tap: Vec<RawFd>,
    /// What it keeps for the agent.
    pub(crate) kept: Vec<(FdRole, RawFd)>,
}

/// The values of `-accel` and `-cpu`. A guest moves only between hosts with the same: under KVM, of one processor model.
pub(crate) fn processor(accelerator: Accelerator) -> (&'static str, &'static str) {
    match accelerator {
        Accelerator::Kvm => ("kvm", "host,migratable=on"),
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
    }
}

/// Everything the arguments are made of.
pub(crate) struct CommandLine<'a> {
    pub(crate) name: &'a GuestName,
    pub(crate) run_dir: &'a RunDir,
    pub(crate) vcpus: u32,
    pub(crate) memory_kib: u64,
    pub(crate) boot: &'a Boot,
    pub(crate) accelerator: Accelerator,
    pub(crate) nics: &'a [NicArgs],
    pub(crate) incoming: bool,
}

impl CommandLine<'_> {
    /// The arguments, without the program. The same guest gets the same devices at both ends of a migration.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments(Vec::new());
        self.machine(&mut args);
        self.boot(&mut args);
        self.monitor_and_serial(&mut args);
        let mut set = 0;
        for (index, nic) in self.nics.iter().enumerate() {
            nic.arguments(FIRST_SLOT + index, &mut set, &mut args);
        }
        if self.incoming {
            args.option("-incoming", "defer");
            args.flag("-S");
        }
        args.0
    }

    fn machine(&self, args: &mut Arguments) {
        args.option("-name", format!("guest={},debug-threads=on", self.name));
        args.flag("-nodefaults");
        args.flag("-no-user-config");
        args.option("-display", "none");
        args.option("-msg", "timestamp=on");
        // Nothing that a guest with a serial line and virtio cards does not use: it starts faster and migrates less.
        args.option("-machine", "q35,usb=off,sata=off,smbus=off,smm=off,vmport=off,hpet=off,dump-guest-core=off");
        let (accel, cpu) = processor(self.accelerator);
        args.option("-accel", accel);
        args.option("-cpu", cpu);
        args.option("-smp", self.vcpus.to_string());
        args.option("-m", format!("{}k", ram_kib(self.memory_kib, self.accelerator)));
        args.option("-overcommit", "mem-lock=off");
    }

    fn boot(&self, args: &mut Arguments) {
        let Boot { kernel, initrd, cmdline } = self.boot;
        args.option("-kernel", kernel);
        if !initrd.is_empty() {
            args.option("-initrd", initrd);
        }
        if !cmdline.is_empty() {
            args.option("-append", cmdline);
        }
    }

    fn monitor_and_serial(&self, args: &mut Arguments) {
        args.option("-pidfile", self.run_dir.pid_file());
        args.option("-chardev", with_path("socket,id=qmp,server=on,wait=off,path=", &self.run_dir.qmp_socket()));
        args.option("-mon", "chardev=qmp,mode=control");
        // A monitor that never disconnects: with the last one QEMU closes the kept descriptors of a running guest.
        args.option("-chardev", "file,id=keep,path=/dev/null");
        args.option("-mon", "chardev=keep,mode=control");
        args.option("-chardev", with_path("file,id=serial0,append=on,path=", &self.run_dir.serial_log()));
        args.option("-serial", "chardev:serial0");
    }
}

impl NicArgs {
    fn arguments(&self, slot: usize, set: &mut u32, args: &mut Arguments) {
        let Self { port, mac, mtu, tap, kept } = self;
        for (role, fd) in kept {
            args.option("-add-fd", format!("fd={fd},set={set},opaque={role}"));
            *set += 1;
        }
        // vhost would read the tap while the guest is paused; the hand-over needs the frames to stay in the ring.
        args.option("-netdev", format!("tap,id=net-{port},{},vhost=off", descriptors(tap)));
        args.option(
            "-device",
            format!(
                "virtio-net-pci,id=nic-{port},netdev=net-{port},bus=pcie.0,addr={slot:#x},mac={mac},host_mtu={mtu},\
                 rx_queue_size={RX_QUEUE},romfile={}",
                queue_pairs(tap.len())
            ),
        );
    }
}

fn descriptors(tap: &[RawFd]) -> String {
    let numbers: Vec<_> = tap.iter().map(RawFd::to_string).collect();
    format!("{}={}", if tap.len() > 1 { "fds" } else { "fd" }, numbers.join(":"))
}

/// What a card with several queues is told besides; a plain one stays as it always was. An interrupt for each queue, each
/// way, one for changes of the configuration, one for the queue of commands.
fn queue_pairs(queues: usize) -> String {
    if queues > 1 { format!(",mq=on,vectors={}", 2 * queues + 2) } else { String::new() }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.0.push(option.into());
        self.0.push(value.as_ref().to_owned());
    }
}

/// `prefix` and `path` as the last value of an option list, where a comma is written twice.
fn with_path(prefix: &str, path: &Path) -> OsString {
    let mut bytes = prefix.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(port: u32, tap: RawFd) -> NicArgs {
        let port = PortId::try_from(port).unwrap();
        NicArgs {
            port,
            mac: format!("02:00:00:00:00:{:02x}", port.get()).parse().unwrap(),
            mtu: Mtu::try_from(1450_u32).unwrap(),
            tap: vec![tap],
            kept: vec![(FdRole::Tap(port), tap + 1), (FdRole::Hold(port), tap + 2)],
        }
    }

    fn nic_with_three_queues() -> NicArgs {
        let nic = nic(7, 20);
        NicArgs { tap: vec![20, 23, 24], ..nic }
    }

    fn render(accelerator: Accelerator, nics: &[NicArgs], incoming: bool) -> String {
        let boot = Boot {
            kernel: "/boot/vmlinuz".to_owned(),
            initrd: "/boot/initrd, odd".to_owned(),
            cmdline: "console=ttyS0 a,b".to_owned(),
        };
        let (name, run_dir) = ("web-1".parse().unwrap(), RunDir::new("/run/tl,x/web-1"));
        let line = CommandLine {
            name: &name,
            run_dir: &run_dir,
            vcpus: 2,
            memory_kib: 262_144,
            boot: &boot,
            accelerator,
            nics,
            incoming,
        };
        let args: Vec<_> = line.arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
        args.join("\n").replace("\n-", "\u{0}-").replace('\n', " ").replace('\u{0}', "\n")
    }

    #[test]
    fn golden_tcg_with_two_cards_waiting_for_a_migration() {
        let golden = "\
-name guest=web-1,debug-threads=on
-nodefaults
-no-user-config
-display none
-msg timestamp=on
-machine q35,usb=off,sata=off,smbus=off,smm=off,vmport=off,hpet=off,dump-guest-core=off
-accel tcg,thread=multi
-cpu max
-smp 2
-m 262136k
-overcommit mem-lock=off
-kernel /boot/vmlinuz
-initrd /boot/initrd, odd
-append console=ttyS0 a,b
-pidfile /run/tl,x/web-1/qemu.pid
-chardev socket,id=qmp,server=on,wait=off,path=/run/tl,,x/web-1/qmp.sock
-mon chardev=qmp,mode=control
-chardev file,id=keep,path=/dev/null
-mon chardev=keep,mode=control
-chardev file,id=serial0,append=on,path=/run/tl,,x/web-1/serial.log
-serial chardev:serial0
-add-fd fd=21,set=0,opaque=tap:7
-add-fd fd=22,set=1,opaque=hold:7
-netdev tap,id=net-7,fd=20,vhost=off
-device virtio-net-pci,id=nic-7,netdev=net-7,bus=pcie.0,addr=0x2,mac=02:00:00:00:00:07,host_mtu=1450,rx_queue_size=1024,romfile=
-add-fd fd=31,set=2,opaque=tap:9
-add-fd fd=32,set=3,opaque=hold:9
-netdev tap,id=net-9,fd=30,vhost=off
-device virtio-net-pci,id=nic-9,netdev=net-9,bus=pcie.0,addr=0x3,mac=02:00:00:00:00:09,host_mtu=1450,rx_queue_size=1024,romfile=
-incoming defer
-S";
        assert_eq!(render(Accelerator::Tcg, &[nic(7, 20), nic(9, 30)], true), golden);
    }

    #[test]
    fn a_card_with_several_queues_has_a_descriptor_and_interrupts_for_each() {
        let line = render(Accelerator::Tcg, &[nic_with_three_queues()], false);
        assert!(line.contains("-netdev tap,id=net-7,fds=20:23:24,vhost=off\n"), "{line}");
        assert!(line.contains(",rx_queue_size=1024,romfile=,mq=on,vectors=8"), "{line}");
    }

    #[test]
    fn kvm_without_cards_runs_at_once_and_keeps_its_ram() {
        let line = render(Accelerator::Kvm, &[], false);
        assert!(line.contains("-accel kvm\n-cpu host,migratable=on\n"), "{line}");
        assert!(line.contains("-m 262144k\n"), "{line}");
        assert!(!line.contains("-incoming") && !line.contains("\n-S") && !line.contains("-netdev"), "{line}");
    }
}
