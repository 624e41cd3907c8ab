#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks and times everything on this machine's GPU from a folder made by `make relocatable`.
# Usage: run-gpu.sh [WHAT...]   WHAT: tests bench again others sanitize (default: tests bench)
# again: each suite twice at once, which must read the same bits. others: with the kernels that GPUs
# of other compute capabilities are given.
# Logs go to $OUT (default: the current folder).
set -u
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-.}
what=${*:-tests bench}
. "$here/cuda-path.sh"
seen=name,driver_version,clocks.sm,clocks.mem,power.draw,clocks_throttle_reasons.active
nvidia-smi --query-gpu=$seen --format=csv >"$OUT/gpu.txt" 2>&1
failed=0
run() { # NAME COMMAND...
    name=$1
    shift
    "$@" >"$OUT/$name.log" 2>&1
    rc=$?
    [ $rc -eq 0 ] || failed=1
    echo "== $name: exit $rc"
    tail -n "${LINES_SHOWN:-60}" "$OUT/$name.log"
}
for w in $what; do
    case $w in
    tests)
        for t in devices links ops attention cache deepseek vision runtime; do
            run "check_$t" "$here/bin/check_$t"
        done
        ;;
    again)
        for t in ops attention cache deepseek vision; do
            "$here/bin/check_$t" >"$OUT/first-$t.log" 2>&1 &
            run "again-$t" "$here/bin/check_$t"
            wait
            [ "$(grep ^bits "$OUT/first-$t.log")" = "$(grep ^bits "$OUT/again-$t.log")" ] ||
                { echo "not the same bits twice"; failed=1; }
        done
        ;;
    others)
        for c in 8.0 8.6 10.0 12.0; do
            for t in ops attention cache deepseek vision runtime; do
                run "check_$t-$c" env EK_CUDA_CAPABILITY=$c "$here/bin/check_$t"
            done
        done
        ;;
    bench) run bench "$here/bin/bench_kernels" ${BENCH:-all} ;;
    sanitize)
        for t in check_devices check_ops check_attention check_cache check_deepseek check_vision; do
            run "memcheck-$t" compute-sanitizer --error-exitcode 9 "$here/bin/$t"
        done
        run racecheck compute-sanitizer --tool racecheck --error-exitcode 9 \
            "$here/bin/check_attention"
        ;;
    esac
done
exit $failed
