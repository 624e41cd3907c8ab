// SPDX-License-Identifier: Apache-2.0
// Hopper's copies of boxes of a tensor into shared memory, the barriers in shared memory that they
// arrive at, and the same between the blocks of a cluster. Addresses of shared memory are 32 bits;
// those of another block's (far) come from at_block(). Each barrier counts phases: waiting is for
// the end of a phase, named by its parity.
#ifndef EK_CUDA_TMA_CUH
#define EK_CUDA_TMA_CUH

#include <cuda.h>

#include "kernels/cuda/wgmma.cuh"

#ifdef EK_WGMMA

__device__ __forceinline__ void barrier_init(uint32_t at, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
// Makes what was initialised visible to the cluster and to copies.
__device__ __forceinline__ void barriers_ready()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, and lets the phase wait for so many bytes of copies besides.
__device__ __forceinline__ void barrier_expect(uint32_t at, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t at)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
__device__ __forceinline__ void barrier_arrive_far(uint32_t far)
{
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(far)
                 : "memory");
}
// For what this block's threads and copies did before they arrived ...
__device__ __forceinline__ void barrier_wait(uint32_t at, uint32_t parity)
{
    uint32_t done;

    do {
        asm volatile("{.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(at), "r"(parity)
                     : "memory");
    } while (!done);
}
// ... and for what other blocks of the cluster did: that empties the multiprocessor's L1 cache.
__device__ __forceinline__ void barrier_wait_far(uint32_t at, uint32_t parity)
{
    uint32_t done;

    do {
        asm volatile("{.reg .pred p;\n"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(at), "r"(parity)
                     : "memory");
    } while (!done);
}

// ---- shared memory by its address
__device__ __forceinline__ void load_shared4(uint32_t at, float v[4])
{
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ float2 load_shared2(uint32_t at)
{
    float2 v;

    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ void store_shared4(uint32_t at, const float v[4])
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
}

// ---- clusters
__device__ __forceinline__ uint32_t at_block(uint32_t at, uint32_t block)
{
    uint32_t far;

    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(far) : "r"(at), "r"(block));
    return far;
}
// Four floats to a block's memory; its barrier counts their 16 bytes.
__device__ __forceinline__ void send(uint32_t far, const float v[4], uint32_t far_barrier)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], "
                 "{%1, %2, %3, %4}, [%5];" ::"r"(far),
                 "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(far_barrier)
                 : "memory");
}
// Every thread of the cluster arrives and waits, once each and in turn.
__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// ---- boxes
__device__ __forceinline__ void fetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// The box at (0, row, chunk) of a matrix as matrix_map() describes it; past the end: zeros. once:
// it is not read again soon.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, uint32_t row,
                                         uint32_t chunk, uint32_t barrier, bool once)
{
    uint64_t keep = once ? 0x12f0000000000000ull : 0x14f0000000000000ull; // evict first, last

    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
        "l"(map), "r"(0), "r"(row), "r"(chunk), "r"(barrier), "l"(keep)
        : "memory");
}
// Groups of 8 rows of two kinds in turn, of a map of five sides: from group and chunk on.
__device__ __forceinline__ void copy_pairs(uint32_t to, const CUtensorMap *map, uint32_t group,
                                           uint32_t chunk, uint32_t barrier)
{
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %2, %2, %3, %4}], [%5], %6;" ::"r"(to),
        "l"(map), "r"(0), "r"(group), "r"(chunk), "r"(barrier), "l"(0x12f0000000000000ull)
        : "memory");
}
// The box at (col, row, head) of a map of three sides.
__device__ __forceinline__ void copy_part(uint32_t to, const CUtensorMap *map, uint32_t col,
                                          uint32_t row, uint32_t head, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(col), "r"(row), "r"(head), "r"(barrier)
                 : "memory");
}
// The same of a map of four sides: the box at (0, row, chunk, head).
__device__ __forceinline__ void copy_box4(uint32_t to, const CUtensorMap *map, uint32_t row,
                                          uint32_t chunk, uint32_t head, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
                 "l"(map), "r"(0), "r"(row), "r"(chunk), "r"(head), "r"(barrier)
                 : "memory");
}
// n bytes, a multiple of 16, back to memory; committed, and waited for until they have left shared
// memory, by each thread for its own.
__device__ __forceinline__ void copy_out(void *to, uint32_t from, uint32_t n)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(n)
                 : "memory");
}
__device__ __forceinline__ void copy_out_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ __forceinline__ void copy_out_read()
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
#endif

// ---- on the host
#define EK_CHUNK 64 // 16-bit elements of a row that one row of 128 bytes in shared memory takes

// Elements of 16 bits, in boxes; dims and box from the fastest side on, strides in bytes of the
// others. What the sides that lie behind dims would hold is zeros.
static inline cudaError_t tensor_map(CUtensorMap *map, const void *data, uint32_t sides,
                                     const size_t *dims, const size_t *strides, const uint32_t *box)
{
    static decltype(&cuTensorMapEncodeTiled) encode;
    cuuint64_t d[5], t[5];
    cuuint32_t b[5], steps[5] = {1, 1, 1, 1, 1};

    if (encode == NULL) { // the driver's own library is not linked
        cudaDriverEntryPointQueryResult found;
        void *entry = NULL;
        cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                         cudaEnableDefault, &found);
        if (e != cudaSuccess)
            return e;
        if (found != cudaDriverEntryPointSuccess)
            return cudaErrorNotSupported;
        encode = (decltype(encode))entry;
    }
    for (uint32_t i = 0; i < sides; i++)
        d[i] = dims[i], b[i] = box[i], t[i] = i + 1 < sides ? strides[i] : 0;
    CUresult r = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, sides, const_cast<void *>(data), d, t,
                        b, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// rows x cols, rows `row_bytes` apart, in boxes of box_rows rows and box_chunks times 64 columns:
// [chunk][row][64], swizzled as wgmma reads it.
static inline cudaError_t matrix_map(CUtensorMap *map, const void *data, uint32_t rows,
                                     uint32_t cols, size_t row_bytes, uint32_t box_rows,
                                     uint32_t box_chunks)
{
    const size_t dims[3] = {EK_CHUNK, rows, (cols + EK_CHUNK - 1) / EK_CHUNK};
    const size_t strides[2] = {row_bytes, EK_CHUNK * 2};
    const uint32_t box[3] = {EK_CHUNK, box_rows, box_chunks};

    return tensor_map(map, data, 3, dims, strides, box);
}

#endif
