#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Several GPUs against one, and our plan against others on the same profile: throughput of prefill with
# one micro-batch a prompt, decode with few and many sequences, predicted beside measured for every plan.
# Usage: cases.sh MODEL   (a folder with a config.json whose language model has LAYERS layers)
# Environment: OUT, LAYERS (default 36), LIMIT (seconds a command may take).
set -u
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-.}
. "$here/cuda-path.sh"
model=$1
layers=${LAYERS:-36}
name=$(basename "$model")
db=$OUT/$name.cases.db
gpus=$(nvidia-smi -L | wc -l)
devices=$(seq -s ' ' -f 'cuda:%g' 0 $((gpus - 1)))
failed=0
say() {
    echo "\$ evenkeel $*"
    timeout "${LIMIT:-120}" "$here/bin/evenkeel" "$@"
    rc=$?
    [ $rc -eq 0 ] || { echo "exit $rc"; failed=1; }
    return $rc
}
try() { # LABEL plan-options...: plan and bench
    label=$1
    shift
    echo "== $label"
    say plan "$model" --db "$db" "$@" -o "$OUT/$name.$label.json" --force &&
        say bench "$model" --plan "$OUT/$name.$label.json" --db "$db"
}
say devices --devices "$devices" --measure
say profile "$model" --db "$db" --devices "$devices" --max-batch 64 --max-prompt 512 --max-context 1024
load="--batch 64 --prompt 512 --generate 16 --context 640 --prefill-chunk 512"
# shellcheck disable=SC2086
{
    try one-gpu $load --devices cuda:0 --micro-batches 1
    try all-gpus $load --use-all
    for batch in 1 16; do
        try decode-$batch --batch $batch --prompt 512 --generate 64 --context 640
    done
    # deliberately worse ones: as many layers each, all else on GPU 0; one layer each and the rest last
    even=
    skewed=
    for i in $(seq "$gpus"); do
        even="$even$(((layers * i) / gpus - (layers * (i - 1)) / gpus)),"
        [ "$i" -lt "$gpus" ] && skewed="${skewed}1," || skewed="$skewed$((layers - gpus + 1))"
    done
    try even $load --from "equal split"
    try guide $load --from "[$even]"
    try skewed $load --from "[$skewed]"
    # what those runs took corrects a workload that was not among them
    try calibrated --batch 32 --prompt 256 --generate 32 --context 640 --calibrated
}
exit $failed
