#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# tests/gpu/many-gpus.sh from end to end without a GPU: nvidia-smi, what is measured and what is run
# are played, plans are made, for as many described cards as the devices that they would be for.
. "${srcdir:-.}/tests/cli/lib.sh"
[ -x "$bin/evenkeel-plan" ] || exit 77
mkdir "$scratch/played"
cat >"$scratch/played/nvidia-smi" <<'EOF'
#!/bin/sh
seq "$PLAYED_GPUS"
EOF
cat >"$scratch/played/python3" <<'EOF'
#!/bin/sh
echo "python3 $*"
EOF
cat >"$scratch/played/evenkeel" <<'EOF'
#!/bin/sh
echo "$*" >>"$OUT/calls"
case $1 in
devices)
    for a in $3; do
        for b in $3; do
            [ "$a" = "$b" ] || [ "$a" = "${PLAYED_LOST:-}" ] || echo "$a -> $b  copy all  20 us"
            [ "$a" = "$b" ] || echo "$a -> $b  copy  20 us"
        done
    done
    ;;
bench)
    [ "${PLAYED_BENCH:-0}" -eq 0 ] || exit "$PLAYED_BENCH"
    case $* in *more.json*) exit 3 ;; esac
    ;;
run)
    case $* in
    *ours*) echo "{\"ids\": [1, ${PLAYED_TOKEN:-2}]}" ;;
    *) echo '{"ids": [1, 2]}' ;;
    esac
    ;;
plan) # for as many cards as there are devices, instead of from what was measured
    for arg; do
        shift
        case $last in
        --db) ;;
        --devices) set -- "$@" --hardware "$(echo "$arg" | wc -w)x h200" ;;
        *) case $arg in --db | --devices) ;; *) set -- "$@" "$arg" ;; esac ;;
        esac
        last=$arg
    done
    exec "$PLAYED_FOR" "$@"
    ;;
esac
EOF
chmod +x "$scratch"/played/*
PATH=$scratch/played:$PATH
many() { # GPUS PART...: the script on so many GPUs
    OUT=$scratch/$1
    rm -rf "$OUT" && mkdir "$OUT"
    export OUT PLAYED_GPUS="$1" PLAYED_FOR="$bin/evenkeel" EVENKEEL="$scratch/played/evenkeel"
    shift
    sh "$top/tests/gpu/many-gpus.sh" "$fixtures/configs" "$@"
}
# calls PATTERN NUMBER: so many calls of the last script had it
calls() {
    got=$(grep -c -- "$1" "$OUT/calls")
    [ "$got" -eq "$2" ] && return 0
    echo "FAILED: $got calls with $1, expected $2"
    failures=$((failures + 1))
}

# ---- Everything, on GPUs of their own as far as there are any
for gpus in 4 8; do
    expect 0 many $gpus
    says 'the longest context that fits: [0-9]'
    calls "^devices --devices cuda:0 .*cuda:$((gpus - 1))  *--measure" 1
    calls '^bench' 18
    calls "^bench.*-load.ours-$((12 - gpus)).plan" 1
    calls '^plan.*cuda:2  .*--max-memory 24GB --from \[10,10,10\]' 1
    calls "^plan.*cuda:3\($([ $gpus -eq 4 ] && echo .1)\|.*cuda:7\) .*--from \[3,4,4,4,4,4,4,4\]" 1
    calls '^plan.*--max-memory 15GB 15GB 15GB 15GB .*--objective context' 1
    calls '^run' 7
done
calls 'cuda:[0-9]*[.]' 0

# ---- What goes wrong is in the exit code
export PLAYED_BENCH=6
expect 1 many 2 cases
says 'FAILED: exit 6, expected 0'
calls '^plan.*cuda:1[.]3 .*-load.ours-8.plan' 1
unset PLAYED_BENCH
export PLAYED_TOKEN=7
expect 1 many 4 tokens
says 'FAILED: other tokens'
export PLAYED_LOST=cuda:2
expect 1 many 4 links
says 'FAILED: 9 of 12 pairs by copy all'
finish
