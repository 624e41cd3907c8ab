#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The generated bash completion: what it offers behind words, one a line.
. "${srcdir:-.}/tests/cli/lib.sh"
command -v bash >/dev/null || exit 77
cat >"$scratch/complete.bash" <<'END'
source <(evenkeel help --completion)
COMP_WORDS=(evenkeel "$@")
COMP_CWORD=$#
_evenkeel
printf '%s\n' "${COMPREPLY[@]}"
END
offers() {
    offer=$1
    shift
    expect 0 bash "$scratch/complete.bash" "$@"
    says "^$offer\$"
}
offers profile pro
offers check help ch
offers --reference check --ref
offers --json check --
offers "$top/README.md" model "$top/READ"
if [ -x "$bin/evenkeel-plan" ]; then
    offers --max-memory plan --max-m
    offers --to export --t
    offers --rate simulate --ra
fi
finish
