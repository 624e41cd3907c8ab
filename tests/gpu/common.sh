# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# Sourced, with $here set: what the scripts that drive the program on GPUs share.
# Environment: OUT (logs, plans and results, default "."), LIMIT (seconds a command may take), UNTIL
# (when the last one ends, as `date +%s` says it; default: an hour from now), BACKEND (cuda), GPUS
# (how many to use, default: all), EVENKEEL (the program).
OUT=${OUT:-.}
BACKEND=${BACKEND:-cuda}
EVENKEEL=${EVENKEEL:-$here/bin/evenkeel}
failed=0
started=$(date +%s)
UNTIL=${UNTIL:-$((started + 3600))}
if [ "$BACKEND" = cuda ]; then
    . "$here/cuda-path.sh"
    gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
else
    gpus=${GPUS:-64}
fi

# limited COMMAND...: within the limit of a command, and of all of them
limited() {
    seconds=$((UNTIL - $(date +%s)))
    [ $seconds -lt "${LIMIT:-300}" ] || seconds=${LIMIT:-300}
    [ $seconds -gt 0 ] || { echo "no time is left for it"; return 124; }
    timeout "$seconds" "$@"
}

# say EXPECTED-EXIT-CODE command...: runs it, and counts another code as a failure
say() {
    expected=$1
    shift
    echo "\$ evenkeel $*"
    limited "$EVENKEEL" "$@"
    rc=$?
    echo "[exit $rc, $(($(date +%s) - started)) s]"
    [ $rc -eq "$expected" ] && return 0
    echo "FAILED: exit $rc, expected $expected"
    failed=1
    return 1
}

# N names; devices that are missing are declared on those that are there
devices() {
    for i in $(seq 0 $(($1 - 1))); do
        [ $((i / gpus)) -eq 0 ] && printf '%s:%d ' "$BACKEND" "$i" ||
            printf '%s:%d.%d ' "$BACKEND" $((i % gpus)) $((i / gpus))
    done
}

# numbers in a split such as 10,10,10
count() {
    echo "$1" | awk -F, '{ print NF }'
}

# layers of a model, of its language model where it sees
layers_of() {
    config=$1
    [ -d "$1" ] && config=$1/config.json
    tr -d ' \n' <"$config" |
        sed 's/"vision_config":{[^{}]*}//; s/.*"num_hidden_layers":\([0-9]*\).*/\1/'
}

# try GROUP LABEL MODEL DB plan-options...: plan and bench; summary.py compares the plans of a group
try() {
    plan=$OUT/$1.$2
    model=$3
    db=$4
    echo "== $1: $2"
    shift 4
    say 0 plan "$model" --db "$db" "$@" -o "$plan.plan.json" --force &&
        say 0 bench "$model" --plan "$plan.plan.json" --db "$db" --repeats "${REPEATS:-3}" \
            --output "$plan.bench.json" --force
}
