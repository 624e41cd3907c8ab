#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What several GPUs are asked for, all in one call of under ten minutes, on however many there are:
#   links   the device report: every ordered pair by every mechanism, alone and all at once; what a
#           hand-over costs a decode step
#   cases   one model over one and all GPUs and under worse plans, few and many sequences; over 4
#           and 8 devices, declared on the GPUs where there are fewer (cases.sh)
#   vl2 tokens qwen   the known cases of vision-language models (vl-cases.sh)
#   larger  a larger model, on one and on all GPUs
#   beside  transformers with the models above, accelerate's balanced map over the same GPUs
# Then a table of it all (summary.py). Exit code 0: nothing failed, tokens are those of one GPU, and
# order, memory, times and gains meet their bars.
# Usage: many-gpus.sh CONFIGS [PART...]     CONFIGS: the folder with the models' folders
# Environment: that of common.sh; WITHIN (570 seconds); MODEL (qwen2.5-3b), LARGER (qwen2.5-7b), VL2
# (deepseek-vl2), QWEN (qwen2.5-vl-3b): names of folders; what cases.sh and vl-cases.sh take.
set -u
here=$(cd "$(dirname "$0")" && pwd)
UNTIL=${UNTIL:-$(($(date +%s) + ${WITHIN:-570}))}
. "$here/common.sh"
configs=$1
shift
export OUT BACKEND EVENKEEL UNTIL
model=${MODEL:-qwen2.5-3b}
larger=${LARGER:-qwen2.5-7b}
part() { # COMMAND...: its output to the log, its failure to the exit code
    "$@" || { echo "FAILED: $*"; failed=1; }
    echo "[$(($(date +%s) - started)) s in all]"
}
beside() {
    python3 -c 'import accelerate, transformers' || { echo "no transformers here"; return 0; }
    models="$configs/$model"
    [ ! -e "$OUT/$larger-load.ours.bench.json" ] || models="$models $configs/$larger"
    # shellcheck disable=SC2086
    limited python3 "$here/balanced_transformers.py" "$OUT/transformers.json" $models
}
links() {
    n=${DEVICES:-$gpus}
    say 0 devices --devices "$(devices "$n")" --measure >"$OUT/devices.txt"
    cat "$OUT/devices.txt"
    # by every mechanism alone, both ways and all at once: as many rows as there are ordered pairs
    awk -v pairs=$((n * (n - 1))) '
        $2 == "->" { rows[$4 ($5 ~ /^[a-z]/ ? " " $5 : "")]++; any = 1 }
        END {
            for (r in rows)
                if (rows[r] != pairs && ++bad)
                    printf "FAILED: %d of %d pairs by %s\n", rows[r], pairs, r
            exit bad || (pairs && !any)
        }' "$OUT/devices.txt" || failed=1
    [ ! -x "$here/bin/bench_handoff" ] || limited "$here/bin/bench_handoff" 4096 28672
}

for part in ${*:-links cases vl2 tokens qwen larger beside}; do
    echo "==== $part"
    case $part in
    links) part links ;;
    cases) part env MORE="${MORE:-4 8}" sh "$here/cases.sh" "$configs/$model" ;;
    larger) part env WHAT=few sh "$here/cases.sh" "$configs/$larger" ;;
    vl2 | tokens | qwen)
        part env CASES="$part" sh "$here/vl-cases.sh" "$configs/${VL2:-deepseek-vl2}" \
            "$configs/${QWEN:-qwen2.5-vl-3b}"
        ;;
    beside) part beside ;;
    esac
done
part python3 "$here/summary.py" "$OUT"
exit $failed
