// SPDX-License-Identifier: Apache-2.0
// What this build's code for the current GPU was compiled for.
#include "kernels/cuda/wgmma.cuh"

#define MARK 64

// Has shared memory in code for Hopper alone.
static __global__ void hopper_probe()
{
#ifdef EK_WGMMA
    __shared__ volatile uint8_t mark[MARK];

    mark[threadIdx.x] = 1;
#endif
}

extern "C" cudaError_t ek_cu_built_for_hopper(bool *yes)
{
    cudaFuncAttributes probe;
    cudaError_t e = cudaFuncGetAttributes(&probe, hopper_probe);

    *yes = e == cudaSuccess && probe.sharedSizeBytes >= MARK;
    return e;
}
