// SPDX-License-Identifier: Apache-2.0
// How a multiprocessor's memory is split between shared memory and L1 cache. It is split anew only
// when the multiprocessor is empty, so that a kernel which asks for another split than the one
// ahead cannot begin beside it. Kernels that follow one another ask for the same.
#ifndef EK_CUDA_SPLIT_CUH
#define EK_CUDA_SPLIT_CUH

#include <cuda_runtime.h>

// Percent of the most shared memory. Products of one token have many loads under way, each of which
// takes its place in L1: more shared memory than attention beside them needs slows them. Kernels
// that copy their weights to shared memory ask for all of it.
#define SPLIT_LOADS  44
#define SPLIT_COPIES cudaSharedmemCarveoutMaxShared

template <typename... P> static cudaError_t split_memory(void (*kernel)(P...), int percent)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, percent);
}

#endif
