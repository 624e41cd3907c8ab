#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A Markdown table of `evenkeel check` over every committed reference. Needs jq.
# Usage: check_all.sh EVENKEEL REFERENCES [SMOLLM2.gguf]   REFERENCES: tests/fixtures/reference
set -u
evenkeel=$1
smollm2=${3:-}
printf '| %s ' reference rows 'largest difference / largest logit' 'mean KL' 'same greedy token'
echo '| bar of 1e-4 |'
echo '| --- | ---: | ---: | ---: | ---: | --- |'
for file in "$2"/*/*.safetensors; do
    dir=$(dirname "$file")
    case $file in */model*.safetensors) continue ;; esac
    model=$dir
    [ -f "$dir/config.json" ] || model=$dir/model.gguf
    [ -f "$dir/config.json" ] || [ -f "$model" ] || model=$smollm2
    [ -n "$model" ] || continue
    "$evenkeel" check "$model" --reference "$file" --json 2>/dev/null |
        jq -r --arg name "$(basename "$dir")/$(basename "$file" .safetensors)" \
            'def short: if . == 0 then "0" else (log10 | floor) as $e |
               "\((. / pow(10; $e) * 10 | round) / 10)e\($e)" end;
             "| \($name) | \(.rows) | \(.relative | short) | \(.mean_kl | short) " +
             "| \(.top1_equal) | \(if .ok then "met" else "not met" end) |"'
done
