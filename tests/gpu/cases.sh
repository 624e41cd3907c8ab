#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Several GPUs against one, and our plan against others on the same profile: throughput of prefill
# with one micro-batch a prompt, decode with few and many sequences, predicted beside measured for
# every plan. Devices that are missing are declared on those that are there.
# Usage: cases.sh MODEL   (a folder with a config.json of a model that only reads)
# Environment: that of common.sh; WHAT (default "load decode"; "load": our plan, one GPU and worse
# ones with 64 sequences, "few": only the first two of them, "decode": few sequences), DEVICES (how
# many; default: all GPUs), MORE (other numbers of devices for our plan, with BUDGET, 24GB, each),
# LAYERS (default: the configuration's), MAX_CONTEXT.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
model=$1
layers=${LAYERS:-$(layers_of "$model")}
name=$(basename "$model")
db=$OUT/$name.cases.db
names=$(devices "${DEVICES:-$gpus}")
n=$(echo "$names" | wc -w)
more=$(for i in ${MORE:-}; do [ "$i" -eq "$n" ] || echo "$i"; done)
# shellcheck disable=SC2086
most=$(printf '%s\n' "$n" $more | sort -n | tail -1)
batch=${BATCH:-64}
prompt=${PROMPT:-512}
context=${MAX_CONTEXT:-$((prompt + 128))}
load="--batch $batch --prompt $prompt --generate 16 --context $context --prefill-chunk $prompt"

# splits "a,b,...": as many layers each; one each and the rest last; most on the first, or the last
even() {
    for i in $(seq "$n"); do
        printf '%d,' $(((layers * i) / n - (layers * (i - 1)) / n))
    done
}
skewed() {
    for i in $(seq $((n - 1))); do printf '1,'; done
    echo $((layers - n + 1))
}
heavy() {
    first=$((layers * 2 / 3))
    echo "$first"
    for i in $(seq $((n - 1))); do
        echo $(((layers - first) * i / (n - 1) - (layers - first) * (i - 1) / (n - 1)))
    done
}
against() { # LABEL plan-options...
    label=$1
    shift
    # shellcheck disable=SC2086
    try "$name-load" "$label" "$model" "$db" $load --devices "$names" "$@"
}

say 0 profile "$model" --db "$db" --devices "$(devices "$most")" --max-batch "$batch" \
    --max-prompt "$prompt" --max-context "$context" --quiet || exit 1
for what in ${WHAT:-load decode}; do
    case $what in
    load | few)
        names=$BACKEND:0 against one-gpu --micro-batches 1
        against ours --use-all
        for i in $more; do
            # what devices on one GPU share is shared out, or the search would have to
            names=$(devices "$i") against "ours-$i" --max-memory "${BUDGET:-24GB}"
        done
        ;;
    decode)
        for few in 1 16; do
            try "$name-decode-$few" ours "$model" "$db" --batch $few --prompt "$prompt" \
                --generate 64 --context "$context" --devices "$names" --use-all
        done
        ;;
    esac
    [ "$what" = load ] && [ "$n" -gt 1 ] || continue
    against equal-split --from "equal split"
    against guide --from "[$(even | sed 's/,$//')]"
    against skewed --from "[$(skewed)]"
    against heavy --from "[$(heavy | paste -sd,)]"
    against late --from "[$(heavy | tac | paste -sd,)]"
done
exit $failed
