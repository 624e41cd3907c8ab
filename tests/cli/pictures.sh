#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Models that see: references with pictures checked, traced, and pictures from files in prompts.
. "${srcdir:-.}/tests/cli/lib.sh"
qwen=$fixtures/reference/qwen2.5-vl
vl2=$fixtures/reference/deepseek-vl2-tiny
files=$fixtures/images/files

expect 0 evenkeel check "$qwen" --reference "$qwen/reference.safetensors"
says 'equal: 83 rows'
expect 0 evenkeel check "$qwen" --reference "$qwen/reference-video.safetensors" --trace
says 'no module departs'
expect 0 evenkeel check "$vl2" --reference "$vl2/reference.safetensors" --trace --json
says '"module": "projector"'
says '"first_departing": null'
expect 1 evenkeel check "$vl2" --reference "$vl2/reference.safetensors" --trace --tolerance 1e-12
says 'vision.blocks.0 is the first to depart'

expect 0 evenkeel run "$vl2" --image "$files/rgb.png" --prompt "Where?" --max-tokens 3 --json
says '"grounding"'
says '"pictures"'
expect 0 evenkeel run "$qwen" --image "$files/420.jpg" --image "$files/palette.png" --max-tokens 3 \
    --prompt "<image> or <image>?" --json
says '"resized"'
expect 0 evenkeel run "$qwen" --frame "$files/rgb.png" --frame "$files/rgb.png" --fps 1 \
    --prompt "And then?" --max-tokens 3
warns 'pictures: 1 in'

# a conversation of several turns, a system message and pictures in two of them
cat >"$scratch/chat.json" <<'END'
[{"role": "system", "content": "Be brief."},
 {"role": "user", "content": "<image>\nWhat is <|ref|>this<|/ref|>?"},
 {"role": "assistant", "content": "A field."},
 {"role": "user", "content": "And <image>, beside <image>?"}]
END
for model in "$vl2" "$qwen"; do
    expect 0 evenkeel run "$model" --messages "$scratch/chat.json" --image "$files/rgb.png" \
        --image "$files/420.jpg" --image "$files/palette.png" --max-tokens 2 --json
    [ "$(grep -c '"resized"' "$scratch/out")" -eq 3 ] || says 'three pictures'
    expect 2 evenkeel run "$model" --messages "$scratch/chat.json" --image "$files/rgb.png"
    one_line
    warns 'name 3 pictures, 1 are given'
    expect 0 evenkeel run "$model" --image "$files/rgb.png" --system "Be brief." --prompt "Well?" \
        --max-tokens 2
done
expect 2 evenkeel run "$vl2" --messages "$scratch/chat.json" --system "Twice."
one_line
echo '[{"role": "user"}]' >"$scratch/bad.json"
expect 4 evenkeel run "$vl2" --messages "$scratch/bad.json"
warns 'messages\[0\].content'

# recorded with its pictures, and checked against the record
for args in "$vl2 --image $files/rgb.png --image $files/420.jpg" \
    "$qwen --image $files/rgb.png --frame $files/rgb.png --frame $files/rgb.png"; do
    # shellcheck disable=SC2086 # words
    expect 0 evenkeel run $args --prompt "What?" --max-tokens 4 --force \
        --record "$scratch/r.safetensors"
    expect 0 evenkeel check "${args%% *}" --reference "$scratch/r.safetensors" --tolerance 1e-12
    says 'max |difference| 0 '
done

# profiled, planned and run as planned, tower and all
devices="cpu:0/threads=0,mem=64MiB cpu:1/threads=0,mem=64MiB"
expect 0 evenkeel profile "$vl2" --db "$scratch/p.db" --devices "$devices" --max-batch 1 \
    --max-prompt 64 --max-context 128 --target-error 0.5
expect 0 evenkeel plan "$vl2" --db "$scratch/p.db" --prompt 16 --images 1 --image-tokens 55 \
    --generate 8 --context 128 -o "$scratch/plan.json"
expect 0 evenkeel check "$vl2" --plan "$scratch/plan.json" --reference "$vl2/reference.safetensors"
expect 0 evenkeel run "$vl2" --plan "$scratch/plan.json" --image "$files/rgb.png" --prompt "?" \
    --max-tokens 2

# the tower cut between two of its blocks: measured part by part, planned, run, checked, traced
expect 0 evenkeel profile "$qwen" --db "$scratch/cut.db" --devices "$devices" --max-batch 1 \
    --max-prompt 64 --max-context 128 --target-error 0.5 --cut-tower
expect 0 evenkeel plan "$qwen" --db "$scratch/cut.db" --cut-tower --prompt 52 --images 1 \
    --image-tokens 36 --generate 8 --context 128 --pin visual.blocks.1=cpu:0 \
    --pin visual.blocks.2=cpu:1 -o "$scratch/cut.json"
says 'visual.patch_embed .. visual.blocks.1'
says 'cross-check: equal'
expect 0 evenkeel check "$qwen" --plan "$scratch/cut.json" --trace \
    --reference "$qwen/reference.safetensors"
says 'equal: 83 rows'
says 'no module departs'
expect 0 evenkeel run "$qwen" --plan "$scratch/cut.json" --image "$files/rgb.png" --prompt "?" \
    --max-tokens 2
expect 0 evenkeel bench "$qwen" --plan "$scratch/cut.json" --db "$scratch/cut.db"
says 'stage 1 (cpu:1) prefill'
expect 4 evenkeel plan "$qwen" --db "$scratch/cut.db" --prompt 8
warns 'no class has times for module "visual"'
expect 0 evenkeel plan "$fixtures/configs/deepseek-vl2/config.json" --hardware "4x rtx4090" \
    --cut-tower --images 2 --image-tokens 421 --json
says '"vision.pos_embed"'
expect 0 evenkeel model "$vl2" --cut-tower
says 'vision.blocks.0'
expect 4 evenkeel model "$fixtures/reference/llama-mha" --cut-tower
one_line

expect 0 evenkeel bench "$vl2" --plan "$scratch/plan.json" --repeats 1
says 'pictures of a prompt: 1 of 140 x 140'
says 'stage 0 (cpu:.) pictures'
expect 0 evenkeel bench "$qwen" --images 2 --image-size 84x56 --prompt 8 --generate 2 \
    --repeats 1 --json
says '"image_tokens": 6'

# refused, in one line
expect 2 evenkeel bench "$qwen" --images 2 --repeats 1
one_line
expect 2 evenkeel bench "$qwen" --image-tokens 20 --repeats 1
one_line
expect 2 evenkeel bench "$qwen" --images 1 --image-size 84by56 --repeats 1
one_line
expect 2 evenkeel run "$vl2" --image "$files/rgb.png" --prompt a --prompt b
one_line
expect 2 evenkeel run "$vl2" --image "$files/rgb.png" --prompt "<image><image>"
one_line
warns 'name 2 pictures, 1 are given'
expect 2 evenkeel run "$vl2" --image "$files/rgb.png" --image "$files/rgb.png" --prompt "<image>"
warns 'name 1 pictures, 2 are given'
for prompt in "--prompt <image>" "--ids 3,262"; do # none, where the prompt names one
    # shellcheck disable=SC2086 # words
    expect 2 evenkeel run "$qwen" $prompt
    one_line
    warns 'names pictures, 0 are given'
done
expect 2 evenkeel run "$qwen" --ids 3,262,262,262,5 --image "$files/rgb.png"
one_line
warns '3 picture placeholders for 1 pictures (6 tokens in full)'
# more tokens than the model or the plan takes
awk 'BEGIN { for (i = 0; i < 4100; i++) printf "a" }' >"$scratch/long.txt"
expect 2 evenkeel run "$qwen" --image "$files/rgb.png" --prompt-file "$scratch/long.txt"
one_line
warns 'has [0-9]* tokens, qwen2.5-vl takes 4096'
head -c 200 "$scratch/long.txt" >"$scratch/short.txt"
expect 2 evenkeel run "$qwen" --plan "$scratch/cut.json" --image "$files/rgb.png" \
    --prompt-file "$scratch/short.txt"
one_line
warns 'planned for a context of 128 tokens, [0-9]* are needed'
# videos: frames of one size, and of so many patches at most
expect 2 evenkeel run "$qwen" --frame "$files/rgb.png" --frame "$files/420.jpg" --prompt a
one_line
warns 'frame 1 is 37 x 23, the first is 35 x 22'
expect 4 evenkeel run "$vl2" --frame "$files/rgb.png" --prompt a
one_line
cp -r "$qwen" "$scratch/large"
chmod -R u+w "$scratch/large"
sed -e 's/"min_pixels": *[0-9]*/"min_pixels": 60000000/' \
    -e 's/"max_pixels": *[0-9]*/"max_pixels": 64000000/' \
    "$qwen/preprocessor_config.json" >"$scratch/large/preprocessor_config.json"
expect 4 evenkeel run "$scratch/large" --frame "$files/rgb.png" --frame "$files/rgb.png" \
    --frame "$files/rgb.png" --prompt a
one_line
warns '3 frames of [0-9]* x [0-9]* pixels are [0-9]* patches, at most 524288'
expect 3 evenkeel run "$vl2" --image "$scratch/nothing.png" --prompt a
one_line
expect 4 evenkeel run "$vl2" --image "$qwen/config.json" --prompt a
one_line
expect 4 evenkeel run "$fixtures/reference/llama-mha" --image "$files/rgb.png" --ids 1,2
one_line
finish
