#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What goes where: --json is one document on stdout, messages are lines on stderr without control
# characters, and a stdout that is closed or full is exit code 3.
. "${srcdir:-.}/tests/cli/lib.sh"
model=$fixtures/reference/llama-gqa-tied
reference=$model/reference.safetensors
machine=$top/tests/planner/machines/2x-cpu-smollm2-measured.json
plan=$scratch/plan.json
db=$scratch/profile.db
cpu="cpu:0/threads=0,mem=64MiB"

# json CODE COMMAND ...: exits with CODE and prints one document
json() {
    expect "$@" --json
    "$bin/tests/cli/one_json" <"$scratch/out" && return 0
    echo "FAILED: stdout is not one JSON document: $*"
    failures=$((failures + 1))
}

json 0 evenkeel devices --devices "$cpu"
json 0 evenkeel model "$model"
json 0 evenkeel run "$model" --ids 1,2,3 --max-tokens 4
json 0 evenkeel run "$model" --ids 1,2,3 --ids 4,5 --max-tokens 4
json 0 evenkeel check "$model" --reference "$reference"
json 1 evenkeel check "$model" --reference "$reference" --tolerance 0.000000001
json 0 evenkeel profile "$model" --db "$db" --devices "$cpu" --max-batch 1 --max-prompt 16 \
    --max-context 32 --target-error 0.9
json 0 evenkeel bench "$model" --prompt 8 --generate 4
if [ -x "$bin/evenkeel-plan" ]; then
    json 0 evenkeel plan "$model" --db "$db" --prompt 8 --generate 4 -o "$plan"
    json 0 evenkeel bench "$model" --plan "$plan" --db "$db"
    json 0 evenkeel report "$plan" -o "$scratch/a\"b.html"
    json 0 evenkeel simulate "$plan" --requests 4
    json 0 evenkeel hardware
    json 0 evenkeel cluster "$top/tests/planner/machines/cluster.json" --load 1000
    json 0 evenkeel plan "$model" --db "$db" --prompt 8 --generate 4 --from equal
    json 0 evenkeel plan --costs "$machine"
    json 1 evenkeel plan --costs "$machine" --max-memory 64KiB
fi

# full CODE COMMAND ..., on /dev/full and on a closed stdout
full() {
    for how in full closed; do
        if [ $how = full ]; then
            "$@" >/dev/full 2>"$scratch/err"
        else
            "$@" >&- 2>"$scratch/err"
        fi
        got=$?
        : >"$scratch/out"
        [ $got -eq 3 ] && continue
        echo "FAILED: exit $got, expected 3, stdout $how: $*"
        failures=$((failures + 1))
    done
    warns 'stdout: '
}
full evenkeel --version
full evenkeel --help
full evenkeel help run
full evenkeel devices --devices "$cpu"
full evenkeel model "$model"
full evenkeel model "$model" --json
full evenkeel run "$model" --ids 1,2,3 --max-tokens 2
full evenkeel check "$model" --reference "$reference"
full evenkeel bench "$model" --prompt 8 --generate 4
if [ -x "$bin/evenkeel-plan" ]; then
    full evenkeel plan --help
    full evenkeel plan --costs "$machine"
    full evenkeel plan --costs "$machine" --json
    full evenkeel export "$plan" --to accelerate
fi

# names that would steer a terminal, of files and in files
name=$(printf 'x\033[2J\302\233y')
hostile=$scratch/$name
plain() {
    controls=$(printf '[\001-\010\013-\037\177]\\|\302\233')
    LC_ALL=C grep -q "$controls" "$scratch/out" "$scratch/err" || return 0
    echo "FAILED: a control character was printed: $*"
    failures=$((failures + 1))
}
mkdir "$hostile"
cp "$fixtures/configs/smollm2-135m/config.json" "$hostile/"
expect 0 evenkeel model "$hostile"
plain model
expect 3 evenkeel model "$hostile/$name"
plain missing
sed "s/LlamaForCausalLM/$name/" "$hostile/config.json" >"$scratch/c.json"
expect 4 evenkeel model "$scratch/c.json"
plain architecture
one_line
expect 2 evenkeel "$name"
plain command
finish
