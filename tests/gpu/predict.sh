#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Predicted beside measured on workloads that no profile has seen: every line of every bench with
# its signed error, then median and worst of each kind of line.
# Usage: predict.sh CONFIGS    (a folder with folders of config.json; weights from a seed)
# Environment: that of common.sh; GROUPS_RUN (default: all below but cpu, which wants BACKEND=cpu).
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
configs=$1
lines=$OUT/lines.txt
: >"$lines"

profile() { # NAME MODEL DEVICES options...
    name=$1 model=$configs/$2 devices=$3
    shift 3
    db=$OUT/$name.db
    begin=$(date +%s)
    say 0 profile "$model" --db "$db" --devices "$devices" "$@" >"$OUT/$name.profile.txt" 2>&1 ||
        { tail -3 "$OUT/$name.profile.txt"; return 1; }
    echo "== $name: profiled on $devices ($*) in $(($(date +%s) - begin)) s"
}
# Lines of a bench as "KIND<tab>error<tab>text"; KIND: whole or stage, and the phase; memory's
# totals.
errors() { # LABEL
    awk -v label="$1" '
        / error$/ { table = 1; next }
        !table || /^-/ || $NF != "%" { next }
        {
            error = $(NF - 1) + 0
            kind = ""
            if (/^pictures/) kind = "pictures, whole"
            else if (/^prefill/) kind = "prefill, whole"
            else if (/^decode/) kind = "decode, whole"
            else if (/^stage .* pictures/) kind = "pictures, stage"
            else if (/^stage .* prefill/) kind = "prefill, stage"
            else if (/^stage .* decode/) kind = "decode, stage"
            else if (/^memory .* total/) kind = "memory"
            if (kind != "") printf "%s\t%s\t%-34s %s\n", kind, error, label, $0
        }'
}
try() { # LABEL plan-options...: with the profile made last
    label=$1
    shift
    plan=$OUT/$(echo "$label" | tr -c 'a-zA-Z0-9\n' '-').json
    say 0 plan "$model" --db "$db" --devices "$devices" --force -o "$plan" "$@" \
        >"$OUT/plan.txt" 2>&1 || { tail -5 "$OUT/plan.txt"; return; }
    say 0 bench "$model" --plan "$plan" --db "$db" --quiet >"$OUT/bench.txt" 2>&1 ||
        { tail -5 "$OUT/bench.txt"; return; }
    errors "$label" <"$OUT/bench.txt" >>"$lines"
    errors "$label" <"$OUT/bench.txt" | cut -f3
}
summary() {
    echo
    echo "what              n   median    worst   (absolute errors)"
    sort -t "$(printf '\t')" -k1,1 "$lines" | awk -F '\t' '
        function flush(  i, j, t) {
            if (!n) return
            for (i = 2; i <= n; i++)
                for (j = i; j > 1 && v[j - 1] > v[j]; j--) {
                    t = v[j]; v[j] = v[j - 1]; v[j - 1] = t
                }
            printf "%-16s %2d %6.1f %% %6.1f %%\n", kind, n,
                n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2, v[n]
        }
        $1 != kind { flush(); kind = $1; n = 0 }
        { v[++n] = $2 < 0 ? -$2 : $2 }
        END { flush() }'
}

for group in ${GROUPS_RUN:-3b 7b lite tiny small declared}; do
    case $group in
    3b)
        profile 3b qwen2.5-vl-3b cuda:0 --max-batch 8 --max-prompt 1024 --max-context 2048 ||
            continue
        try "3B, 1 x 300 + 32" --batch 1 --prompt 300 --generate 32
        try "3B, 3 x 700 + 32" --batch 3 --prompt 700 --generate 32
        try "3B, 6 x 90 + 48" --batch 6 --prompt 90 --generate 48
        try "3B, 2 x picture 1296 + 64" --batch 2 --prompt 64 \
            --images 1 --image-tokens 1296 --generate 16
        try "3B, 2 x 2 pictures 320 + 64" --batch 2 --prompt 64 \
            --images 2 --image-tokens 320 --generate 16
        ;;
    7b)
        profile 7b qwen2.5-vl-7b cuda:0 --max-batch 4 --max-prompt 1024 --max-context 2048 ||
            continue
        try "7B, 3 x 700 + 32" --batch 3 --prompt 700 --generate 32
        try "7B, 1 x 1500 + 32" --batch 1 --prompt 1500 --generate 32
        try "7B, 1 x picture 1296 + 64" --batch 1 --prompt 64 \
            --images 1 --image-tokens 1296 --generate 16
        ;;
    lite)
        profile lite deepseek-v2-lite cuda:0 --max-batch 8 --max-prompt 512 --max-context 1024 ||
            continue
        try "V2-Lite, 2 x 100 + 32" --batch 2 --prompt 100 --generate 32
        try "V2-Lite, 3 x 300 + 32" --batch 3 --prompt 300 --generate 32
        try "V2-Lite, 7 x 400 + 32" --batch 7 --prompt 400 --generate 32
        ;;
    tiny)
        profile tiny deepseek-vl2-tiny cuda:0 --max-batch 4 --max-prompt 1024 --max-context 2048 ||
            continue
        try "VL2-tiny, 2 x 250 + 32" --batch 2 --prompt 250 --generate 32
        try "VL2-tiny, 2 x picture 1023 + 64" --batch 2 --prompt 64 \
            --images 1 --image-tokens 1023 --generate 16
        ;;
    small)
        profile small deepseek-vl2-small cuda:0 \
            --max-batch 4 --max-prompt 1024 --max-context 2048 || continue
        try "VL2-small, 2 x picture 1023 + 64" --batch 2 --prompt 64 \
            --images 1 --image-tokens 1023 --generate 16
        ;;
    declared)
        profile declared qwen2.5-3b "cuda:0 cuda:0.1" --max-batch 4 --max-prompt 512 \
            --max-context 512 || continue
        for split in "[18,18]" "[27,9]" "[1,35]"; do # the order is the predicted one
            try "3B on 2 declared, $split" --batch 4 --prompt 300 --generate 16 --from "$split"
        done
        try "3B, [20,16], calibrated" --batch 4 --prompt 450 --generate 16 --from "[20,16]" \
            --calibrated
        ;;
    cpu)
        profile cpu smollm2-135m cpu:0 --max-batch 4 --max-prompt 256 --max-context 512 || continue
        try "SmolLM2 on a CPU, 1 x 200 + 32" --batch 1 --prompt 200 --generate 32
        try "SmolLM2 on a CPU, 3 x 90 + 32" --batch 3 --prompt 90 --generate 32
        ;;
    esac
    echo "   at $(($(date +%s) - started)) s"
done
summary
exit $failed
