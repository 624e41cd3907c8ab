#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The placements of vision-language models that people are known to struggle with, on however many
# GPUs there are: devices that are missing are declared on those that are there.
#   vl2     DeepSeek-VL2 (base) under the deployment guides' splits of its layers, all else on the
#           first device, beside our plan for the same devices and budgets
#   tokens  of such placements against those of one device
#   qwen    Qwen2.5-VL-3B on four devices of 15 GB with the longest context that fits, and one step
#           beyond it, which is refused before anything loads
# Usage: vl-cases.sh VL2 QWEN       folders with a config.json (weights from a seed)
# Environment: OUT, CASES (default "vl2 tokens qwen"), LIMIT (seconds a command may take), BACKEND;
# SPLITS (default "10,10,10 3,4,4,4,4,4,4,3") and BUDGET (24GB, of a device) of VL2; SHORT (a folder
# with a config.json of VL2 with fewer layers) and SHORT_SPLITS for the tokens; BUDGETS of Qwen's.
set -u
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-.}
BACKEND=${BACKEND:-cuda}
EVENKEEL=${EVENKEEL:-$here/bin/evenkeel}
if [ "$BACKEND" = cuda ]; then
    . "$here/cuda-path.sh"
    gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
else
    gpus=64
fi
failed=0
start=$(date +%s)
say() { # EXPECTED-EXIT-CODE command...
    expected=$1
    shift
    echo "\$ evenkeel $*"
    timeout "${LIMIT:-240}" "$EVENKEEL" "$@"
    rc=$?
    echo "[exit $rc, $(($(date +%s) - start)) s]"
    [ $rc -eq "$expected" ] || { echo "FAILED: exit $rc, expected $expected"; failed=1; }
    [ $rc -eq "$expected" ]
}
devices() { # N: so many names
    for i in $(seq 0 $(($1 - 1))); do
        [ $((i / gpus)) -eq 0 ] && printf '%s:%d ' "$BACKEND" "$i" ||
            printf '%s:%d.%d ' "$BACKEND" $((i % gpus)) $((i / gpus))
    done
}
count() { # of the numbers in a split
    echo "$1" | awk -F, '{ print NF }'
}
most() { # largest count of several splits
    for s in "$@"; do count "$s"; done | sort -n | tail -1
}

# ---- times and memory: predicted beside measured
vl2() { # MODEL
    db=$OUT/vl2.db
    # shellcheck disable=SC2086
    n=$(most ${SPLITS:=10,10,10 3,4,4,4,4,4,4,3})
    load="--batch ${BATCH:-4} --prompt 64 --generate 16 --context ${CONTEXT:-2048}"
    load="$load --images 1 --image-tokens ${IMAGE_TOKENS:-1023} --max-memory ${BUDGET:=24GB} --force"
    say 0 profile "$1" --db "$db" --devices "$(devices "$n")" --max-batch 4 \
        --max-prompt "${PROMPT:-1024}" --max-context "${CONTEXT:-2048}" || return
    for split in $SPLITS; do
        names=$(devices "$(count "$split")")
        plan=$OUT/vl2.$split
        echo "== VL2, layers [$split], budgets of $BUDGET"
        # shellcheck disable=SC2086
        say 0 plan "$1" --db "$db" --devices "$names" $load --from "[$split]" -o "$plan.json" &&
            say 0 bench "$1" --plan "$plan.json" --repeats 2
        echo "== VL2, our plan for the same devices"
        # shellcheck disable=SC2086
        say 0 plan "$1" --db "$db" --devices "$names" $load -o "$plan.ours.json" &&
            say 0 bench "$1" --plan "$plan.ours.json" --repeats 2
    done
}

# ---- the same tokens wherever modules are
answer() { # MODEL PLAN: ids of the answer, one a line
    ids=$(seq -s , 100 160)
    timeout "${LIMIT:-240}" "$EVENKEEL" run "$1" --plan "$2" --ids "$ids" --max-tokens 12 --json |
        tr -d ' \n' | sed 's/.*"ids":\[\([0-9,]*\)\].*/\1/'
}
tokens() { # MODEL
    db=$OUT/short.db
    # shellcheck disable=SC2086
    n=$(most ${SHORT_SPLITS:-$SPLITS})
    load="--batch 1 --prompt 64 --generate 16 --context 256 --force --quiet"
    say 0 profile "$1" --db "$db" --devices "$(devices "$n")" --max-batch 1 --max-prompt 64 \
        --max-context 256 --target-error 0.9 || return
    # shellcheck disable=SC2086
    say 0 plan "$1" --db "$db" --devices "$(devices 1)" $load -o "$OUT/one.json" || return
    want=$(answer "$1" "$OUT/one.json")
    echo "tokens on one device: $want"
    for split in ${SHORT_SPLITS:-$SPLITS}; do
        names=$(devices "$(count "$split")")
        for from in "--from [$split]" "--use-all"; do
            # shellcheck disable=SC2086
            say 0 plan "$1" --db "$db" --devices "$names" $load $from -o "$OUT/many.json" \
                >"$OUT/many.txt" || { cat "$OUT/many.txt"; continue; }
            got=$(answer "$1" "$OUT/many.json")
            echo "tokens on $(count "$split") devices ($from): $got"
            [ "$got" = "$want" ] && [ -n "$got" ] || { echo "FAILED: other tokens"; failed=1; }
        done
    done
}

# ---- as much context as fits, and one step more
qwen() { # MODEL
    db=$OUT/qwen.db
    names=$(devices 4)
    batch=${QWEN_BATCH:-64}
    plan=$OUT/qwen
    load="--batch $batch --prompt 512 --generate 16 --images 1 --image-tokens ${QWEN_TOKENS:-1296}"
    : "${BUDGETS:=15GB 15GB 15GB 15GB}"
    say 0 profile "$1" --db "$db" --devices "$names" --max-batch "$batch" --max-prompt 2048 \
        --max-context "${QWEN_CONTEXT:-32768}" || return
    # shellcheck disable=SC2086
    say 0 plan "$1" --db "$db" --devices "$names" --max-memory "$BUDGETS" $load --force \
        --objective context -o "$plan.json" || return
    context=$(tr -d ' \n' <"$plan.json" |
        sed 's/.*"workload":{[^}]*"context":\([0-9]*\).*/\1/')
    echo "the longest context that fits: $context"
    say 0 bench "$1" --plan "$plan.json" --repeats 1
    # shellcheck disable=SC2086
    say 1 plan "$1" --db "$db" --devices "$names" --max-memory "$BUDGETS" $load --force \
        --context $((context + 32)) -o "$plan.more.json"
    # the same plan with more context: the runtime refuses it before a weight is read
    sed "s/\"context\": *$context\([,}]\)/\"context\": $((2 * context))\1/" "$plan.json" \
        >"$plan.more.json"
    say 3 bench "$1" --plan "$plan.more.json" --repeats 1
}

: "${SPLITS:=10,10,10 3,4,4,4,4,4,4,3}"
for case in ${CASES:-vl2 tokens qwen}; do
    case $case in
    vl2) vl2 "$1" ;;
    tokens) tokens "${SHORT:-$1}" ;;
    qwen) qwen "$2" ;;
    esac
done
exit $failed
