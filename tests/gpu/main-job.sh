#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The main job on this machine's GPUs, from a folder made by `make relocatable`: devices, profile,
# plan, bench (predicted beside measured), for models described by a config.json (weights from a
# seed).
# Usage: main-job.sh MODEL [MODEL ...]     MODEL: a folder with a config.json
# Environment: OUT (logs and plans, default "."), DEVICES (default: every GPU), BUDGETS (per device,
# e.g. "6GB 6GB"), BATCH PROMPT GENERATE CONTEXT, LIMIT (seconds a command may take).
set -u
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-.}
. "$here/cuda-path.sh"
gpus=$(nvidia-smi -L | wc -l)
DEVICES=${DEVICES:-$(seq -s ' ' -f 'cuda:%g' 0 $((gpus - 1)))}
failed=0
say() {
    echo "\$ evenkeel $*"
    timeout "${LIMIT:-240}" "$here/bin/evenkeel" "$@"
    rc=$?
    [ $rc -eq 0 ] || { echo "exit $rc"; failed=1; }
    return $rc
}
nvidia-smi --format=csv \
    --query-gpu=index,name,uuid,pci.bus_id,driver_version,memory.total,clocks.sm,clocks.mem
[ -n "${SKIP_DEVICES:-}" ] || say devices --devices "$DEVICES" --measure
for model in "$@"; do
    name=$(basename "$model")
    db=$OUT/$name.db
    plan=$OUT/$name.plan.json
    start=$(date +%s)
    say profile "$model" --db "$db" --devices "$DEVICES" --max-batch "${MAX_BATCH:-8}" \
        --max-prompt "${PROMPT:-512}" --max-context "${MAX_CONTEXT:-2048}" || continue
    echo "profiled in $(($(date +%s) - start)) s"
    for budget in "" ${BUDGETS:+"$BUDGETS"}; do
        say plan "$model" --db "$db" --batch "${BATCH:-4}" --prompt "${PROMPT:-512}" \
            --generate "${GENERATE:-64}" --context "${CONTEXT:-1024}" \
            ${budget:+--max-memory "$budget"} -o "$plan" --force || continue
        say bench "$model" --plan "$plan" --db "$db"
    done
done
exit $failed
