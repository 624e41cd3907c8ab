#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Interrupted work: exit 130 and what was measured is kept; a solve that is stopped is exit 5.
. "${srcdir:-.}/tests/cli/lib.sh"
model=$fixtures/reference/llama-gqa-tied
synthetic=$fixtures/configs/smollm2-135m/config.json
cpu="cpu:0/threads=0,mem=1GiB"
db=$scratch/profile.db

# begun PID PROGRAM: waits until it is that program and handles signals, or has ended
begun() {
    waited=0
    while [ $waited -lt 600 ] && kill -0 "$1" 2>/dev/null; do
        [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] &&
            grep -q "SigCgt.*[4-7c-f]...$" "/proc/$1/status" 2>/dev/null && break
        sleep 0.1
        waited=$((waited + 1))
    done
    sleep 0.3
}

# interrupted COMMAND ...: is sent SIGTERM when its work is under way (a shell's background jobs
# ignore SIGINT until the handler of both is installed)
interrupted() {
    "$@" >"$scratch/out" 2>"$scratch/err" &
    child=$!
    begun $child evenkeel
    kill -TERM $child 2>/dev/null
    wait $child
    got=$?
    [ $got -eq 130 ] && return 0
    echo "FAILED: exit $got, expected 130: $*"
    cat "$scratch/err"
    failures=$((failures + 1))
}

interrupted evenkeel run "$synthetic" --devices "$cpu" --ids 1,2,3 --max-tokens 2000 --ignore-eos
interrupted evenkeel bench "$synthetic" --devices "$cpu"
interrupted evenkeel profile "$synthetic" --db "$db" --devices "$cpu"
warns 'interrupted'

if [ -x "$bin/evenkeel-plan" ]; then
    machine=$top/tests/planner/machines/16-of-4-kinds-qwen-72b.json
    expect 5 evenkeel plan --costs "$machine" --time-limit 0.001
    one_line
    # Ctrl-C: the best so far with a bound that holds, unless it was solved by then
    evenkeel plan --costs "$machine" -o "$scratch/far.json" >"$scratch/out" 2>"$scratch/err" &
    child=$!
    begun $child evenkeel-plan
    kill -INT $child 2>/dev/null
    wait $child
    got=$?
    case $got in
    0) says 'cross-check: equal' ;;
    5) grep -q 'stopped before' "$scratch/err" || failures=$((failures + 1)) ;;
    *)
        echo "FAILED: an interrupted plan exits with $got"
        failures=$((failures + 1))
        ;;
    esac
    if [ $got -eq 5 ] && [ -e "$scratch/far.json" ]; then
        says 'NOT proven optimal\|optimal by one method'
        says '^bound '
        grep -q '"proven": false' "$scratch/far.json" || failures=$((failures + 1))
    fi
fi
expect 0 evenkeel run "$model" --ids 1,2,3 --max-tokens 2
finish
