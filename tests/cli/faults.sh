#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every so many allocations one fails: exit code 3 with one line, never a crash; under
# --enable-asan, never a leak.
. "${srcdir:-.}/tests/cli/lib.sh"
model=$fixtures/reference/llama-gqa-tied
reference=$model/reference.safetensors

# faulty COMMAND ...: with the n-th allocation failing, n = 1, 2, ..., later every fiftieth of n,
# until five runs in a row get through
faulty() {
    n=1
    through=0
    while [ $through -lt 5 ]; do
        EK_FAIL_ALLOC=$n "$@" >"$scratch/out" 2>"$scratch/err"
        got=$?
        if [ $got -eq 0 ]; then
            through=$((through + 1))
        elif [ $got -ne 3 ] || [ "$(wc -l <"$scratch/err")" -ne 1 ]; then
            echo "FAILED: exit $got, expected 3 and one line, with allocation $n failing: $*"
            head -n 30 "$scratch/err"
            failures=$((failures + 1))
            break
        else
            through=0
        fi
        n=$((n + 1 + n / 50))
    done
    echo "$n allocations: $*"
}
faulty evenkeel model "$model" --json
faulty evenkeel run "$model" --ids 1,2,3 --max-tokens 3
faulty evenkeel check "$model" --reference "$reference"
faulty evenkeel devices --devices "cpu:0/threads=0,mem=64MiB"

# a stage that never answers: exit code 6 and one line, in time
EK_HANG_STAGE=0 EVENKEEL_DEADLINE=0.3 evenkeel run "$model" --ids 1,2,3 --max-tokens 3 \
    >"$scratch/out" 2>"$scratch/err"
got=$?
hangs='^evenkeel: stage 0 (cpu:0, .*no answer for 0.3 s$'
if [ $got -ne 6 ] || ! grep -q "$hangs" "$scratch/err"; then
    echo "FAILED: exit $got of a stage that hangs"
    cat "$scratch/err"
    failures=$((failures + 1))
fi
finish
