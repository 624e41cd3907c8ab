#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The main job on a small model and two CPU devices: profile, plan, run, check, bench.
. "${srcdir:-.}/tests/cli/lib.sh"
model=$fixtures/reference/llama-gqa-tied
reference=$model/reference.safetensors
devices="cpu:0/threads=0,mem=64MiB cpu:1/threads=0,mem=64MiB"
db=$scratch/profile.db

expect 0 evenkeel model "$model"
says 'model.layers.0'
expect 0 evenkeel model "$model" --json
expect 0 evenkeel devices --devices "$devices"
says 'cpu:1'
for chunk in 1 7 4096; do
    expect 0 evenkeel check "$model" --reference "$reference" --prefill-chunk $chunk
    says 'equal'
done

expect 0 evenkeel profile "$model" --db "$db" --devices "$devices" --max-batch 2 --max-prompt 32 \
    --max-context 128 --target-error 0.5
expect 0 evenkeel plan "$model" --db "$db" --batch 2 --prompt 32 --generate 8 --context 128 \
    -o "$scratch/plan.json"
says 'optimal'
expect 2 evenkeel plan "$model" --db "$db" --batch 2 --prompt 32 --generate 8 --context 128 \
    -o "$scratch/plan.json"
expect 0 evenkeel check "$model" --plan "$scratch/plan.json" --reference "$reference" --json
says '"ok": true'
expect 0 evenkeel run "$model" --plan "$scratch/plan.json" --ids 1,2,3,4 --max-tokens 4 --json
says '"ids"'
expect 0 evenkeel bench "$model" --plan "$scratch/plan.json" --db "$db" \
    --output "$scratch/bench.json"
says 'decode'
expect 0 grep -q '"prefill_tokens_per_s"' "$scratch/bench.json"
expect 2 evenkeel bench "$model" --plan "$scratch/plan.json" --output "$scratch/bench.json"
expect 2 evenkeel bench "$model" --load --devices cpu:0 --output "$scratch/load.json"

expect 3 evenkeel plan "$model" --db "$db" --cache fp8
warns 'only such as --act F32 --cache F32'

# a cache of E4M3: profiled, planned and run as such
scaled=$scratch/scaled.json
expect 0 evenkeel profile "$model" --db "$scratch/scaled.db" --devices cpu:0/mem=64MiB --cache fp8 \
    --max-batch 2 --max-prompt 32 --max-context 64 --target-error 0.5
expect 0 evenkeel plan "$model" --db "$scratch/scaled.db" --cache fp8 --batch 2 --prompt 32 \
    --generate 8 --context 64 -o "$scaled"
expect 0 grep -q '"cache": "F8_E4M3"' "$scaled"
expect 0 evenkeel run "$model" --plan "$scaled" --ids 1,2,3,4 --max-tokens 4
expect 1 evenkeel check "$model" --plan "$scaled" --reference "$reference"
warns 'differ'
expect 0 evenkeel check "$model" --cache fp8 --reference "$reference" --tolerance 0.5
expect 2 evenkeel run "$model" --cache fp7 --ids 1,2,3
warns 'must be F32, F16, BF16 or fp8'

# weights written and loaded; what needs a GPU says so
mkdir "$scratch/written"
cp "$model/config.json" "$scratch/written/"
expect 0 evenkeel model "$model/config.json" --write "$scratch/written/model.safetensors"
expect 2 evenkeel model "$model/config.json" --write "$scratch/written/model.safetensors"
expect 0 evenkeel bench "$scratch/written" --load --devices cpu:0
says 'page cache'
expect 0 evenkeel bench "$scratch/written" --load --devices cpu:0 --json
says '"load_s"'
expect 2 evenkeel bench "$model/config.json" --load --devices cpu:0
warns 'no weights'

# answers that are no
expect 1 evenkeel plan "$model" --db "$db" --batch 2 --prompt 32 --generate 8 --context 128 \
    --max-memory "64KiB 64KiB"
small=$fixtures/reference/llama-gqa-tied
expect 1 evenkeel check "$small" --reference "$small/reference.safetensors" --tolerance 0.000000001
warns 'differ'

# files that are not what they should be
mkdir "$scratch/other"
cp "$model/config.json" "$fixtures/tokenizers/llama3/tokenizer.json" "$scratch/other/"
expect 4 evenkeel run "$scratch/other" --prompt hello
warns 'they belong to different models'
one_line
# weights quantised at load: their error is shown, and judged where a tolerance is asked for
full=$fixtures/reference/llama-mha
for type in int8 int4; do
    expect 0 evenkeel check "$full" --quantize $type --reference "$full/reference.safetensors"
    says "^$type: .* mean KL"
done
expect 0 evenkeel check "$full" --quantize int8 --reference "$full/reference.safetensors" --json
says '"judged": false'
expect 0 evenkeel check "$full" --quantize int8 --reference "$full/reference.safetensors" --kl 0.1
says '^equal: '
expect 1 evenkeel check "$full" --quantize int4 --reference "$full/reference.safetensors" \
    --tolerance 1e-4
says '^DIFFERENT: '
expect 4 evenkeel check "$model" --reference "$model/config.json"
one_line
expect 4 evenkeel run "$model" --plan "$model/config.json" --ids 1
one_line
expect 4 evenkeel profile "$model" --db "$model/config.json"
one_line
finish
