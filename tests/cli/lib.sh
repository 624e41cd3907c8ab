# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# Sourced by the command tests: runs the real binaries in a scratch folder and counts what fails.
set -u
top=$(cd "${srcdir:-.}" && pwd)
bin=$(pwd)
PATH=$bin:$PATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# shellcheck disable=SC2034 # used by those who source this
fixtures=$top/tests/fixtures
failures=0

# expect CODE COMMAND ...: runs it, output in $scratch/out and $scratch/err
expect() {
    want=$1
    shift
    "$@" >"$scratch/out" 2>"$scratch/err"
    got=$?
    [ "$got" -eq "$want" ] && return 0
    echo "FAILED: exit $got, expected $want: $*"
    sed 's/^/    /' "$scratch/out" "$scratch/err" | head -n 20
    failures=$((failures + 1))
}

# says PATTERN: the last command's stdout has it; warns PATTERN: its stderr has it
says() {
    grep -q -- "$1" "$scratch/out" && return 0
    echo "FAILED: stdout lacks: $1"
    head -n 20 "$scratch/out"
    failures=$((failures + 1))
}
warns() {
    grep -q -- "$1" "$scratch/err" && return 0
    echo "FAILED: stderr lacks: $1"
    head -n 20 "$scratch/err"
    failures=$((failures + 1))
}
# one_line: the last command's message was one line
one_line() {
    [ "$(wc -l <"$scratch/err")" -eq 1 ] && return 0
    echo "FAILED: stderr is not one line"
    head -n 20 "$scratch/err"
    failures=$((failures + 1))
}
finish() {
    [ "$failures" -eq 0 ] || echo "$failures failed"
    exit $((failures > 0))
}
