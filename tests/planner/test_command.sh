#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Drives evenkeel-plan itself: exit codes, the same bytes twice, every export, the report.
set -u
plan=${EVENKEEL_PLAN:-./evenkeel-plan}
machines=${srcdir:-.}/tests/planner/machines
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT
failed=0

expect() { # CODE WHAT COMMAND...
    code=$1 what=$2
    shift 2
    "$@" >"$dir/out" 2>"$dir/err"
    got=$?
    [ "$got" -eq "$code" ] && return
    echo "FAIL $what: exit code $got, expected $code"
    cat "$dir/err"
    failed=1
}

says() { # out|err TEXT
    grep -q -e "$2" "$dir/$1" && return
    echo "FAIL: no \"$2\" in"
    cat "$dir/$1"
    failed=1
}

costs=$machines/8x-rtx4090-vl2-base.json
expect 0 "help" "$plan" --help
expect 0 "version" "$plan" --version
expect 0 "plan help" "$plan" plan --help
expect 2 "no command" "$plan"
expect 2 "unknown command" "$plan" paln
expect 2 "unknown option" "$plan" plan --costs "$costs" --fast
says "err" "plan: unknown option --fast"
expect 2 "no value" "$plan" plan --costs "$costs" --batch
says "err" "plan: --batch needs a value"
expect 2 "a value too many" "$plan" export a.json --json=yes
says "err" "export: --json=yes takes no value"
expect 2 "a short one" "$plan" simulate a.json -x
says "err" "simulate: unknown or incomplete option -x"
expect 2 "no input" "$plan" plan
expect 2 "bad size" "$plan" plan --costs "$costs" --max-memory 15XB
expect 2 "a split with a gap" "$plan" plan --costs "$costs" --from "[3,4,,4,4,4,4,4,3]"
expect 2 "too few sizes" "$plan" plan --costs "$costs" --max-memory "15GB 15GB"
expect 2 "unknown module" "$plan" plan --costs "$costs" --pin nothing=cuda:0
expect 3 "missing file" "$plan" plan --costs "$dir/none.json"
echo '{"format": "evenkeel-costs", "version": 1' >"$dir/bad.json"
expect 4 "malformed file" "$plan" plan --costs "$dir/bad.json"
expect 1 "too small" "$plan" plan --costs "$costs" --max-memory 2GB
expect 0 "plan" "$plan" plan --costs "$costs" -o "$dir/a.json"
expect 2 "no overwriting" "$plan" plan --costs "$costs" -o "$dir/a.json"
expect 0 "overwriting on demand" "$plan" plan --costs "$costs" -o "$dir/a.json" --force
expect 0 "plan again" "$plan" plan --costs "$costs" -o "$dir/b.json"
cmp "$dir/a.json" "$dir/b.json" || failed=1
for form in "23GB" "23GB 23GB 23GB 23GB 23GB 23GB 23GB 23GB" "0.9" "90%" \
    "cuda:0=20GiB,cuda:1=90%"; do
    expect 0 "--max-memory $form" "$plan" plan --costs "$costs" --max-memory "$form"
done
expect 0 "sizes as arguments" "$plan" plan --costs "$costs" --max-memory 23GB 23GB 23GB 23GB 23GB \
    23GB 23GB 23GB
expect 1 "an export that cannot say it" "$plan" export "$dir/a.json" --to vllm
expect 0 "for vllm" "$plan" plan --costs "$costs" --for vllm -o "$dir/v.json"
for target in accelerate vllm sglang tensorrt-llm llama.cpp deepspeed; do
    expect 0 "export to $target" "$plan" export "$dir/v.json" --to $target
done
sed 's/"index": 1,/"index": 0,/' "$dir/v.json" >"$dir/shared.json" # one GPU declared twice
expect 1 "export of two devices of one GPU" "$plan" export "$dir/shared.json" --to vllm
says "err" "the GPU of cuda:1 is visited twice"
expect 0 "a map of them" "$plan" export "$dir/shared.json" --to accelerate
tp=$machines/8x-h100-llama-70b-tp.json
expect 0 "one degree for vllm" "$plan" plan --costs "$tp" --for vllm -o "$dir/tp.json"
expect 0 "export of that degree" "$plan" export "$dir/tp.json" --to vllm
says "out" "--tensor-parallel-size 4"
expect 2 "an engine without that" "$plan" plan --costs "$tp" --tp 2 --for llama.cpp
cpus=$machines/2x-cpu-smollm2-measured.json
expect 1 "an engine of GPUs on CPUs" "$plan" plan --costs "$cpus" --for vllm
says "err" "without --for it fits"
sed 's/"backend": *"cuda"/"backend": "cpu"/' "$machines/rtx4090-and-t4-qwen-7b.json" \
    >"$dir/cpus.json"
expect 1 "a map of two CPUs" "$plan" plan --costs "$dir/cpus.json" --for accelerate
says "err" "knows one CPU"
expect 0 "a map of one CPU" "$plan" plan --costs "$dir/cpus.json" --for accelerate \
    --ban '*=cuda:1' -o "$dir/m.json"
expect 0 "export of that map" "$plan" export "$dir/m.json" --to accelerate
says "out" '"lm_head": "cpu"'
expect 2 "another type of cache" "$plan" plan --costs "$tp" --cache F16
expect 1 "too small a part" "$plan" plan --costs "$costs" --max-memory 30% # 7.10 GiB
says "err" " 256.00 MiB more on every device would do"
expect 1 "one size for each" "$plan" plan --costs "$costs" --max-memory \
    "7GiB 7GiB 7GiB 7GiB 7GiB 7GiB 7GiB 1GiB"
says "err" "3 more rtx4090 would do" # of 7 GiB, as the others
expect 0 "as much more" "$plan" plan --costs "$costs" --max-memory 7.35GiB
expect 1 "too few stages" "$plan" plan --costs "$costs" --max-stages 2
says "err" "with --max-stages 3 it fits"
expect 1 "two rules that contradict" "$plan" plan --costs "$costs" --fixed-order \
    --pin language.model.embed_tokens=cuda:7 --pin language.model.layers.0=cuda:2
says "err" "without --pin language.model.embed_tokens=cuda:7 it fits"
says "err" "without --fixed-order it fits"
expect 2 "export to nothing" "$plan" export "$dir/a.json" --to nothing
expect 4 "export of costs" "$plan" export "$costs" --to vllm
expect 0 "report" "$plan" report "$dir/a.json" -o "$dir/report.html"
grep -q '</html>' "$dir/report.html" || failed=1
expect 0 "costing a plan" "$plan" plan --costs "$costs" --from "$dir/a.json"
expect 0 "staying near" "$plan" plan --costs "$costs" --near "$dir/a.json"
says "out" "^bound .*, gap "
expect 0 "explaining" "$plan" plan --costs "$costs" --explain --pareto --json
expect 0 "explaining to people" "$plan" plan --costs "$costs" --explain --pareto
says "out" "^next best  *[0-9.]* s (.*) with cuda:[0-9]: "
says "out" "^unused  *cuda:[0-9]"
says "out" "with one more rtx4090"
says "out" "cuda:1: does not bind; one more module takes"
says "out" "^front of the slowest"
vl2=${srcdir:-.}/tests/fixtures/configs/deepseek-vl2
expect 0 "a tower beside later layers" "$plan" plan "$vl2" --hardware "3x rtx4090" --batch 4 \
    --images 1 --image-tokens 421 # three stages of the chain behind one of the tower
says "out" "^ *0  cuda:2  vision, projector"
says "out" "^bottleneck    the work of stage 1 (cuda:[0-9]*)$"
expect 2 "pictures of no tokens" "$plan" plan "$vl2" --hardware "3x rtx4090" --images 1
says "err" "how many --image-tokens"
expect 0 "groups of devices" "$plan" plan "$vl2" --hardware "4x rtx4090" --tp 2
! grep -q "equal split" "$dir/out" || { echo "FAIL: a recipe of single devices"; failed=1; }
expect 0 "simulating" "$plan" simulate "$dir/a.json" --rate 1
expect 0 "cluster" "$plan" cluster "$machines/cluster.json" --load 50000
expect 0 "hardware" "$plan" hardware --json
expect 2 "simulating twice" "$plan" simulate "$dir/a.json" "$dir/b.json"
expect 4 "simulating costs" "$plan" simulate "$costs"
expect 4 "report of costs" "$plan" report "$costs" -o "$dir/no.html"
expect 2 "costs and cards" "$plan" plan --costs "$costs" --hardware "2x t4"
bad() { # TEXT: a file that must be refused
    echo "$1" >"$dir/bad.json"
}
nodes='{"format": "evenkeel-cluster", "version": 1, "nodes": ['
for node in '' '{"name": "a", "count": 1, "costs": "/etc/passwd"}' \
    '{"name": "a", "count": 1, "costs": "../a.json"}' \
    '{"name": "a", "count": -1, "costs": "a.json"}' '{"name": "", "count": 1, "costs": "a.json"}' \
    '{"name": "a", "count": 1, "costs": "a.json"}'; do # a plan is no costs file
    bad "$nodes$node]}"
    expect 4 "cluster of $node" "$plan" cluster "$dir/bad.json"
done
model=${srcdir:-.}/tests/fixtures/configs/smollm2-135m
qwen=${srcdir:-.}/tests/fixtures/configs/qwen2.5-7b # of 28 heads
expect 2 "pictures for the blind" "$plan" plan "$qwen" --hardware "8x h100" --images 1 \
    --image-tokens 9
says "err" "takes no pictures"
expect 0 "a degree that divides the heads" "$plan" plan "$qwen" --hardware "8x h100" --tp 4
expect 1 "a degree that does not" "$plan" plan "$qwen" --hardware "8x h100" --tp 8
expect 0 "a degree chosen for an engine" "$plan" plan "$qwen" --hardware "8x h100" --for vllm \
    --write-costs "$dir/c.json"
grep -q '"tp": 4' "$dir/c.json" || failed=1
for cache in bf16 fp8 FP8 f8_e4m3 fp8-e4m3fn E4M3 F16 half; do
    expect 0 "cache $cache" "$plan" plan "$model" --hardware "2x t4" --cache $cache
done
expect 0 "a head apart from its embedding" "$plan" plan "$model" --hardware "2x t4" --use-all
expect 1 "a map cannot part them" "$plan" plan "$model" --hardware "2x t4" --use-all \
    --for accelerate
says "err" "without --for it fits"
for cache in nonsense int8 e5m2 Q8_0; do
    expect 2 "cache $cache" "$plan" plan "$model" --hardware "2x t4" --cache $cache
done
for card in '' '{"name": "x", "memory": 0, "bandwidth": 1e9, "peak_f32": 1e12}' \
    '{"name": "x", "memory": 1, "bandwidth": -1, "peak_f32": 1e12}' \
    '{"name": "x y", "memory": 1, "bandwidth": 1e9, "peak_f32": 1e12}'; do
    bad "{\"format\": \"evenkeel-hardware\", \"version\": 1, \"cards\": [$card]}"
    expect 4 "card $card" "$plan" plan "$model" --hardware "2x x" --cards "$dir/bad.json"
done
for map in '[]' '{"": "tpu:0"}' '{"model.layers.0": 0}' '{"": 0, "no.such.module": 0}' \
    '{"": 1e999}' '{"": NaN}' '{"": 0, "": 1}'; do
    bad "$map"
    expect 4 "map $map" "$plan" plan --costs "$costs" --from "$dir/bad.json"
done
[ "$failed" -eq 0 ] && echo "evenkeel-plan behaves as documented"
exit "$failed"
