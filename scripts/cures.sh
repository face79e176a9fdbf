#!/bin/sh
# Proves that each cure of ARCHITECTURE.md's "What lost or reordered frames" is one: takes it out of the sources, and the
# test it has must fail; with it in, the test must pass. Run as root: cures.sh [TIMES [NUMBER ...]], each test so many times
# (1), of all causes or those.
#
# All of it happens on an overlay of this directory that only this script sees, so that what is built already is used and
# what is written is gone at the end, whatever happens.
set -eu
cd "$(dirname "$0")/.."
runs=${1:-1}
[ "$#" -eq 0 ] || shift
wanted=" ${*:-1 2 3 4 5 6 7 8} "

if [ -z "${CURES_SCRATCH-}" ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
    mkdir "$scratch/upper" "$scratch/work"
    CURES_SCRATCH=$scratch unshare --mount --propagation private "$PWD/scripts/cures.sh" "$runs" "$@"
    exit
fi
mount -t overlay -o "lowerdir=$PWD,upperdir=$CURES_SCRATCH/upper,workdir=$CURES_SCRATCH/work" cures "$PWD"
cd "$PWD"
log=$CURES_SCRATCH/log
unset CARGO_TARGET_DIR
failed=0

# Runs the test `runs` times; how often it failed, or why that cannot be said.
failures() {
    target=$3
    [ "$target" = lib ] && select=--lib || select="--test $target"
    # shellcheck disable=SC2086 # two words
    cargo test --quiet -p "$2" $select --no-run >"$log" 2>&1 || { echo "does not build"; return; }
    count=0
    for _ in $(seq "$runs"); do
        # shellcheck disable=SC2086
        if timeout 120 cargo test --quiet -p "$2" $select -- --exact "$1" >"$log" 2>&1; then
            grep -q "^test result: ok. 1 passed" "$log" || { echo "no such test"; return; }
        elif grep -q "^test result: FAILED. 0 passed; 1 failed" "$log"; then
            count=$((count + 1))
        else
            echo "neither passed nor failed"
            return
        fi
    done
    echo "$count"
}

# cure NUMBER FILE PACKAGE TARGET TEST TEXT [INSTEAD]: without TEXT in FILE, or with INSTEAD in its place, TEST fails.
# First for all with the cures in, then for each with it out: that builds half as often.
cure() {
    case $wanted in *" $1 "*) ;; *) return ;; esac
    row=$((row + 1)) file=$2 test=$5
    if [ "$phase" = in ]; then
        failures "$test" "$3" "$4" >"$CURES_SCRATCH/in.$row"
        return
    fi
    cp "$file" "$CURES_SCRATCH/original"
    if TEXT=$6 INSTEAD=${7-} perl -0777 -i -pe \
        '$done = s/\Q$ENV{TEXT}\E/$ENV{INSTEAD}/; END { $? = !$done }' "$file"; then
        out=$(failures "$test" "$3" "$4")
    else
        out="text not found"
    fi
    cat "$CURES_SCRATCH/original" >"$file"
    in=$(cat "$CURES_SCRATCH/in.$row")
    verdict=ok
    [ "$in" = 0 ] && [ "$out" = "$runs" ] || { verdict=WRONG; failed=1; }
    printf '%-2s %-32s %-70s %4s %4s  %s\n' "$1" "$file" "$test" "$in" "$out" "$verdict"
    [ "$verdict" = ok ] || sed 's/^/     | /' "$log" | tail -n 30
}

cures() {
    row=0
    cure 1 ebpf/loader/src/pump/room.rs throughline-loader hand_over \
        a_slow_guest_loses_nothing_to_its_own_small_ring \
        'if self.left <= self.reserve && !self.tap.iter().any(Device::has_frames) {' 'if self.left <= self.reserve {'
    cure 2 ebpf/programs/src/steer.rs throughline-loader verdicts \
        a_full_ring_is_counted_and_leaves_the_line_exact \
        'port.leave_line(lane, bytes);'
    cure 2 agent/netlink/src/tap.rs throughline-netlink kernel \
        devices::a_tap_is_silent_and_hides_no_drop \
        'self.verbs.set_noqueue(link.index).await.map_err(Error::device("set qdisc noqueue on", name))?;'
    cure 3 ebpf/programs/src/tunnel.rs throughline-loader queues \
        a_flow_has_one_outer_port_however_its_frames_are_carried \
        'bpf_set_hash_invalid(skb);'
    cure 4 agent/netlink/src/marker.rs throughline-netlink kernel \
        queues::markers_come_behind_what_waits_in_a_slow_queue \
        '(FROM_PORT + payload.sequence)' 'FROM_PORT'
    cure 4 ebpf/abi/src/lib.rs throughline-tests order \
        a_move_keeps_every_flow_in_order \
        'seen == ALL_MARKERS' 'seen != 0'
    cure 5 ebpf/loader/src/pump/follow.rs throughline-loader queues \
        a_line_goes_where_its_port_receives \
        'set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))' 'set.set(cpu)'
    cure 6 ebpf/programs/src/refill.rs throughline-loader hand_over \
        a_line_held_again_during_its_flush_does_not_go_to_the_guest_that_left \
        'match port.direction() {
        direction::CARRY =>' 'match port.mode() {
        throughline_abi::mode::CARRY =>'
    cure 7 agent/netlink/src/tap.rs throughline-netlink kernel \
        devices::a_hold_takes_super_frames_whole \
        'take_super_frames(&queue)?;'
    cure 8 ebpf/loader/src/lanes.rs throughline-loader tap_queues \
        a_flow_keeps_its_queue_whichever_its_guest_answers_from \
        'self.have_ask(tap, Steering::Flow)' 'Ok(())'
}

printf 'Failures of %s with the cure in, and with it out:\n\n' "$runs"
printf '%-2s %-32s %-70s %4s %4s\n' "" cure test in out
phase=in
cures
phase=out
cures
[ "$failed" = 0 ] || { printf '\nA cure is not proved.\n' >&2; exit 1; }
