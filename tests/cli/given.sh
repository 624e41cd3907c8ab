#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Plans that others made, run: hand-made maps that come back to a device, splits, recipes; and plans
# that are corrected by what earlier ones took.
. "${srcdir:-.}/tests/cli/lib.sh"
[ -x "$bin/evenkeel-plan" ] || exit 77
model=$fixtures/reference/llama-gqa-tied
reference=$model/reference.safetensors
db=$scratch/profile.db
load="--batch 2 --prompt 16 --generate 8 --context 64"
devices="cpu:0/threads=0,mem=64MiB cpu:1/threads=0,mem=64MiB"

expect 0 evenkeel profile "$model" --db "$db" --devices "$devices" \
    --max-batch 2 --max-prompt 16 --max-context 64 --target-error 0.9
expect 3 evenkeel plan "$model" --db "$db" $load --calibrated
warns 'evenkeel bench'
expect 0 evenkeel run "$model" --ids 1,2,3,4 --max-tokens 6 --json
ids() { # of the last answer
    sed -n '/"ids"/,/]/p' "$scratch/out"
}
ids >"$scratch/alone"
expect 0 evenkeel run "$model" --ids 1,2,3,4 --max-tokens 40 --ignore-eos --repetition-penalty 100 \
    --presence-penalty 2 --frequency-penalty 2 --json
[ "$(ids | grep -oE '[0-9]+' | sort -u | wc -l)" -eq 40 ] || {
    echo "FAILED: a token was said again"
    failures=$((failures + 1))
}
expect 2 evenkeel run "$model" --ids 1,2 --frequency-penalty 3
one_line

# a device_map that visits cpu:0 three times, the head back with its embedding
cat >"$scratch/map.json" <<'END'
{"": "cpu:0", "model.layers.0": "cpu:1", "model.layers.2": "cpu:1"}
END
n=0
for from in "$scratch/map.json" '[1,2]' 'equal split'; do
    n=$((n + 1))
    expect 0 evenkeel plan "$model" --db "$db" $load --from "$from" -o "$scratch/$n.json"
    says 'stages, a batch in'
    expect 0 evenkeel check "$model" --plan "$scratch/$n.json" --reference "$reference"
    says 'equal'
    expect 0 evenkeel run "$model" --plan "$scratch/$n.json" --ids 1,2,3,4 --max-tokens 6 --json
    ids | cmp -s - "$scratch/alone" || {
        echo "FAILED: other tokens under $from"
        failures=$((failures + 1))
    }
    expect 0 evenkeel bench "$model" --plan "$scratch/$n.json" --db "$db" --repeats 2
    says "stage 0 (cpu:0) decode step"
done
grep -q '"status": "given"' "$scratch/1.json" || failures=$((failures + 1))
[ "$(grep -c '"device": "cpu:0"' "$scratch/1.json")" -eq 4 ] || { # three stages and a memory row
    echo "FAILED: the map's stages are not in the plan"
    failures=$((failures + 1))
}

# what cannot run is not written
expect 1 evenkeel plan "$model" --db "$db" $load --from '[1,2]' \
    --max-memory "200KB 64MiB" -o "$scratch/no.json"
says 'DOES NOT FIT'
[ ! -e "$scratch/no.json" ] || failures=$((failures + 1))
expect 2 evenkeel plan "$model" --db "$db" $load --from '[1,1]'
one_line
expect 2 evenkeel plan "$model" --db "$db" $load --from 'some recipe'
one_line
echo '{"model.layers.0": "cpu:9"}' >"$scratch/bad.json"
expect 4 evenkeel plan "$model" --db "$db" $load --from "$scratch/bad.json"
one_line

# runs correct later plans, and say so
expect 0 evenkeel plan "$model" --db "$db" --batch 1 --prompt 12 --generate 6 --context 64 \
    --calibrated -o "$scratch/next.json"
says '^calibrated    cpu:[01]: prefill x [0-9.]*, decode x [0-9.]*, from [1-9]'
grep -q '"calibration"' "$scratch/next.json" || failures=$((failures + 1))
expect 0 evenkeel bench "$model" --plan "$scratch/next.json" --db "$db" --repeats 2
expect 2 evenkeel plan "$model" --hardware "2x t4" --calibrated

# the profile on cards that are not at hand
expect 0 evenkeel plan "$model" --db "$db" $load --hardware "2x a100-80" --json
says '"estimate": true'
says 'scaled by roofline'
finish
