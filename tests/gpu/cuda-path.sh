# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# Sourced: LD_LIBRARY_PATH for CUDA's libraries, the toolkit's or those that Python packages carry.
for lib in libcudart.so.13 libcublasLt.so.13 libcupti.so.13 libnccl.so.2; do
    dir=$(for d in /usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64 \
        /usr/lib/x86_64-linux-gnu /opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib \
        /usr/lib/python3/dist-packages/nvidia/*/lib \
        /usr/local/lib/python3*/dist-packages/nvidia/*/lib; do
        [ -e "$d/$lib" ] && echo "$d" && break
    done)
    [ -n "$dir" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$dir
done
export LD_LIBRARY_PATH
