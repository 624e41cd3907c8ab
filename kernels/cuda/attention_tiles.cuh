// SPDX-License-Identifier: Apache-2.0
// Attention of many rows on tensor cores. A block takes 16 rows a warp of one head, and walks what
// they see 64 tokens at a time through buffers in shared memory: while one is multiplied the next
// is copied. Scores never leave registers. Tiles in shared memory are 64 columns wide and swizzled,
// as wgmma reads them and as ldmatrix meets no bank twice; Hopper multiplies by wgmma, other GPUs
// by mma. Keys and values come from a source: the paged cache, causally (attention_prefill.cu), or
// rows beside the queries, all of a segment (attention_dense.cu).
#ifndef EK_CUDA_ATTENTION_TILES_CUH
#define EK_CUDA_ATTENTION_TILES_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/wgmma.cuh"

#define TILE_KV 64 // tokens of a step

// ---- shared memory
// Element offset of 16-byte piece `piece` of a row, in an array of ROWS rows.
template <int ROWS> __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return (piece / 8 * ROWS + row) * 64 + ((piece ^ row) & 7) * 8;
}

// Rows of D elements in tiles of 64 columns.
template <int D> constexpr int tile_columns()
{
    return (D + 63) / 64 * 64;
}
template <typename T, int D, int WARPS, int BUFFERS> struct TileShared {
    T q[16 * WARPS * tile_columns<D>()];
    T k[BUFFERS][TILE_KV * tile_columns<D>()], v[BUFFERS][TILE_KV * tile_columns<D>()];
};

// ---- what a block works on: rows of one sequence or segment, one head
struct TileSpan {
    uint32_t seq, head, kv_head;
    uint32_t token; // its first row among all
    uint32_t n;     // rows, at most 16 a warp
    uint32_t past;  // tokens of the context before its first row
    uint32_t end;   // tokens that any of its rows sees
    uint32_t open;  // tokens that all of its rows see
};

// Keys and values of the paged cache; a row sees the context up to itself.
template <int D> struct PagedSource {
    static constexpr bool causal = true;

    static __device__ __forceinline__ uint32_t dim(const ek_cu_attention &)
    {
        return D;
    }
    static __device__ __forceinline__ bool span(const ek_cu_attention &a, uint32_t rows,
                                                TileSpan &s)
    {
        uint32_t tile = gridDim.y - 1 - blockIdx.y; // the longest contexts of all heads first
        uint32_t first = (uint32_t)a.batch.seq_start[s.seq];
        uint32_t n_new = (uint32_t)a.batch.seq_start[s.seq + 1] - first;
        uint32_t len = (uint32_t)max(a.batch.kv_len[s.seq], 0);

        if (rows * tile >= n_new)
            return false;
        s.kv_head = s.head / (a.heads / a.kv.kv_heads);
        s.token = first + rows * tile;
        s.n = min(n_new - rows * tile, rows);
        s.past = len - n_new + rows * tile;
        s.end = s.past + s.n;
        s.open = s.past;
        return true;
    }
    static __device__ __forceinline__ size_t at(const ek_cu_attention &a, const TileSpan &s,
                                                uint32_t token)
    {
        return (slot_of(a, s.seq, token) * a.kv.kv_heads + s.kv_head) * D;
    }
};

// Keys and values in rows beside the queries; a row sees all of its segment.
struct RowSource {
    static constexpr bool causal = false;

    static __device__ __forceinline__ uint32_t dim(const ek_cu_attention &a)
    {
        return a.kv.head_dim;
    }
    static __device__ __forceinline__ bool span(const ek_cu_attention &a, uint32_t rows,
                                                TileSpan &s)
    {
        uint32_t first = (uint32_t)a.batch.seq_start[s.seq], tile = blockIdx.y;

        s.end = s.open = (uint32_t)a.batch.seq_start[s.seq + 1] - first;
        if (rows * tile >= s.end)
            return false;
        s.past = rows * tile;
        s.token = first + s.past;
        s.n = min(s.end - s.past, rows);
        return true;
    }
    static __device__ __forceinline__ size_t at(const ek_cu_attention &a, const TileSpan &s,
                                                uint32_t token)
    {
        return (s.token - s.past + token) * a.row + s.head * a.kv.head_dim;
    }
};

// ---- copies into shared memory; pieces behind a head's last element are zeros
template <typename T, int D, int WARPS>
__device__ __forceinline__ void copy_q(const ek_cu_attention &a, T *to, const TileSpan &s,
                                       uint32_t dim)
{
    for (uint32_t i = threadIdx.x; i < 16 * WARPS * D / 8; i += 32 * WARPS) {
        uint32_t row = i / (D / 8), piece = i % (D / 8);
        bool valid = row < s.n && 8 * piece < dim;
        const T *from = (const T *)a.q + (s.token + min(row, s.n - 1)) * a.ldq + s.head * dim;

        copy16(shared_at(to + place<16 * WARPS>(row, piece)), from + min(8 * piece, dim - 8),
               valid);
    }
}

template <typename T, int D, int WARPS, typename Source>
__device__ __forceinline__ void copy_kv(const ek_cu_attention &a, T *k, T *v, const TileSpan &s,
                                        uint32_t dim, uint32_t first)
{
    constexpr int ALL = TILE_KV * D / 8, THREADS = 32 * WARPS, N = (ALL + THREADS - 1) / THREADS;
    size_t from[N];

#pragma unroll
    for (int i = 0; i < N; i++) { // all look-ups before the first copy
        uint32_t row = (threadIdx.x + i * THREADS) / (D / 8);
        from[i] = Source::at(a, s, min(first + row, s.end - 1));
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        uint32_t at = threadIdx.x + i * THREADS, row = at / (D / 8), piece = at % (D / 8);
        bool valid = first + row < s.end && 8 * piece < dim;
        size_t element = from[i] + min(8 * piece, dim - 8);

        if (ALL % THREADS && at >= ALL)
            break;
        copy16(shared_at(k + place<TILE_KV>(row, piece)), (const T *)a.kv.k + element, valid);
        copy16(shared_at(v + place<TILE_KV>(row, piece)), (const T *)a.kv.v + element, valid);
    }
}

// ---- one warp's 16 rows; ROWS: of a block
template <typename T, int D, int ROWS> struct TileWarp {
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
                                           float (&s)[TILE_KV / 8][4])
    {
        uint32_t qa = shared_at(q) + warp / 4 * 64 * 128, ka = shared_at(k);

        wgmma_begin();
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            wgmma_shared(s, operand_at(qa + d / 4 * ROWS * 128 + d % 4 * 32, 0),
                         operand_at(ka + d / 4 * TILE_KV * 128 + d % 4 * 32, 0), d > 0, T());
        wgmma_commit();
        wgmma_wait(s);
    }
#else
    __device__ __forceinline__ void scores(const T *q, const T *k, uint32_t warp, uint32_t lane,
                                           float (&s)[TILE_KV / 8][4])
    {
#pragma unroll
        for (int i = 0; i < TILE_KV / 8; i++)
            s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t a[4], row = 16 * warp + lane % 16;

            load_tiles(a, shared_at(q + place<ROWS>(row, 2 * d + lane / 16)));
#pragma unroll
            for (int j = 0; j < TILE_KV / 16; j++) { // two tiles of 8 tokens
                uint32_t b[4], token = 16 * j + lane / 16 * 8 + lane % 8;

                load_tiles(b, shared_at(k + place<TILE_KV>(token, 2 * d + lane / 8 % 2)));
                mma<T>(s[2 * j], a, b[0], b[1]);
                mma<T>(s[2 * j + 1], a, b[2], b[3]);
            }
        }
    }
#endif

    // Masks tokens after the row's own and beyond the end. limit: first masked token of row g.
    static __device__ __forceinline__ void mask(float s[TILE_KV / 8][4], uint32_t first,
                                                int32_t limit, int32_t limit8, uint32_t t)
    {
#pragma unroll
        for (int i = 0; i < TILE_KV / 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int32_t token = (int32_t)(first + 8 * i + 2 * t + c % 2);
                if (token >= (c < 2 ? limit : limit8))
                    s[i][c] = -INFINITY;
            }
    }

    __device__ __forceinline__ void softmax(float s[TILE_KV / 8][4], float scale)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float m = -INFINITY, sum = 0;
#pragma unroll
            for (int i = 0; i < TILE_KV / 8; i++)
                m = fmaxf(m, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            m = fmaxf(peak[r], m * scale);
            float shift = m == -INFINITY ? 0.0f : m, shrink = power2(peak[r] - shift);
#pragma unroll
            for (int i = 0; i < TILE_KV / 8; i++)
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
    static __device__ __forceinline__ void operand(const float (&s)[TILE_KV / 8][4], int j,
                                                   uint32_t p[4])
    {
        p[0] = pack2<T>(s[2 * j][0], s[2 * j][1]);
        p[1] = pack2<T>(s[2 * j][2], s[2 * j][3]);
        p[2] = pack2<T>(s[2 * j + 1][0], s[2 * j + 1][1]);
        p[3] = pack2<T>(s[2 * j + 1][2], s[2 * j + 1][3]);
    }

    __device__ __forceinline__ void values(const T *v, uint32_t lane,
                                           const float (&s)[TILE_KV / 8][4])
    {
#ifdef EK_WGMMA
        uint32_t p[TILE_KV / 16][4];

#pragma unroll
        for (int j = 0; j < TILE_KV / 16; j++)
            operand(s, j, p[j]);
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < TILE_KV / 16; j++)
            wgmma_registers(o, p[j], operand_at(shared_at(v) + j * 2048, TILE_KV * 128), T());
        wgmma_commit();
        wgmma_wait(o);
#else
#pragma unroll
        for (int j = 0; j < TILE_KV / 16; j++) {
            uint32_t p[4];

            operand(s, j, p);
#pragma unroll
            for (int d = 0; d < D / 16; d++) { // two tiles of 8 dimensions
                uint32_t b[4], token = 16 * j + lane % 16;

                load_tiles_turned(b, shared_at(v + place<TILE_KV>(token, 2 * d + lane / 16)));
                mma<T>(o[2 * d], p, b[0], b[1]);
                mma<T>(o[2 * d + 1], p, b[2], b[3]);
            }
        }
#endif
    }

    __device__ __forceinline__ void finish(const ek_cu_attention &a, const TileSpan &s,
                                           uint32_t dim, uint32_t row, uint32_t t)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float l = weight[r];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            float f = l > 0 ? 1.0f / l : 0.0f;
            if (row + 8 * r >= s.n)
                continue;
            T *out = (T *)a.out + (s.token + row + 8 * r) * a.ldo + s.head * dim + 2 * t;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                if (8 * i < dim)
                    *reinterpret_cast<uint32_t *>(out + 8 * i) =
                        pack2<T>(o[i][2 * r] * f, o[i][2 * r + 1] * f);
        }
    }
};

// BUFFERS 1: no row sees more than TILE_KV tokens.
template <typename T, int D, int WARPS, int BUFFERS, typename Source>
__global__ void __launch_bounds__(32 * WARPS, 16 / WARPS) tiles_k(const ek_cu_attention a)
{
    extern __shared__ __align__(1024) uint4 raw[];
    TileShared<T, D, WARPS, BUFFERS> &m =
        *reinterpret_cast<TileShared<T, D, WARPS, BUFFERS> *>(raw);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
    uint32_t dim = Source::dim(a);
    TileSpan s = {.seq = blockIdx.z, .head = blockIdx.x};
    TileWarp<T, D, 16 * WARPS> state;

    pdl_next();
    pdl_wait();
    if (!Source::span(a, 16 * WARPS, s))
        return;
    int32_t limit = (int32_t)(Source::causal ? s.past + row + 1 : s.end); // first that it masks
    state.start();
    copy_q<T, D, WARPS>(a, m.q, s, dim);
    copy_kv<T, D, WARPS, Source>(a, m.k[0], m.v[0], s, dim, 0);
    copy_commit();
    for (uint32_t first = 0, buffer = 0; first < s.end; first += TILE_KV, buffer ^= BUFFERS - 1) {
        uint32_t next = buffer ^ (BUFFERS - 1);
        float p[TILE_KV / 8][4];

        copy_wait<0>();
#ifdef EK_WGMMA
        publish_shared();
#endif
        __syncthreads(); // this step's tokens are there, and all warps are done with the last one's
        if (BUFFERS > 1 && first + TILE_KV < s.end) {
            copy_kv<T, D, WARPS, Source>(a, m.k[next], m.v[next], s, dim, first + TILE_KV);
            copy_commit();
        }
        // a row of the warpgroup sees it
        if (!Source::causal || first < s.past + 64 * (warp / 4) + 64) {
            state.scores(m.q, m.k[buffer], warp, lane, p);
            if (first + TILE_KV > s.open + (Source::causal ? 16 * warp : 0))
                state.mask(p, first, limit, Source::causal ? limit + 8 : limit, lane % 4);
            state.softmax(p, a.scale * LOG2E);
            state.values(m.v[buffer], lane, p);
        }
    }
    state.finish(a, s, dim, row, lane % 4);
}

template <typename T, int D, int WARPS, int BUFFERS, typename Source>
static cudaError_t tiles_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    dim3 grid(a->heads, div_up(a->batch.max_q, 16 * WARPS), a->batch.n_seqs);

    return launch(q, tiles_k<T, D, WARPS, BUFFERS, Source>, grid, 32 * WARPS,
                  sizeof(TileShared<T, D, WARPS, BUFFERS>), *a);
}

#endif
