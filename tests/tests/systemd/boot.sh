#!/bin/sh
# A machine of its own for the units, as far as namespaces make one: systemd is its first process, and the only units it knows
# are ours. Started in new pid, mount, uts, ipc, network and cgroup namespaces, with an installed root in $ROOT, a guest's
# image in $IMAGE, and what is to happen once it is up in $PLAY, whose words and verdict go to descriptor 3. Nothing of the
# real machine is written to.
#
# There are two agents, in two network namespaces: the unit, and a copy of it that differs in its names and its namespace.
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
umount -R -l /sys
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf -o mode=0700
cp -a /etc /run/etc
mount --bind /run/etc /etc
systemd-sysusers /run/installed/sysusers.d/throughline.conf
systemd-tmpfiles --create /run/installed/tmpfiles.d/throughline.conf
mkdir -m 0700 /sys/fs/bpf/throughline2

# The underlay: the controller and h1 at one end, h2 at the other.
ip netns add h2
ip link set lo up
ip link add eth1 type veth peer name eth1 netns h2
ip address add 192.0.2.1/24 dev eth1
ip link set eth1 up
ip -n h2 link set lo up
ip -n h2 address add 192.0.2.2/24 dev eth1
ip -n h2 link set eth1 up

PATH="/run/programs:$PATH"
export PATH
scheme=http
if throughline pki --help >/dev/null 2>&1; then
    scheme=https
    throughline pki init --dir /run/pki
    for host in h1 h2; do throughline pki issue agent/$host --dir /run/pki; done
    cp /run/pki/controller/* /etc/throughline/controller-tls/
    cp /run/pki/agent/h1/* /etc/throughline/tls/
    chown -R throughline: /etc/throughline/controller-tls
fi

cat >/etc/throughline/controller.env <<U
THROUGHLINE_LISTEN=192.0.2.1:7700
THROUGHLINE_STATE_DIR=/var/lib/throughline-controller
THROUGHLINE_TLS=/etc/throughline/controller-tls
THROUGHLINE_ARGS=--enroll closed
U
cat >/etc/throughline/agent.env <<U
THROUGHLINE_HOST=h1
THROUGHLINE_CONTROLLER=$scheme://192.0.2.1:7700
THROUGHLINE_ARGS=--vtep 192.0.2.1 --peer-listen 192.0.2.1:7701 --accel tcg
U
cat >/etc/throughline/agent2.env <<U
THROUGHLINE_HOST=h2
THROUGHLINE_CONTROLLER=$scheme://192.0.2.1:7700
THROUGHLINE_TLS=/run/pki/agent/h2
THROUGHLINE_ARGS=--vtep 192.0.2.2 --peer-listen 192.0.2.2:7701 --accel tcg --state-dir /var/lib/throughline2 --bpffs /sys/fs/bpf/throughline2 --cgroup throughline2
U

for unit in throughline-agent throughline-controller; do
    sed "s,^ExecStart=/usr/bin/,ExecStart=/run/programs/," /run/installed/systemd/system/$unit.service >/run/units/$unit.service
done
sed -e 's,/agent.env,/agent2.env,' -e 's,^StateDirectory=throughline,&2,' -e 's,/sys/fs/bpf/throughline,&2,' \
    -e 's,^\[Service\],&\nNetworkNamespacePath=/run/netns/h2,' /run/units/throughline-agent.service >/run/units/throughline-agent2.service
# Without what every machine has besides.
for unit in throughline-agent throughline-agent2 throughline-controller; do
    mkdir /run/units/$unit.service.d
    cat >/run/units/$unit.service.d/here.conf <<U
[Unit]
DefaultDependencies=no
Wants=
After=
[Service]
StandardError=append:/run/$unit.log
U
done
cat >/run/units/here.target <<'U'
[Unit]
DefaultDependencies=no
Wants=throughline-controller.service throughline-agent.service throughline-agent2.service
U

export container=throughline SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none THROUGHLINE_CONTROLLER="$scheme://192.0.2.1:7700"
(
    # The operator's.
    [ $scheme = http ] || export THROUGHLINE_TLS=/run/pki/operator/admin
    if sh /run/play.sh; then verdict=PLAYED; else verdict=FAILED; fi
    for log in /run/throughline-*.log; do echo "--- the last lines of $log"; tail -n 30 "$log"; done
    # Whoever reads this ends everything in here.
    echo "$verdict"
) >&3 2>&3 3>&- &
exec /lib/systemd/systemd --system --unit=here.target 3>&- >/dev/null 2>&1
