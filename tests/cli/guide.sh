#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The commands of docs/guide.md as they stand there, on a small model; and every option that a
# document gives to a command is one of that command's.
. "${srcdir:-.}/tests/cli/lib.sh"
[ -x "$bin/evenkeel-plan" ] || exit 77
cd "$scratch" || exit 99
ln -s "$top/tests" tests
small=tests/fixtures/reference/deepseek-vl2-tiny

# Where the guide has its real model, a small one with its own reference and number of layers.
awk '/^ +/ {
    sub(/^ +/, "")
    if (sub(/\\$/, "")) { kept = kept $0; next }
    print kept $0
    kept = ""
}' \
    "$top/docs/guide.md" | grep -E '^(evenkeel|echo|MODEL=|PICTURES=|DEVICES=)' |
    sed -e "s,^MODEL=models/.*,MODEL=$small," -e 's/\[12,18\]/[1,1]/' \
        -e 's,--reference tests/[^ ]*/chat\.,--reference $MODEL/reference.,' \
        -e '/^evenkeel profile/s/$/ --target-error 0.9/' >commands
[ "$(wc -l <commands)" -gt 30 ] || { echo "FAILED: no commands"; exit 1; }
while IFS= read -r line; do
    want=0
    case $line in
    *=*) case $line in evenkeel* | echo*) ;; *) eval "$line"; continue ;; esac ;;
    esac
    case $line in
    echo* | *">"*) eval "$line" 2>err || { echo "FAILED: $line"; cat err; failures=1; }; continue ;;
    "evenkeel serve"*) line="timeout -s INT 2 $line --port 0" want=124 ;;
    "evenkeel export plan.json"*) want=1 ;; # as the guide says
    esac
    eval "expect $want $line"
done <commands

# README's table of commands, and what documents say in running text
cat "$top"/README.md "$top"/docs/*.md | grep -o 'evenkeel [a-z][a-z]* [^`|]*' | sort -u |
    while read -r _ command rest; do
        evenkeel help "$command" >help 2>/dev/null || continue
        for word in $rest; do
            case $word in
            --[a-z]*) grep -q -e "$(echo "$word" | sed 's/[=,.;:)].*//')" help ||
                echo "FAILED: evenkeel $command has no $word" ;;
            esac
        done
    done >stale
cat stale
[ ! -s stale ] || failures=$((failures + 1))
finish
