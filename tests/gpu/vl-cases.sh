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
# Environment: that of common.sh; CASES (default "vl2 tokens qwen"); SPLITS (default "10,10,10
# 3,4,4,4,4,4,4,4": the second is the guides' own, one layer too long), BUDGET (24GB, of a device)
# of VL2; BUDGETS of Qwen's; BATCH, PROMPT, CONTEXT, IMAGE_TOKENS, QWEN_BATCH, QWEN_TOKENS,
# QWEN_CHUNK, QWEN_CONTEXT; TARGET_ERROR.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
: "${SPLITS:=10,10,10 3,4,4,4,4,4,4,4}" "${BUDGET:=24GB}" "${BUDGETS:=15GB 15GB 15GB 15GB}"
context=${CONTEXT:-2048}
error=${TARGET_ERROR:-0.1} # of the profile between its points: every GPU is profiled
most=$(for s in $SPLITS; do count "$s"; done | sort -n | tail -1)

# ---- VL2: times and memory, predicted beside measured
profile_vl2() { # MODEL: once
    [ -e "$OUT/vl2.db" ] || say 0 profile "$1" --db "$OUT/vl2.db" --devices "$(devices "$most")" \
        --max-batch "${BATCH:-4}" --max-prompt "${PROMPT:-1024}" --max-context "$context" \
        --target-error "$error" --quiet
}
vl2() { # MODEL
    load="--batch ${BATCH:-4} --prompt 64 --generate 16 --context $context"
    load="$load --images 1 --image-tokens ${IMAGE_TOKENS:-1023} --max-memory $BUDGET"
    profile_vl2 "$1" || return
    for split in $SPLITS; do
        names=$(devices "$(count "$split")")
        for from in guide ours; do
            # shellcheck disable=SC2046,SC2086
            REPEATS=2 try "vl2-$(count "$split")" $from "$1" "$OUT/vl2.db" \
                --devices "$names" $load $([ $from = ours ] || echo "--from [$split]")
        done
    done
}

# ---- the same tokens wherever modules are
wants() { # MODEL DB MEMORY-AND-LOAD...: $want, of one device
    model=$1
    db=$2
    shift 2
    say 0 plan "$model" --db "$db" --devices "$BACKEND:0" "$@" -o "$OUT/one.json" >"$OUT/one.txt" ||
        { cat "$OUT/one.txt"; return 1; }
    want=$(answer "$model" "$OUT/one.json")
    echo "tokens on one device: $want [$(($(date +%s) - started)) s]"
}
compare() { # MODEL PLAN WHAT
    got=$(answer "$1" "$2")
    echo "tokens on $3: $got [$(($(date +%s) - started)) s]"
    [ "$got" = "$want" ] && [ -n "$got" ] || { echo "FAILED: other tokens"; failed=1; }
}
answer() { # MODEL PLAN: ids of the answer to one prompt
    ids=$(seq -s , 100 160)
    limited "$EVENKEEL" run "$1" --plan "$2" --ids "$ids" --max-tokens 12 --json |
        tr -d ' \n' | sed 's/.*"ids":\[\([0-9,]*\)\].*/\1/'
}
tokens() { # MODEL: of VL2's plans above, made here where they were not
    load="--batch 1 --prompt 64 --generate 16 --context 256 --force --quiet"
    profile_vl2 "$1" || return
    # shellcheck disable=SC2086
    wants "$1" "$OUT/vl2.db" $load || return
    for split in $SPLITS; do
        for from in guide ours; do
            plan=$OUT/vl2-$(count "$split").$from.plan.json
            # shellcheck disable=SC2046,SC2086
            [ -e "$plan" ] || say 0 plan "$1" --db "$OUT/vl2.db" $load -o "$plan" \
                --max-memory "$BUDGET" --devices \
                "$(devices "$(count "$split")")" $([ $from = ours ] || echo "--from [$split]") \
                >"$OUT/many.txt" || { cat "$OUT/many.txt"; continue; }
            compare "$1" "$plan" "$(count "$split") devices, $from"
        done
    done
}

# ---- as much context as fits, and one step more
qwen() { # MODEL
    db=$OUT/qwen.db
    # shellcheck disable=SC2086
    names=$(devices "$(echo $BUDGETS | wc -w)")
    batch=${QWEN_BATCH:-64}
    load="--batch $batch --prompt 512 --generate 16 --images 1 --image-tokens ${QWEN_TOKENS:-1296}"
    load="$load --prefill-chunk ${QWEN_CHUNK:-512}" # a smaller one takes less memory
    say 0 profile "$1" --db "$db" --devices "$names" --max-batch "$batch" --max-prompt 2048 \
        --max-context "${QWEN_CONTEXT:-32768}" --target-error "$error" --quiet || return
    # shellcheck disable=SC2086
    REPEATS=1 try qwen ours "$1" "$db" --devices "$names" --max-memory "$BUDGETS" $load \
        --objective context || return
    context=$(tr -d ' \n' <"$OUT/qwen.ours.plan.json" |
        sed 's/.*"workload":{[^}]*"context":\([0-9]*\).*/\1/')
    echo "the longest context that fits: $context"
    wants "$1" "$db" --batch 1 --prompt 64 --generate 16 --context 256 --force --quiet &&
        compare "$1" "$OUT/qwen.ours.plan.json" "$(echo "$BUDGETS" | wc -w) devices"
    # shellcheck disable=SC2086
    say 1 plan "$1" --db "$db" --devices "$names" --max-memory "$BUDGETS" $load --force \
        --context $((context + 32)) -o "$OUT/more.json"
    # the same plan with more context: the runtime refuses it before a weight is read
    sed "s/\"context\": *$context\([,}]\)/\"context\": $((2 * context))\1/" \
        "$OUT/qwen.ours.plan.json" >"$OUT/more.json"
    say 3 bench "$1" --plan "$OUT/more.json" --repeats 1
}

for case in ${CASES:-vl2 tokens qwen}; do
    case $case in
    vl2) vl2 "$1" ;;
    tokens) tokens "$1" ;;
    qwen) qwen "$2" ;;
    esac
done
exit $failed
