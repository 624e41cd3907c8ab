// SPDX-License-Identifier: Apache-2.0
// Decode attention: one new token a sequence. A block takes one part of a sequence's context for
// all heads that share a cached head (padded to the 16 rows of a tensor-core tile), so the cache is
// read once, straight to the operands' registers: the order of a head's dimensions is free, and
// lanes read 16 bytes of it. The last block of a sequence to arrive joins the parts, in their
// order, so that sums do not depend on which it is. Lengths come from device memory: a captured
// graph serves growing contexts up to the grid's.
#include "kernels/cuda/attention.cuh"

#define DEC_WARPS   4
#define DEC_THREADS (32 * DEC_WARPS)
#define DEC_STEP    16 // tokens of a warp at a time

template <typename T, int D> struct DecodeWarp { // one warp's running state
    uint32_t q[D / 32][2][4];                    // [segment][product][operand a]
    float o[D / 8][4];                           // tile 8h+j, column c: dimension 64h + 8c + j
    float peak[2], weight[2];                    // rows g, g + 8

    __device__ __forceinline__ void load_q(const ek_cu_attention &a, uint32_t token,
                                           uint32_t first_head, uint32_t heads, uint32_t g,
                                           uint32_t t)
    {
        const T *base = (const T *)a.q + token * a.ldq + first_head * D;
#pragma unroll
        for (int s = 0; s < D / 32; s++) {
            uint4 v[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                uint32_t head = g + 8 * r;
                v[r] = head < heads
                           ? *reinterpret_cast<const uint4 *>(base + head * D + 32 * s + 8 * t)
                           : make_uint4(0, 0, 0, 0);
            }
            q[s][0][0] = v[0].x, q[s][0][1] = v[1].x, q[s][0][2] = v[0].y, q[s][0][3] = v[1].y;
            q[s][1][0] = v[0].z, q[s][1][1] = v[1].z, q[s][1][2] = v[0].w, q[s][1][3] = v[1].w;
        }
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
        peak[0] = peak[1] = -INFINITY;
        weight[0] = weight[1] = 0;
    }

    // Scores of 16 tokens, in units of log2, to probabilities; rescales what was summed before.
    __device__ __forceinline__ void softmax(float s[2][4])
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float m =
                fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            m = fmaxf(m, peak[r]);
            float shrink = exp2f(peak[r] - m), sum = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float *v = &s[i / 2][2 * r + i % 2];
                *v = exp2f(*v - m);
                sum += *v;
            }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            weight[r] = weight[r] * shrink + sum;
            peak[r] = m;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                o[i][2 * r] *= shrink, o[i][2 * r + 1] *= shrink;
        }
    }

    // Tokens first .. first + 15, those from end on masked.
    __device__ __forceinline__ void step(const ek_cu_attention &a, uint32_t seq, uint32_t kv_head,
                                         uint32_t first, uint32_t end, uint32_t lane)
    {
        uint32_t g = lane / 4, t = lane % 4, mine = min(first + lane % 16, end - 1);
        uint32_t row = (uint32_t)slot_of(a, seq, mine) * a.kv.kv_heads + kv_head;
        const T *k = (const T *)a.kv.k, *v = (const T *)a.kv.v;
        uint4 kv[2][D / 32], vv[4][D / 64];
        float s[2][4] = {};

#pragma unroll
        for (int j = 0; j < 2; j++) {
            const T *at = k + (size_t)__shfl_sync(0xffffffffu, row, g + 8 * j) * D + 8 * t;
#pragma unroll
            for (int i = 0; i < D / 32; i++)
                kv[j][i] = load_once(at + 32 * i);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) { // tokens 2t, 2t+1, 2t+8, 2t+9
            uint32_t token = 2 * t + j % 2 + j / 2 * 8;
            const T *at = v + (size_t)__shfl_sync(0xffffffffu, row, token) * D + 8 * g;
#pragma unroll
            for (int h = 0; h < D / 64; h++)
                vv[j][h] = load_once(at + 64 * h);
        }
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < D / 32; i++) {
                mma<T>(s[j], q[i][0], kv[j][i].x, kv[j][i].y);
                mma<T>(s[j], q[i][1], kv[j][i].z, kv[j][i].w);
            }
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[j][i] =
                    first + 8 * j + 2 * t + i % 2 < end ? s[j][i] * (a.scale * LOG2E) : -INFINITY;
        softmax(s);
        uint32_t p[4] = {pack2<T>(s[0][0], s[0][1]), pack2<T>(s[0][2], s[0][3]),
                         pack2<T>(s[1][0], s[1][1]), pack2<T>(s[1][2], s[1][3])};
        accumulate(p, vv);
    }

    __device__ __forceinline__ void accumulate(const uint32_t p[4], const uint4 (&vv)[4][D / 64])
    {
#pragma unroll
        for (int h = 0; h < D / 64; h++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const uint32_t pick = j % 2 ? 0x7632 : 0x5410;
                uint32_t w[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    w[i] = j / 2 == 0   ? vv[i][h].x
                           : j / 2 == 1 ? vv[i][h].y
                           : j / 2 == 2 ? vv[i][h].z
                                        : vv[i][h].w;
                mma<T>(o[8 * h + j], p, __byte_perm(w[0], w[1], pick),
                       __byte_perm(w[2], w[3], pick));
            }
    }
};

template <int D> struct DecodeShared {
    float o[DEC_WARPS][16][D];
    float peak[DEC_WARPS][16], weight[DEC_WARPS][16];
    bool last;
};

// The part's sums for row, dimension d, of all warps: unnormalised sum, its maximum and weight.
template <int D>
__device__ __forceinline__ float join_warps(const DecodeShared<D> &s, uint32_t row, uint32_t d,
                                            float *peak, float *weight)
{
    float m = -INFINITY, l = 0, o = 0;
#pragma unroll
    for (int w = 0; w < DEC_WARPS; w++)
        m = fmaxf(m, s.peak[w][row]);
#pragma unroll
    for (int w = 0; w < DEC_WARPS; w++) {
        float f = exp2f(s.peak[w][row] - m);
        l += f * s.weight[w][row];
        o += f * s.o[w][row][d];
    }
    *peak = m;
    *weight = l;
    return o;
}

// Joins the parts of a head, in order.
template <typename T, int D>
__device__ __forceinline__ void join_parts(const ek_cu_attention &a, const float *partial,
                                           uint32_t parts, uint32_t d, T *out)
{
    float m = -INFINITY, l = 0, o = 0;

    for (uint32_t i = 0; i < parts; i++)
        m = fmaxf(m, __ldcg(partial + i * (D + 2) + D));
#pragma unroll 4
    for (uint32_t i = 0; i < parts; i++) {
        const float *at = partial + i * (D + 2);
        float f = exp2f(__ldcg(at + D) - m);

        l += f * __ldcg(at + D + 1);
        o += f * __ldcg(at + d);
    }
    out[d] = from_f<T>(o / l);
}

template <typename T, int D>
__global__ void __launch_bounds__(DEC_THREADS) decode_k(const ek_cu_attention a)
{
    __shared__ DecodeShared<D> shared;
    uint32_t group = a.heads / a.kv.kv_heads, tiles = (group + 15) / 16, seq = blockIdx.z;
    uint32_t kv_head = blockIdx.y / tiles, tile = blockIdx.y % tiles, lane = threadIdx.x % 32;
    uint32_t warp = threadIdx.x / 32, head = kv_head * group + 16 * tile;
    uint32_t heads = min(group - 16 * tile, 16u);

    pdl_next();
    pdl_wait();
    uint32_t token = (uint32_t)a.batch.seq_start[seq];
    if ((int32_t)token == a.batch.seq_start[seq + 1])
        return; // a sequence without a new token
    uint32_t len = (uint32_t)max(a.batch.kv_len[seq], 0), parts = (len + a.part - 1) / a.part;
    T *out = (T *)a.out + token * a.ldo + head * D;
    if (blockIdx.x >= parts) {
        if (len == 0 && blockIdx.x == 0)
            for (uint32_t i = threadIdx.x; i < heads * D; i += DEC_THREADS)
                out[i] = from_f<T>(0.0f);
        return;
    }
    uint32_t first = blockIdx.x * a.part, end = min(first + a.part, len);
    DecodeWarp<T, D> state;
    state.load_q(a, token, head, heads, lane / 4, lane % 4);
    for (uint32_t at = first + DEC_STEP * warp; at < end; at += DEC_STEP * DEC_WARPS)
        state.step(a, seq, kv_head, at, end, lane);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint32_t row = lane / 4 + 8 * r, t = lane % 4;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                shared.o[warp][row][i / 8 * 64 + 8 * (2 * t + c) + i % 8] = state.o[i][2 * r + c];
        if (t == 0) {
            shared.peak[warp][row] = state.peak[r];
            shared.weight[warp][row] = state.weight[r];
        }
    }
    __syncthreads();
    float *partial = a.partial + ((size_t)seq * a.heads + head) * a.n_parts * (D + 2);
    for (uint32_t i = threadIdx.x; i < heads * D; i += DEC_THREADS) {
        uint32_t row = i / D, d = i % D;
        float peak, weight, o = join_warps(shared, row, d, &peak, &weight);
        float *to = partial + ((size_t)row * a.n_parts + blockIdx.x) * (D + 2);

        if (parts == 1) {
            out[i] = from_f<T>(o / weight);
            continue;
        }
        __stcg(to + d, o);
        if (d == 0) {
            __stcg(to + D, peak);
            __stcg(to + D + 1, weight);
        }
    }
    if (parts == 1)
        return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *arrived = a.arrived + (size_t)seq * gridDim.y + blockIdx.y;
        shared.last = atomicAdd(arrived, 1u) == parts - 1;
        if (shared.last)
            *arrived = 0;
    }
    __syncthreads();
    if (!shared.last)
        return;
    __threadfence();
    for (uint32_t i = threadIdx.x; i < heads * D; i += DEC_THREADS)
        join_parts<T, D>(a, partial + (size_t)(i / D) * a.n_parts * (D + 2), parts, i % D,
                         out + i / D * D);
}

template <typename T>
static cudaError_t decode_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t group = a->heads / a->kv.kv_heads, tiles = div_up(group, 16);
    dim3 grid(a->n_parts, a->kv.kv_heads * tiles, a->batch.n_seqs);

    return launch(q, a->kv.head_dim == 64 ? decode_k<T, 64> : decode_k<T, 128>, grid, DEC_THREADS,
                  0, *a);
}

extern "C" cudaError_t ek_cu_attention_decode(const struct ek_cu_queue *q, enum ek_dtype act,
                                              const struct ek_cu_attention *a)
{
    return act == EK_BF16  ? decode_launch<bf16>(q, a)
           : act == EK_F16 ? decode_launch<f16>(q, a)
                           : cudaErrorNotSupported;
}
