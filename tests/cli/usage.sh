#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Help, versions, and what a wrong command line is told.
. "${srcdir:-.}/tests/cli/lib.sh"

expect 0 evenkeel --version
says '^evenkeel [0-9]'
expect 0 evenkeel --help
for command in devices model profile plan run serve check bench export report simulate cluster \
    hardware; do
    says "^  $command "
done
for command in devices model profile run serve check bench; do
    expect 0 evenkeel $command --help
    says "^usage: evenkeel $command"
    says '--json'
    expect 0 evenkeel help $command
    expect 0 evenkeel help --man $command
    says "^.TH EVENKEEL-"
done
expect 0 evenkeel help --man
says "^.TH EVENKEEL 1"
says 'evenkeel.-serve (1)'
expect 0 evenkeel help serve
[ -z "$(awk 'length > 80' "$scratch/out")" ] ||
    { echo "FAILED: help is wider than 80 columns"; failures=$((failures + 1)); }
expect 2 evenkeel
expect 2 evenkeel modle
warns 'could be: model'
one_line
expect 2 evenkeel chat
warns 'evenkeel --help lists them'
expect 2 evenkeel model
warns 'takes 1 operand'
expect 2 evenkeel profile x --dbb y
warns 'did you mean --db'
expect 2 evenkeel profile x
warns -- '--db is needed'
expect 2 evenkeel check x --json=yes
warns 'takes no value'
expect 2 evenkeel serve x --plan y --context 9
warns 'not with --plan'
for wrong in "--ids 1,2 --system x" "--ids 1,2 --raw" "--ids 1,2 --prompt x --raw" \
    "--ids 1 --fps 3" "--prompt x --fps 3" "--prompt x --image x --fps 3" \
    "--prompt x --image-as white"; do
    expect 2 evenkeel run x $wrong
    one_line
done
expect 2 evenkeel devices --devices "cpu:0/mem=12XB"
expect 3 evenkeel model /nonexistent
one_line
finish
