// SPDX-License-Identifier: Apache-2.0
// Prefill attention on tensor cores: causal, ragged, over the paged cache. A block takes 128 new
// tokens of one head, 16 a warp, and walks the context 64 tokens at a time through two buffers in
// shared memory: while one is multiplied the next is copied. Scores never leave registers. Tiles in
// shared memory are 64 columns wide and swizzled, as wgmma reads them and as ldmatrix meets no bank
// twice; Hopper multiplies by wgmma, other GPUs by mma.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/wgmma.cuh"

#define PRE_WARPS   8
#define PRE_THREADS (32 * PRE_WARPS)
#define PRE_Q       (16 * PRE_WARPS) // query tokens a block
#define PRE_KV      64               // context tokens a step

// ---- shared memory
// Element offset of 16-byte piece `piece` of a row, in an array of ROWS rows.
template <int ROWS> __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return (piece / 8 * ROWS + row) * 64 + ((piece ^ row) & 7) * 8;
}
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

template <typename T, int D> struct PrefillShared {
    T q[PRE_Q * D], k[2][PRE_KV * D], v[2][PRE_KV * D];
};

// ---- copies into shared memory
template <typename T, int D>
__device__ __forceinline__ void copy_q(const ek_cu_attention &a, T *to, uint32_t token, uint32_t n,
                                       uint32_t head)
{
    for (uint32_t i = threadIdx.x; i < PRE_Q * D / 8; i += PRE_THREADS) {
        uint32_t row = i / (D / 8), piece = i % (D / 8);
        const T *from = (const T *)a.q + (token + min(row, n - 1)) * a.ldq + head * D + piece * 8;

        copy16(shared_at(to + place<PRE_Q>(row, piece)), from, row < n);
    }
}

template <typename T, int D>
__device__ __forceinline__ void copy_kv(const ek_cu_attention &a, PrefillShared<T, D> &s,
                                        uint32_t buffer, uint32_t seq, uint32_t kv_head,
                                        uint32_t first, uint32_t len)
{
    const int N = PRE_KV * D / 8 / PRE_THREADS, STRIDE = PRE_THREADS / (D / 8);
    uint32_t piece = threadIdx.x % (D / 8), row = threadIdx.x / (D / 8);
    size_t from[N];

#pragma unroll
    for (int i = 0; i < N; i++) { // all look-ups before the first copy
        uint32_t token = min(first + row + i * STRIDE, len - 1);
        from[i] = (slot_of(a, seq, token) * a.kv.kv_heads + kv_head) * D + piece * 8;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        uint32_t at = place<PRE_KV>(row + i * STRIDE, piece);
        bool valid = first + row + i * STRIDE < len;

        copy16(shared_at(s.k[buffer] + at), (const T *)a.kv.k + from[i], valid);
        copy16(shared_at(s.v[buffer] + at), (const T *)a.kv.v + from[i], valid);
    }
}

// ---- one warp's 16 query tokens
template <typename T, int D> struct PrefillWarp {
    float o[D / 8][4], peak[2], weight[2];

    __device__ __forceinline__ void start()
    {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
        peak[0] = peak[1] = -INFINITY;
        weight[0] = weight[1] = 0;
    }

#ifdef EK_WGMMA
    __device__ __forceinline__ void scores(const T *q, const T *k, uint32_t warp, uint32_t,
                                           float (&s)[PRE_KV / 8][4])
    {
        uint32_t qa = shared_at(q) + warp / 4 * 64 * 128, ka = shared_at(k);

        wgmma_begin();
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            wgmma_shared(s, operand_at(qa + d / 4 * PRE_Q * 128 + d % 4 * 32, 0),
                         operand_at(ka + d / 4 * PRE_KV * 128 + d % 4 * 32, 0), d > 0, T());
        wgmma_commit();
        wgmma_wait(s);
    }
#else
    __device__ __forceinline__ void scores(const T *q, const T *k, uint32_t warp, uint32_t lane,
                                           float (&s)[PRE_KV / 8][4])
    {
#pragma unroll
        for (int i = 0; i < PRE_KV / 8; i++)
            s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t a[4], row = 16 * warp + lane % 16;

            load_tiles(a, shared_at(q + place<PRE_Q>(row, 2 * d + lane / 16)));
#pragma unroll
            for (int j = 0; j < PRE_KV / 16; j++) { // two tiles of 8 tokens
                uint32_t b[4], token = 16 * j + lane / 16 * 8 + lane % 8;

                load_tiles(b, shared_at(k + place<PRE_KV>(token, 2 * d + lane / 8 % 2)));
                mma<T>(s[2 * j], a, b[0], b[1]);
                mma<T>(s[2 * j + 1], a, b[2], b[3]);
            }
        }
    }
#endif

    // Masks tokens after the row's own and beyond the end. limit: first masked token of row g.
    static __device__ __forceinline__ void mask(float s[PRE_KV / 8][4], uint32_t first,
                                                int32_t limit, int32_t limit8, uint32_t t)
    {
#pragma unroll
        for (int i = 0; i < PRE_KV / 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int32_t token = (int32_t)(first + 8 * i + 2 * t + c % 2);
                if (token >= (c < 2 ? limit : limit8))
                    s[i][c] = -INFINITY;
            }
    }

    __device__ __forceinline__ void softmax(float s[PRE_KV / 8][4], float scale)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float m = -INFINITY, sum = 0;
#pragma unroll
            for (int i = 0; i < PRE_KV / 8; i++)
                m = fmaxf(m, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            m = fmaxf(peak[r], m * scale);
            float shift = m == -INFINITY ? 0.0f : m, shrink = power2(peak[r] - shift);
#pragma unroll
            for (int i = 0; i < PRE_KV / 8; i++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float p = power2(fmaf(s[i][2 * r + c], scale, -shift));
                    s[i][2 * r + c] = p;
                    sum += p;
                }
            weight[r] = weight[r] * shrink + sum; // of this lane's columns; lanes meet at the end
            peak[r] = m;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                o[i][2 * r] *= shrink, o[i][2 * r + 1] *= shrink;
        }
    }

    // Probabilities of tokens 16j .. 16j + 15 as operand a.
    static __device__ __forceinline__ void operand(const float (&s)[PRE_KV / 8][4], int j,
                                                   uint32_t p[4])
    {
        p[0] = pack2<T>(s[2 * j][0], s[2 * j][1]);
        p[1] = pack2<T>(s[2 * j][2], s[2 * j][3]);
        p[2] = pack2<T>(s[2 * j + 1][0], s[2 * j + 1][1]);
        p[3] = pack2<T>(s[2 * j + 1][2], s[2 * j + 1][3]);
    }

    __device__ __forceinline__ void values(const T *v, uint32_t lane,
                                           const float (&s)[PRE_KV / 8][4])
    {
#ifdef EK_WGMMA
        uint32_t p[PRE_KV / 16][4];

#pragma unroll
        for (int j = 0; j < PRE_KV / 16; j++)
            operand(s, j, p[j]);
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < PRE_KV / 16; j++)
            wgmma_registers(o, p[j], operand_at(shared_at(v) + j * 2048, PRE_KV * 128), T());
        wgmma_commit();
        wgmma_wait(o);
#else
#pragma unroll
        for (int j = 0; j < PRE_KV / 16; j++) {
            uint32_t p[4];

            operand(s, j, p);
#pragma unroll
            for (int d = 0; d < D / 16; d++) { // two tiles of 8 dimensions
                uint32_t b[4], token = 16 * j + lane % 16;

                load_tiles_turned(b, shared_at(v + place<PRE_KV>(token, 2 * d + lane / 16)));
                mma<T>(o[2 * d], p, b[0], b[1]);
                mma<T>(o[2 * d + 1], p, b[2], b[3]);
            }
        }
#endif
    }

    __device__ __forceinline__ void finish(const ek_cu_attention &a, uint32_t token, uint32_t row,
                                           uint32_t n, uint32_t head, uint32_t t)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float l = weight[r];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            float f = l > 0 ? 1.0f / l : 0.0f;
            if (row + 8 * r >= n)
                continue;
            T *out = (T *)a.out + (token + row + 8 * r) * a.ldo + head * D + 2 * t;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *reinterpret_cast<uint32_t *>(out + 8 * i) =
                    pack2<T>(o[i][2 * r] * f, o[i][2 * r + 1] * f);
        }
    }
};

template <typename T, int D>
__global__ void __launch_bounds__(PRE_THREADS, 2) prefill_k(const ek_cu_attention a)
{
    extern __shared__ __align__(1024) uint4 raw[];
    PrefillShared<T, D> &s = *reinterpret_cast<PrefillShared<T, D> *>(raw);
    uint32_t seq = blockIdx.z, head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t kv_head = head / (a.heads / a.kv.kv_heads);
    uint32_t tile = gridDim.y - 1 - blockIdx.y; // the longest contexts of all heads first

    pdl_next();
    pdl_wait();
    uint32_t token = (uint32_t)a.batch.seq_start[seq];
    uint32_t n_new = (uint32_t)a.batch.seq_start[seq + 1] - token;
    uint32_t len = (uint32_t)max(a.batch.kv_len[seq], 0), past = len - n_new;
    if (PRE_Q * tile >= n_new)
        return;
    token += PRE_Q * tile;
    uint32_t n = min(n_new - PRE_Q * tile, (uint32_t)PRE_Q);
    uint32_t end = past + PRE_Q * tile + n; // of the context that these tokens see
    uint32_t row = 16 * warp + lane / 4;
    int32_t limit = (int32_t)(past + PRE_Q * tile + row + 1);
    PrefillWarp<T, D> state;

    state.start();
    copy_q<T, D>(a, s.q, token, n, head);
    copy_kv<T, D>(a, s, 0, seq, kv_head, 0, end);
    copy_commit();
    for (uint32_t first = 0, buffer = 0; first < end; first += PRE_KV, buffer ^= 1) {
        float p[PRE_KV / 8][4];

        if (first + PRE_KV < end)
            copy_kv<T, D>(a, s, buffer ^ 1, seq, kv_head, first + PRE_KV, end);
        copy_commit();
        copy_wait<1>();
#ifdef EK_WGMMA
        publish_shared();
#endif
        __syncthreads();
        if (first < past + PRE_Q * tile + 64 * (warp / 4) + 64) { // a row of the warpgroup sees it
            state.scores(s.q, s.k[buffer], warp, lane, p);
            if (first + PRE_KV > past + PRE_Q * tile + 16 * warp)
                state.mask(p, first, limit, limit + 8, lane % 4);
            state.softmax(p, a.scale * LOG2E);
            state.values(s.v[buffer], lane, p);
        }
        __syncthreads();
    }
    state.finish(a, token, row, n, head, lane % 4);
}

template <typename T, int D>
static cudaError_t prefill_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    dim3 grid(a->heads, div_up(a->batch.max_q, PRE_Q), a->batch.n_seqs);

    return launch(q, prefill_k<T, D>, grid, PRE_THREADS, sizeof(PrefillShared<T, D>), *a);
}

extern "C" cudaError_t ek_cu_attention_prefill(const struct ek_cu_queue *q, enum ek_dtype act,
                                               const struct ek_cu_attention *a)
{
    if (act == EK_BF16)
        return a->kv.head_dim == 64 ? prefill_launch<bf16, 64>(q, a)
                                    : prefill_launch<bf16, 128>(q, a);
    if (act == EK_F16)
        return a->kv.head_dim == 64 ? prefill_launch<f16, 64>(q, a)
                                    : prefill_launch<f16, 128>(q, a);
    return cudaErrorNotSupported;
}
