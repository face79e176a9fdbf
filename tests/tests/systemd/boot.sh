#!/bin/sh
# A machine of its own for the units, as far as namespaces make one: systemd is its first process, and the only units it knows
# are ours. Started in new pid, mount, uts, ipc, network and cgroup namespaces, with an installed root in $ROOT and what is to
# happen once it is up in $PLAY. Nothing of the real machine can be written to but the pipe this writes to.
set -eu

mount --make-rprivate /
mount -t tmpfs tmpfs /run
# All that is needed of outside: the units do not let a daemon look below /root, /home or /tmp.
mkdir -p /run/programs /run/units
cp "$ROOT"/usr/bin/throughline* /run/programs/
cp -r "$ROOT/usr/lib" /run/installed
cp -r "$IMAGE" /run/image
cp "$PLAY" /run/play.sh
for place in /tmp /var/lib /var/tmp; do mount -t tmpfs tmpfs "$place"; done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf -o mode=0700
cp -a /etc /run/etc
mount --bind /run/etc /etc
mkdir -p /etc/throughline
for unit in throughline-agent throughline-controller; do
    sed "s,^ExecStart=/usr/bin/,ExecStart=/run/programs/," /run/installed/systemd/system/$unit.service >/run/units/$unit.service
done
systemd-sysusers /run/installed/sysusers.d/throughline.conf
systemd-tmpfiles --create /run/installed/tmpfiles.d/throughline.conf

ip link set lo up
ip link add eth1 type veth peer name eth2
ip address add 192.0.2.1/24 dev eth1
ip link set eth1 up
ip link set eth2 up

# The daemons talk over loopback, where they may without certificates.
insecure=
/run/programs/throughline-controller --help | grep -q -e --insecure && insecure=--insecure
cat >/etc/throughline/controller.env <<U
THROUGHLINE_LISTEN=127.0.0.1:7700
THROUGHLINE_STATE_DIR=/var/lib/throughline-controller
THROUGHLINE_ARGS=--enroll closed $insecure
U
cat >/etc/throughline/agent.env <<U
THROUGHLINE_HOST=h1
THROUGHLINE_CONTROLLER=http://127.0.0.1:7700
THROUGHLINE_ARGS=--vtep 192.0.2.1 --peer-listen 127.0.0.1:7701 $insecure
U

# Without what every machine has besides.
for unit in throughline-agent throughline-controller; do
    mkdir -p /run/units/$unit.service.d
    printf '[Unit]\nDefaultDependencies=no\nWants=\nAfter=\n[Service]\nStandardError=append:/run/%s.log\n' $unit >/run/units/$unit.service.d/here.conf
done
cat >/run/units/here.target <<'U'
[Unit]
DefaultDependencies=no
Wants=throughline-controller.service throughline-agent.service
U

export container=throughline SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none
(
    if sh /run/play.sh; then verdict=PLAYED; else verdict=FAILED; fi
    for log in /run/throughline-*.log; do echo "--- the last lines of $log"; tail -n 30 "$log"; done
    # Whoever reads this ends everything in here.
    echo "$verdict"
) >&3 2>&3 3>&- &
exec /lib/systemd/systemd --system --unit=here.target 3>&- >/dev/null 2>&1
