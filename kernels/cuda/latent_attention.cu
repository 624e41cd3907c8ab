// SPDX-License-Identifier: Apache-2.0
// Attention over a cache of latents (512) and rotated keys (64) that all heads share. The rows of a
// sequence are its new tokens' heads, so that a block of 16, 32 or 64 rows reads a cached token
// once for all of them: decode is bound by reading the cache, prefill by the tensor cores. A block
// walks its part of the context 64 tokens at a time through two buffers in shared memory; the
// scores of a step are shared out by tokens, the values by dimensions. Parts of a long context are
// joined by a second kernel, in their order. Blocks of 64 rows multiply by wgmma on Hopper. Lengths
// come from device memory: a captured graph serves growing contexts up to the grid's.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/wgmma.cuh"

#define LA_WARPS   8
#define LA_THREADS (32 * LA_WARPS)
#define LA_D       EK_CU_LATENT_DIM
#define LA_V       EK_CU_LATENT_VALUE
#define LA_STEP    EK_CU_LATENT_STEP
#define LA_COLS    (LA_V / LA_WARPS) // value dimensions of a warp

// Element offset of 16-byte piece `piece` of a row, in an array of ROWS rows: no bank meets twice.
template <int ROWS> __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return (piece / 8 * ROWS + row) * 64 + ((piece ^ row) & 7) * 8;
}

// MT: tiles of 16 rows of a block.
template <typename T, int MT> struct LatentShared {
    T q[16 * MT * LA_D], k[2][LA_STEP * LA_D], p[16 * MT * LA_STEP];
    float each[16 * MT][LA_WARPS / MT]; // of a row, by the warps that share out its tokens
    float shrink[16 * MT];
};

struct LatentRows {       // what a block works on
    uint32_t seq, token;  // the sequence and its first new token
    uint32_t first, rows; // first row and how many of them
    uint32_t past;        // context before the new tokens
    uint32_t heads;
    __device__ __forceinline__ uint32_t limit(uint32_t row) const // first token that it sees not
    {
        return past + (first + row) / heads + 1;
    }
};

template <typename T, int MT>
__device__ __forceinline__ void copy_rows(const ek_cu_attention &a, const LatentRows &r, T *to)
{
    for (uint32_t i = threadIdx.x; i < 16 * MT * (LA_D / 8); i += LA_THREADS) {
        uint32_t row = i / (LA_D / 8), piece = i % (LA_D / 8);
        uint32_t at = r.first + min(row, r.rows - 1);
        const T *from = (const T *)a.q + (r.token + at / r.heads) * a.ldq + at % r.heads * LA_D;

        copy16(shared_at(to + place<16 * MT>(row, piece)), from + 8 * piece, row < r.rows);
    }
}

// Four threads a cached token.
template <typename T>
__device__ __forceinline__ void copy_latents(const ek_cu_attention &a, T *to, uint32_t seq,
                                             uint32_t first, uint32_t end)
{
    uint32_t row = threadIdx.x / 4;
    bool valid = first + row < end;
    const T *from =
        (const T *)a.kv.k + slot_of(a, seq, valid ? first + row : end - 1) * (size_t)LA_D;

#pragma unroll
    for (uint32_t i = 0; i < LA_D / 32; i++) {
        uint32_t piece = threadIdx.x % 4 + 4 * i;
        copy16(shared_at(to + place<LA_STEP>(row, piece)), from + 8 * piece, valid);
    }
}

template <typename T, int MT> struct LatentWarp {
    static const int SHARE = LA_WARPS / MT;  // warps that share out a row's tokens
    static const int MINE = LA_STEP / SHARE; // tokens of a warp: 8 MT
    float o[MT][LA_COLS / 8][4];
    float peak[2], weight[2], shrink[2]; // of rows g, g + 8 of the warp's tile of scores
    uint32_t lane, warp, tile, share;

    __device__ __forceinline__ void start()
    {
        lane = threadIdx.x % 32;
        warp = threadIdx.x / 32;
        tile = warp % MT;
        share = warp / MT;
        peak[0] = peak[1] = -INFINITY;
        weight[0] = weight[1] = 0;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < LA_COLS / 8; i++)
                o[m][i][0] = o[m][i][1] = o[m][i][2] = o[m][i][3] = 0;
    }

    // Of the warp's 16 rows and 8 MT tokens; even and odd products apart, as they wait for sums.
    __device__ __forceinline__ void scores(const T *q, const T *k, float (&s)[MT][4])
    {
        uint32_t token = MINE * share;
        float odd[MT][4] = {};

#pragma unroll
        for (int i = 0; i < MT; i++)
            s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
#pragma unroll 6
        for (int d = 0; d < LA_D / 16; d += 2) {
            uint32_t a[2][4], b[4];

#pragma unroll
            for (int h = 0; h < 2; h++)
                load_tiles(a[h], shared_at(q + place<16 * MT>(16 * tile + lane % 16,
                                                              2 * (d + h) + lane / 16)));
            if constexpr (MT == 1) {
                load_tiles(b, shared_at(k + place<LA_STEP>(token + lane % 8, 2 * d + lane / 8)));
                mma<T>(s[0], a[0], b[0], b[1]);
                mma<T>(odd[0], a[1], b[2], b[3]);
            } else {
#pragma unroll
                for (int h = 0; h < 2; h++)
#pragma unroll
                    for (int j = 0; j < MT / 2; j++) {
                        uint32_t at = token + 16 * j + lane / 16 * 8 + lane % 8;
                        float(&to)[MT][4] = h ? odd : s;

                        load_tiles(b,
                                   shared_at(k + place<LA_STEP>(at, 2 * (d + h) + lane / 8 % 2)));
                        mma<T>(to[2 * j], a[h], b[0], b[1]);
                        mma<T>(to[2 * j + 1], a[h], b[2], b[3]);
                    }
            }
        }
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                s[i][c] += odd[i][c];
    }

    // The rows' maxima over the warp's own tokens, for the other warps.
    __device__ __forceinline__ void offer_peaks(LatentShared<T, MT> &sh, float (&s)[MT][4],
                                                const LatentRows &r, uint32_t first, uint32_t end,
                                                float scale)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t row = 16 * tile + lane / 4 + 8 * h, limit = min(r.limit(row), end);
            float m = -INFINITY;

#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    uint32_t token = first + MINE * share + 8 * i + 2 * (lane % 4) + c;
                    float *v = &s[i][2 * h + c];

                    *v = token < limit ? *v * scale : -INFINITY;
                    m = fmaxf(m, *v);
                }
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            if (lane % 4 == 0)
                sh.each[row][share] = m;
        }
    }

    // Scores to probabilities in shared memory, and by what the sums so far shrink.
    __device__ __forceinline__ void softmax(LatentShared<T, MT> &sh, const float (&s)[MT][4])
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t row = 16 * tile + lane / 4 + 8 * h;
            float m = peak[h], sum = 0;

#pragma unroll
            for (int i = 0; i < SHARE; i++)
                m = fmaxf(m, sh.each[row][i]);
            float shift = m == -INFINITY ? 0.0f : m;

            shrink[h] = power2(peak[h] - shift);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                float lo = power2(s[i][2 * h] - shift), hi = power2(s[i][2 * h + 1] - shift);
                T *to = sh.p + place<16 * MT>(row, MINE / 8 * share + i) + 2 * (lane % 4);

                *reinterpret_cast<uint32_t *>(to) = pack2<T>(lo, hi);
                sum += lo + hi;
            }
            weight[h] = weight[h] * shrink[h] + sum; // of this lane's tokens; they meet at the end
            peak[h] = m;
            if (share == 0 && lane % 4 == 0)
                sh.shrink[row] = shrink[h];
        }
    }

    __device__ __forceinline__ void values(const LatentShared<T, MT> &sh, const T *k)
    {
#pragma unroll
        for (int m = 0; m < MT; m++) {
            float lo = sh.shrink[16 * m + lane / 4], hi = sh.shrink[16 * m + lane / 4 + 8];
#pragma unroll
            for (int i = 0; i < LA_COLS / 8; i++) {
                o[m][i][0] *= lo, o[m][i][1] *= lo;
                o[m][i][2] *= hi, o[m][i][3] *= hi;
            }
        }
#pragma unroll
        for (int j = 0; j < LA_STEP / 16; j++) {
            uint32_t a[MT][4], b[4];

#pragma unroll
            for (int m = 0; m < MT; m++)
                load_tiles(a[m],
                           shared_at(sh.p + place<16 * MT>(16 * m + lane % 16, 2 * j + lane / 16)));
#pragma unroll
            for (int d = 0; d < LA_COLS / 16; d++) {
                uint32_t piece = LA_COLS / 8 * warp + 2 * d + lane / 16;

                load_tiles_turned(b, shared_at(k + place<LA_STEP>(16 * j + lane % 16, piece)));
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma<T>(o[m][2 * d], a[m], b[0], b[1]);
                    mma<T>(o[m][2 * d + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // The rows' weights by the warps that shared out their tokens.
    __device__ __forceinline__ void offer_weights(LatentShared<T, MT> &sh)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = weight[h];

            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            if (lane % 4 == 0) {
                sh.each[16 * tile + lane / 4 + 8 * h][share] = l;
                if (share == 0)
                    sh.shrink[16 * tile + lane / 4 + 8 * h] = peak[h];
            }
        }
    }

    // N tiles of 8 columns of one row, from column col on.
    template <int N>
    __device__ __forceinline__ void
    store_row(const ek_cu_attention &a, const LatentRows &r, const LatentShared<T, MT> &sh,
              uint32_t part, uint32_t row, uint32_t col, const float (&v)[N][4], int h)
    {
        uint32_t at = r.first + row, token = r.token + at / r.heads, head = at % r.heads;
        size_t place = ((size_t)token * r.heads + head) * a.n_parts + part;
        bool whole = a.n_parts == 1;
        float l = 0;

        if (row >= r.rows)
            return;
#pragma unroll
        for (int i = 0; i < SHARE; i++)
            l += sh.each[row][i];
        float f = whole ? l > 0 ? 1.0f / l : 0.0f : 1.0f;
        T *out = (T *)a.out + token * a.ldo + head * LA_V + col;
        float *partial = a.partial + place * LA_V + col;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float lo = v[i][2 * h] * f, hi = v[i][2 * h + 1] * f;
            if (whole)
                *reinterpret_cast<uint32_t *>(out + 8 * i) = pack2<T>(lo, hi);
            else
                *reinterpret_cast<float2 *>(partial + 8 * i) = make_float2(lo, hi);
        }
        if (!whole && col == 0)
            a.totals[place] = make_float2(sh.shrink[row], l);
    }

    __device__ __forceinline__ void finish(const ek_cu_attention &a, const LatentRows &r,
                                           const LatentShared<T, MT> &sh, uint32_t part)
    {
        uint32_t col = LA_COLS * warp + 2 * (lane % 4);

#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                store_row<LA_COLS / 8>(a, r, sh, part, 16 * m + lane / 4 + 8 * h, col, o[m], h);
    }
};

#ifdef EK_WGMMA
#define EK_R16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define EK_WGMMA_NARROW(T, NAME)                                                                   \
    __device__ __forceinline__ void wgmma_narrow(float(&c)[4][4], uint64_t a, uint64_t b,          \
                                                 bool add, T)                                      \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %18, 0;\n"                                     \
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32." NAME "." NAME " " EK_R16        \
                     ", %16, %17, p, 1, 1, 0, 0;}"                                                 \
                     : EK_C4(0), EK_C4(1), EK_C4(2), EK_C4(3)                                      \
                     : "l"(a), "l"(b), "r"((int)add));                                             \
    }
EK_WGMMA_NARROW(bf16, "bf16")
EK_WGMMA_NARROW(f16, "f16")

// 64 rows by two warpgroups: each takes the scores of half of a step's tokens, and half of the
// values' dimensions; its warps have 16 rows each in both.
template <typename T> struct LatentGroup : LatentWarp<T, 4> {
    using Base = LatentWarp<T, 4>;
    float v[2][16][4];

    __device__ __forceinline__ void start()
    {
        Base::start();
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < 16; i++)
                v[h][i][0] = v[h][i][1] = v[h][i][2] = v[h][i][3] = 0;
    }

    __device__ __forceinline__ void scores(const T *q, const T *k, float (&s)[4][4])
    {
        uint32_t qa = shared_at(q), ka = shared_at(k) + this->share * (LA_STEP / 2) * 128;

        wgmma_begin();
#pragma unroll
        for (int d = 0; d < LA_D / 16; d++) {
            uint32_t at = d / 4 * LA_STEP * 128 + d % 4 * 32;
            wgmma_narrow(s, operand_at(qa + at, 0), operand_at(ka + at, 0), d > 0, T());
        }
        wgmma_commit();
        wgmma_wait(s);
    }

    __device__ __forceinline__ void values(const LatentShared<T, 4> &sh, const T *k)
    {
        uint32_t ka = shared_at(k) + 4 * this->share * LA_STEP * 128, a[LA_STEP / 16][4];

#pragma unroll
        for (int j = 0; j < LA_STEP / 16; j++)
            load_tiles(a[j], shared_at(sh.p + place<64>(16 * this->tile + this->lane % 16,
                                                        2 * j + this->lane / 16)));
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < 16; i++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    v[h][i][c] *= this->shrink[c / 2];
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < LA_STEP / 16; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                wgmma_registers(
                    v[h], a[j],
                    operand_at(ka + 2 * h * LA_STEP * 128 + j * 16 * 128, LA_STEP * 128), T());
        wgmma_commit();
        wgmma_wait(v[0]);
        wgmma_wait(v[1]);
    }

    __device__ __forceinline__ void finish(const ek_cu_attention &a, const LatentRows &r,
                                           const LatentShared<T, 4> &sh, uint32_t part)
    {
        uint32_t col = LA_V / 2 * this->share + 2 * (this->lane % 4);

#pragma unroll
        for (int hh = 0; hh < 2; hh++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                Base::template store_row<16>(a, r, sh, part,
                                             16 * this->tile + this->lane / 4 + 8 * h,
                                             col + 128 * hh, v[hh], h);
    }
};
template <typename T, int MT>
using LatentState = typename std::conditional<MT == 4, LatentGroup<T>, LatentWarp<T, MT>>::type;
#else
template <typename T, int MT> using LatentState = LatentWarp<T, MT>;
#endif

// Rows that attend to nothing.
template <typename T> __device__ __forceinline__ void clear(const ek_cu_attention &a, LatentRows r)
{
    for (uint32_t i = threadIdx.x; i < r.rows * LA_V; i += LA_THREADS) {
        uint32_t row = r.first + i / LA_V;
        T *out = (T *)a.out + (r.token + row / r.heads) * a.ldo + row % r.heads * LA_V;

        out[i % LA_V] = from_f<T>(0);
    }
}

template <typename T, int MT>
__global__ void __launch_bounds__(LA_THREADS, 1) latent_k(const ek_cu_attention a)
{
    extern __shared__ __align__(1024) uint4 raw[];
    LatentShared<T, MT> &sh = *reinterpret_cast<LatentShared<T, MT> *>(raw);
    LatentState<T, MT> state;
    LatentRows r = {.seq = blockIdx.z, .heads = a.heads};
    uint32_t tile = gridDim.x - 1 - blockIdx.x, part = blockIdx.y; // the longest contexts first

    pdl_next();
    pdl_wait();
    r.token = (uint32_t)a.batch.seq_start[r.seq];
    uint32_t n_new = (uint32_t)a.batch.seq_start[r.seq + 1] - r.token;
    uint32_t all = n_new * a.heads;
    r.first = 16 * MT * tile;
    if (r.first >= all)
        return;
    r.past = (uint32_t)max(a.batch.kv_len[r.seq], 0) - n_new;
    r.rows = min(all - r.first, 16u * MT);
    uint32_t begin = part * a.part, end = r.limit(r.rows - 1);
    if (a.n_parts > 1)
        end = min(end, begin + a.part);
    if (begin >= end) {
        if (a.n_parts == 1)
            clear<T>(a, r);
        return;
    }
    state.start();
    copy_rows<T, MT>(a, r, sh.q);
    copy_latents(a, sh.k[0], r.seq, begin, end);
    copy_commit();
    for (uint32_t first = begin, buffer = 0; first < end; first += LA_STEP, buffer ^= 1) {
        float s[MT][4];

        if (first + LA_STEP < end)
            copy_latents(a, sh.k[buffer ^ 1], r.seq, first + LA_STEP, end);
        copy_commit();
        copy_wait<1>();
#ifdef EK_WGMMA
        publish_shared();
#endif
        __syncthreads();
        state.scores(sh.q, sh.k[buffer], s);
        state.offer_peaks(sh, s, r, first, end, a.scale * LOG2E);
        __syncthreads();
        state.softmax(sh, s);
        __syncthreads();
        state.values(sh, sh.k[buffer]);
        __syncthreads();
    }
    state.offer_weights(sh);
    __syncthreads();
    state.finish(a, r, sh, part);
}

// All parts of a row, in order: a block takes 128 values of a token's head, each of its warps a
// quarter of the parts.
#define JOIN_WARPS 4
#define JOIN_COLS  128
template <typename T>
__global__ void __launch_bounds__(32 * JOIN_WARPS) join_k(const ek_cu_attention a)
{
    __shared__ float factor[EK_CU_LATENT_PARTS], quarter[JOIN_WARPS][JOIN_COLS];
    uint32_t token = blockIdx.z, head = blockIdx.y, lane = threadIdx.x % 32, lo = 0;
    uint32_t hi = a.batch.n_seqs - 1, warp = threadIdx.x / 32, col = JOIN_COLS * blockIdx.x;

    pdl_next();
    pdl_wait();
    while (lo < hi) { // the last sequence that starts at or before the token
        uint32_t mid = (lo + hi + 1) / 2;
        if ((uint32_t)a.batch.seq_start[mid] <= token)
            lo = mid;
        else
            hi = mid - 1;
    }
    int32_t after = a.batch.seq_start[lo + 1] - 1 - (int32_t)token;
    int32_t len = max(a.batch.kv_len[lo] - after, 0);
    if (after < 0)
        return;
    uint32_t parts = min(((uint32_t)len + a.part - 1) / a.part, a.n_parts);
    size_t first = ((size_t)token * a.heads + head) * a.n_parts;
    float peak = -INFINITY, sum = 0, v[4] = {};

    for (uint32_t p = lane; p < parts; p += 32)
        peak = fmaxf(peak, a.totals[first + p].x);
    peak = warp_max(peak);
    for (uint32_t p = lane; p < parts; p += 32) {
        float2 t = a.totals[first + p];
        float f = power2(t.x - peak);

        sum += f * t.y;
        if (warp == 0)
            factor[p] = f;
    }
    sum = warp_sum(sum);
    __syncthreads();
    uint32_t share = (parts + JOIN_WARPS - 1) / JOIN_WARPS, end = min((warp + 1) * share, parts);
#pragma unroll 8
    for (uint32_t p = warp * share; p < end; p++) {
        float o[4];

        load4(a.partial + (first + p) * LA_V + col + 4 * lane, o);
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = fmaf(factor[p], o[i], v[i]);
    }
    store4(&quarter[warp][4 * lane], v);
    __syncthreads();
    float all = 0;
#pragma unroll
    for (int w = 0; w < JOIN_WARPS; w++)
        all += quarter[w][threadIdx.x];
    ((T *)a.out)[token * a.ldo + head * LA_V + col + threadIdx.x] =
        from_f<T>(len ? all / sum : 0.0f);
}

template <typename T, int MT>
static cudaError_t latent_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    dim3 grid(div_up(a->batch.max_q * a->heads, 16 * MT), a->n_parts, a->batch.n_seqs);
    cudaError_t e = launch(q, latent_k<T, MT>, grid, LA_THREADS, sizeof(LatentShared<T, MT>), *a);

    if (e != cudaSuccess || a->n_parts == 1)
        return e;
    return launch(q, join_k<T>, dim3(LA_V / JOIN_COLS, a->heads, a->batch.n_tokens),
                  32 * JOIN_WARPS, 0, *a);
}

extern "C" uint32_t ek_cu_latent_rows(uint32_t max_q, uint32_t heads)
{
    uint32_t rows = max_q * heads;

    return rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
}

extern "C" bool ek_cu_latent_attention_fits(const struct ek_cu_queue *q)
{
    return q->shared >= sizeof(LatentShared<bf16, 4>);
}

template <typename T>
static cudaError_t latent_any(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    switch (ek_cu_latent_rows(a->batch.max_q, a->heads)) {
    case 16:
        return latent_launch<T, 1>(q, a);
    case 32:
        return latent_launch<T, 2>(q, a);
    default:
        return latent_launch<T, 4>(q, a);
    }
}

extern "C" cudaError_t ek_cu_latent_attention(const struct ek_cu_queue *q, enum ek_dtype act,
                                              const struct ek_cu_attention *a)
{
    return act == EK_BF16  ? latent_any<bf16>(q, a)
           : act == EK_F16 ? latent_any<f16>(q, a)
                           : cudaErrorNotSupported;
}
