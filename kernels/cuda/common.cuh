// SPDX-License-Identifier: Apache-2.0
// Shared by the .cu files: element types, wide loads, reductions, programmatic dependent launch.
#ifndef EK_CUDA_COMMON_CUH
#define EK_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

using bf16 = __nv_bfloat16;
using f16 = __half;

// ---- copies from memory to shared memory, past the registers
__device__ __forceinline__ uint32_t shared_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
// 16 bytes, or zeros. GPUs before compute capability 8.0 copy through registers.
__device__ __forceinline__ void copy16(uint32_t to, const void *from, bool valid = true)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    uint4 v = valid ? *reinterpret_cast<const uint4 *>(from) : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
#endif
}
__device__ __forceinline__ void copy_commit()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void copy_wait()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- elements
__device__ __forceinline__ float to_f(float x)
{
    return x;
}
__device__ __forceinline__ float to_f(bf16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_f(f16 x)
{
    return __half2float(x);
}
template <typename T> __device__ __forceinline__ T from_f(float x);
template <> __device__ __forceinline__ float from_f<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ bf16 from_f<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ f16 from_f<f16>(float x)
{
    return __float2half_rn(x);
}
// x as a T holds it
template <typename T> __device__ __forceinline__ float round_to(float x)
{
    return to_f(from_f<T>(x));
}

// Two elements in one 32-bit register.
template <typename T> __device__ __forceinline__ float2 unpack2(uint32_t v);
template <> __device__ __forceinline__ float2 unpack2<bf16>(uint32_t v)
{
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}
template <> __device__ __forceinline__ float2 unpack2<f16>(uint32_t v)
{
    return __half22float2(*reinterpret_cast<__half2 *>(&v));
}
template <typename T> __device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <> __device__ __forceinline__ uint32_t pack2<bf16>(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&p);
}
template <> __device__ __forceinline__ uint32_t pack2<f16>(float lo, float hi)
{
    __half2 p = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&p);
}

// 4 consecutive elements, aligned to their size.
template <typename T> __device__ __forceinline__ void load4(const T *p, float v[4])
{
    uint2 r = *reinterpret_cast<const uint2 *>(p);
    float2 a = unpack2<T>(r.x), b = unpack2<T>(r.y);
    v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
}
template <> __device__ __forceinline__ void load4<float>(const float *p, float v[4])
{
    float4 r = *reinterpret_cast<const float4 *>(p);
    v[0] = r.x, v[1] = r.y, v[2] = r.z, v[3] = r.w;
}
template <typename T> __device__ __forceinline__ void store4(T *p, const float v[4])
{
    *reinterpret_cast<uint2 *>(p) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
}
template <> __device__ __forceinline__ void store4<float>(float *p, const float v[4])
{
    *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
template <typename T> __device__ __forceinline__ void load8(const T *p, float v[8])
{
    uint4 r = *reinterpret_cast<const uint4 *>(p);
    float2 a = unpack2<T>(r.x), b = unpack2<T>(r.y), c = unpack2<T>(r.z), d = unpack2<T>(r.w);
    v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
    v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
}
template <> __device__ __forceinline__ void load8<float>(const float *p, float v[8])
{
    load4(p, v);
    load4(p + 4, v + 4);
}
template <typename T> __device__ __forceinline__ void store8(T *p, const float v[8])
{
    *reinterpret_cast<uint4 *>(p) = make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]),
                                               pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
}
template <> __device__ __forceinline__ void store8<float>(float *p, const float v[8])
{
    store4(p, v);
    store4(p + 4, v + 4);
}

// Pieces of 4 or 8 by the array's length.
template <typename T> __device__ __forceinline__ void load_piece(const T *p, float (&v)[4])
{
    load4(p, v);
}
template <typename T> __device__ __forceinline__ void load_piece(const T *p, float (&v)[8])
{
    load8(p, v);
}
template <typename T> __device__ __forceinline__ void store_piece(T *p, const float (&v)[4])
{
    store4(p, v);
}
template <typename T> __device__ __forceinline__ void store_piece(T *p, const float (&v)[8])
{
    store8(p, v);
}

// A weight is read once a step: past L1, straight to registers.
__device__ __forceinline__ uint4 load_stream(const void *p)
{
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

// The same for what the kernel ahead may have written (the cache): not by the read-only path.
__device__ __forceinline__ uint4 load_once(const void *p)
{
    uint4 r;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

// ---- reductions: fixed order, so that sums are the same from run to run
__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int d = 16; d; d /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
// Of whole numbers; GPUs before compute capability 8.0 have no instruction for it.
__device__ __forceinline__ uint32_t warp_total(uint32_t v)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(0xffffffffu, v);
#else
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
#endif
}
__device__ __forceinline__ uint32_t warp_most(uint32_t v)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, v);
#else
    for (int d = 16; d; d /= 2)
        v = max(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
#endif
}
// Of all threads of a block (a multiple of 32, at most 1024), in all of them. tmp: 32 floats.
__device__ __forceinline__ float block_sum(float v, float *tmp)
{
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        tmp[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? tmp[threadIdx.x % 32] : 0.0f;
    return warp_sum(v);
}
__device__ __forceinline__ float block_max(float v, float *tmp)
{
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        tmp[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? tmp[threadIdx.x % 32] : -INFINITY;
    return warp_max(v);
}

// 2^x by the special-function unit alone; 0 for -infinity.
__device__ __forceinline__ float power2(float x)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ float silu(float x)
{
    return x / (1.0f + __expf(-x));
}

// ---- four 8x8 tiles of 16-bit elements from shared memory: lane 8 i + r gives the address of row
// r of tile i, and gets of each the elements 2t, 2t+1 of row g; turned: of column g.
__device__ __forceinline__ void load_tiles(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
__device__ __forceinline__ void load_tiles_turned(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

// ---- tensor cores: c += a b, 16x8x16. Lane (g = lane / 4, t = lane % 4) holds of a the rows g and
// g + 8, of b column g, of both the k 2t, 2t+1, 2t+8, 2t+9; of c rows g, g + 8, columns 2t, 2t+1.
template <typename T>
__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
#if __CUDA_ARCH__ >= 800 || !defined(__CUDA_ARCH__)
template <>
__device__ __forceinline__ void mma<bf16>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<f16>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
template <>
__device__ __forceinline__ void mma<f16>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    for (int i = 0; i < 2; i++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(i ? b1 : b0));
}
template <> __device__ __forceinline__ void mma<bf16>(float *, const uint32_t *, uint32_t, uint32_t)
{
    __trap(); // opening a device for BF16 is refused there
}
#endif

// ---- programmatic dependent launch: a kernel may start while the one before it drains. Every
// kernel waits before it touches what others wrote; only weights may be read earlier.
__device__ __forceinline__ void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_next()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A kernel may have so many bytes beside its own from now on, and for good: the limit is the
// kernel's on that GPU, whoever launches it. Were it what this launch needs, another thread's
// launch or graph would find it too low; so it is raised to all that there is, once.
static inline cudaError_t allow_shared(const struct ek_cu_queue *q, const void *kernel,
                                       size_t shared)
{
    cudaFuncAttributes own;
    cudaError_t e = cudaFuncGetAttributes(&own, kernel);

    if (e != cudaSuccess)
        return e;
    if (own.sharedSizeBytes + shared > q->shared)
        return cudaErrorInvalidConfiguration;
    if ((size_t)own.maxDynamicSharedSizeBytes >= shared)
        return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)(q->shared - own.sharedSizeBytes));
}

// cluster: blocks along x that share their memories, or 1.
template <typename... P, typename... A>
static cudaError_t launch_cluster(const struct ek_cu_queue *q, void (*kernel)(P...), dim3 grid,
                                  dim3 block, size_t shared, uint32_t cluster, A... args)
{
    cudaLaunchAttribute at[2] = {};
    cudaLaunchConfig_t cfg = {};

    if (cluster > 1 && !q->pdl)
        return cudaErrorNotSupported;
    if (q->less || shared > 32 * 1024) { // with what it has of its own, 48 KiB need no asking
        cudaError_t e = allow_shared(q, (const void *)kernel, shared);
        if (e != cudaSuccess)
            return e;
    }
    at[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    at[0].val.programmaticStreamSerializationAllowed = 1;
    at[1].id = cudaLaunchAttributeClusterDimension;
    at[1].val.clusterDim.x = cluster;
    at[1].val.clusterDim.y = at[1].val.clusterDim.z = 1;
    cfg.gridDim = grid;
    cfg.blockDim = block;
    cfg.dynamicSmemBytes = shared;
    cfg.stream = q->stream;
    cfg.attrs = at;
    cfg.numAttrs = !q->pdl ? 0 : cluster > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&cfg, kernel, P(args)...);
}

template <typename... P, typename... A>
static cudaError_t launch(const struct ek_cu_queue *q, void (*kernel)(P...), dim3 grid, dim3 block,
                          size_t shared, A... args)
{
    return launch_cluster(q, kernel, grid, block, shared, 1, args...);
}

// Runs the statement with T as the activation type.
#define EK_DISPATCH_ACT(act, T, ...)                                                               \
    switch (act) {                                                                                 \
    case EK_F32: {                                                                                 \
        using T = float;                                                                           \
        __VA_ARGS__;                                                                               \
    }                                                                                              \
    case EK_BF16: {                                                                                \
        using T = bf16;                                                                            \
        __VA_ARGS__;                                                                               \
    }                                                                                              \
    case EK_F16: {                                                                                 \
        using T = f16;                                                                             \
        __VA_ARGS__;                                                                               \
    }                                                                                              \
    default:                                                                                       \
        return cudaErrorNotSupported;                                                              \
    }

static inline uint32_t div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

#endif
