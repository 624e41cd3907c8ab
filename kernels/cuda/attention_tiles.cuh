// SPDX-License-Identifier: Apache-2.0
// Attention of many rows on tensor cores. A block takes 16 rows a warp of one head, and walks what
// they see 64 tokens at a time through buffers in shared memory: while one is multiplied the next
// is copied. Scores never leave registers. Tiles in shared memory are 64 columns wide and swizzled,
// as wgmma reads them and as ldmatrix meets no bank twice; Hopper multiplies by wgmma, other GPUs
// by mma. Keys (DK elements) and values (DV) come from a source: the paged cache, causally
// (attention_prefill.cu), rows beside the queries, all of a segment (attention_dense.cu), or what
// was made of a latent cache, a span of the context at a time (attention_expanded.cu).
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
// Keys that are long leave room for one buffer of values: they are copied while their step's scores
// are made, where VALUES is 1 and BUFFERS 2.
template <typename T, int DK, int DV, int WARPS, int BUFFERS, int VALUES> struct TileShared {
    T q[16 * WARPS * tile_columns<DK>()];
    T k[BUFFERS][TILE_KV * tile_columns<DK>()], v[VALUES][TILE_KV * tile_columns<DV>()];
};

// ---- what a block works on: rows of one sequence or segment, one head
struct TileSpan {
    uint32_t seq, head, kv_head;
    uint32_t token; // its first row among all
    uint32_t n;     // rows, at most 16 a warp
    uint32_t past;  // tokens of the context before its first row
    uint32_t begin; // first token of the context that this launch takes
    uint32_t end;   // tokens that any of its rows sees, of those up to the launch's last
    uint32_t open;  // tokens that all of its rows see
    bool done;      // no later launch has more of the context
};

// Tile number `tile` of the sequence's rows and their causal context; false: there are none.
__device__ __forceinline__ bool causal_span(const ek_cu_attention &a, uint32_t rows, uint32_t tile,
                                            TileSpan &s)
{
    uint32_t first = (uint32_t)a.batch.seq_start[s.seq];
    uint32_t n_new = (uint32_t)a.batch.seq_start[s.seq + 1] - first;
    uint32_t len = (uint32_t)max(a.batch.kv_len[s.seq], 0);

    if (rows * tile >= n_new)
        return false;
    s.token = first + rows * tile;
    s.n = min(n_new - rows * tile, rows);
    s.past = len - n_new + rows * tile;
    s.end = s.past + s.n;
    s.open = s.past;
    s.done = true;
    return true;
}

struct NoCopy { // of sources whose keys and values are copied together, by copy_kv
    __device__ __forceinline__ NoCopy(const ek_cu_attention &, const TileSpan &)
    {
    }
};

// Keys and values of the paged cache; a row sees the context up to itself.
template <int D> struct PagedSource {
    static constexpr int DK = D, DV = D, VALUES = 2;
    static constexpr bool causal = true;

    static __device__ __forceinline__ uint32_t dim(const ek_cu_attention &)
    {
        return D;
    }
    static __device__ __forceinline__ bool span(const ek_cu_attention &a, uint32_t rows,
                                                uint32_t tile, TileSpan &s)
    {
        s.kv_head = s.head / (a.heads / a.kv.kv_heads);
        return causal_span(a, rows, tile, s);
    }
    static __device__ __forceinline__ size_t at(const ek_cu_attention &a, const TileSpan &s,
                                                uint32_t token)
    {
        return (slot_of(a, s.seq, token) * a.kv.kv_heads + s.kv_head) * D;
    }
    template <typename T, int WARPS> using Copy = NoCopy;
};

// Keys and values in rows beside the queries; a row sees all of its segment.
template <int D, int BUFFERS> struct RowSource {
    static constexpr int DK = D, DV = D, VALUES = BUFFERS;
    static constexpr bool causal = false;

    static __device__ __forceinline__ uint32_t dim(const ek_cu_attention &a)
    {
        return a.kv.head_dim;
    }
    static __device__ __forceinline__ bool span(const ek_cu_attention &a, uint32_t rows,
                                                uint32_t tile, TileSpan &s)
    {
        uint32_t first = (uint32_t)a.batch.seq_start[s.seq];

        s.end = s.open = (uint32_t)a.batch.seq_start[s.seq + 1] - first;
        if (rows * tile >= s.end)
            return false;
        s.past = rows * tile;
        s.token = first + s.past;
        s.n = min(s.end - s.past, rows);
        s.done = true;
        return true;
    }
    static __device__ __forceinline__ size_t at(const ek_cu_attention &a, const TileSpan &s,
                                                uint32_t token)
    {
        return (s.token - s.past + token) * a.row + s.head * a.kv.head_dim;
    }
    template <typename T, int WARPS> using Copy = NoCopy;
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

template <typename T, int WARPS, typename Source>
__device__ __forceinline__ void copy_kv(const ek_cu_attention &a, T *k, T *v, const TileSpan &s,
                                        uint32_t dim, uint32_t first)
{
    constexpr int D = Source::DK, ALL = TILE_KV * D / 8, THREADS = 32 * WARPS,
                  N = (ALL + THREADS - 1) / THREADS;
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

// ---- sums of a warp's 16 rows, of DV values
template <typename T, int DV> struct AttentionRows {
    float o[DV / 8][4], peak[2], weight[2];

    __device__ __forceinline__ void start()
    {
#pragma unroll
        for (int i = 0; i < DV / 8; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
        peak[0] = peak[1] = -INFINITY;
        weight[0] = weight[1] = 0;
    }

    // The lane's weights of both rows, of all lanes that share them.
    __device__ __forceinline__ float whole(int r) const
    {
        float l = weight[r];
        l += __shfl_xor_sync(0xffffffffu, l, 1);
        return l + __shfl_xor_sync(0xffffffffu, l, 2);
    }

    __device__ __forceinline__ void finish(const ek_cu_attention &a, const TileSpan &s,
                                           uint32_t dim, uint32_t row, uint32_t t)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float l = whole(r), f = l > 0 ? 1.0f / l : 0.0f;
            if (row + 8 * r >= s.n)
                continue;
            T *out = (T *)a.out + (s.token + row + 8 * r) * a.ldo + s.head * dim + 2 * t;
#pragma unroll
            for (int i = 0; i < DV / 8; i++)
                if (8 * i < dim)
                    *reinterpret_cast<uint32_t *>(out + 8 * i) =
                        pack2<T>(o[i][2 * r] * f, o[i][2 * r + 1] * f);
        }
    }

    // Sums so far, from one launch to the next.
    __device__ __forceinline__ void save(const ek_cu_attention &a, const TileSpan &s, uint32_t row,
                                         uint32_t t)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float l = whole(r);
            if (row + 8 * r >= s.n)
                continue;
            size_t at = (size_t)(s.token + row + 8 * r) * a.heads + s.head;
            float2 *to = reinterpret_cast<float2 *>(a.partial + at * DV) + t;
#pragma unroll
            for (int i = 0; i < DV / 8; i++)
                to[4 * i] = make_float2(o[i][2 * r], o[i][2 * r + 1]);
            if (t == 0)
                a.totals[at] = make_float2(peak[r], l);
        }
    }
    __device__ __forceinline__ void resume(const ek_cu_attention &a, const TileSpan &s,
                                           uint32_t row, uint32_t t)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (row + 8 * r >= s.n)
                continue;
            size_t at = (size_t)(s.token + row + 8 * r) * a.heads + s.head;
            const float2 *from = reinterpret_cast<const float2 *>(a.partial + at * DV) + t;
            float2 total = a.totals[at];
#pragma unroll
            for (int i = 0; i < DV / 8; i++) {
                float2 v = from[4 * i];
                o[i][2 * r] = v.x, o[i][2 * r + 1] = v.y;
            }
            peak[r] = total.x;
            weight[r] = t == 0 ? total.y : 0.0f;
        }
    }
};

// ---- one warp's 16 rows; ROWS: of a block
template <typename T, int DK, int DV, int ROWS> struct TileWarp : AttentionRows<T, DV> {
    using AttentionRows<T, DV>::o;
    using AttentionRows<T, DV>::peak;
    using AttentionRows<T, DV>::weight;

#ifdef EK_WGMMA
    __device__ __forceinline__ void scores(const T *q, const T *k, uint32_t warp, uint32_t,
                                           float (&s)[TILE_KV / 8][4])
    {
        uint32_t qa = shared_at(q) + warp / 4 * 64 * 128, ka = shared_at(k);

        wgmma_begin();
#pragma unroll
        for (int d = 0; d < DK / 16; d++)
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
        for (int d = 0; d < DK / 16; d++) {
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
            for (int i = 0; i < DV / 8; i++)
                o[i][2 * r] *= shrink, o[i][2 * r + 1] *= shrink;
        }
    }

    // Probabilities of tokens 16j .. 16j + 15 as operands a.
    static __device__ __forceinline__ void operands(const float (&s)[TILE_KV / 8][4],
                                                    uint32_t (&p)[TILE_KV / 16][4])
    {
#pragma unroll
        for (int j = 0; j < TILE_KV / 16; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[j][i] = pack2<T>(s[2 * j + i / 2][i % 2 * 2], s[2 * j + i / 2][i % 2 * 2 + 1]);
    }

    __device__ __forceinline__ void values(const T *v, uint32_t lane,
                                           const uint32_t (&p)[TILE_KV / 16][4])
    {
#ifdef EK_WGMMA
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < TILE_KV / 16; j++)
            wgmma_registers(o, p[j], operand_at(shared_at(v) + j * 2048, TILE_KV * 128), T());
        wgmma_commit();
        wgmma_wait(o);
#else
#pragma unroll
        for (int j = 0; j < TILE_KV / 16; j++) {
#pragma unroll
            for (int d = 0; d < DV / 16; d++) { // two tiles of 8 dimensions
                uint32_t b[4], token = 16 * j + lane % 16;

                load_tiles_turned(b, shared_at(v + place<TILE_KV>(token, 2 * d + lane / 16)));
                mma<T>(o[2 * d], p[j], b[0], b[1]);
                mma<T>(o[2 * d + 1], p[j], b[2], b[3]);
            }
        }
#endif
    }
};

// BUFFERS 1: no row sees more than TILE_KV tokens. A source whose values have fewer buffers than
// its keys copies them apart, while the scores of their step are made.
template <typename T, int WARPS, int BUFFERS, typename Source>
__global__ void __launch_bounds__(32 * WARPS, Source::VALUES < BUFFERS ? 2 : 16 / WARPS)
    tiles_k(const ek_cu_attention a)
{
    using Shared = TileShared<T, Source::DK, Source::DV, WARPS, BUFFERS, Source::VALUES>;
    constexpr bool APART = Source::VALUES < BUFFERS;
    extern __shared__ __align__(1024) uint4 raw[];
    Shared &m = *reinterpret_cast<Shared *>(raw);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
    uint32_t dim = Source::dim(a);
    TileSpan s = {.seq = blockIdx.z, .head = blockIdx.x};
    TileWarp<T, Source::DK, Source::DV, 16 * WARPS> state;

    pdl_next();
    pdl_wait();
    // the longest contexts of all heads first
    if (!Source::span(a, 16 * WARPS, gridDim.y - 1 - blockIdx.y, s))
        return;
    int32_t limit = (int32_t)(Source::causal ? s.past + row + 1 : s.end); // first that it masks
    typename Source::template Copy<T, WARPS> copy(a, s);
    copy_q<T, Source::DK, WARPS>(a, m.q, s, dim);
    if constexpr (APART)
        copy.keys(m.k[0], s.begin);
    else
        copy_kv<T, WARPS, Source>(a, m.k[0], m.v[0], s, dim, 0);
    copy_commit();
    if constexpr (APART) {
        copy_wait<0>();
        __syncthreads();
        Source::template turn<T, 16 * WARPS, 16 * WARPS>(a, m.q, s, 0);
    }
    state.start();
    if (APART && s.begin > 0)
        state.resume(a, s, row, lane % 4);
    for (uint32_t first = s.begin, buffer = 0; first < s.end;
         first += TILE_KV, buffer ^= BUFFERS - 1) {
        uint32_t next = buffer ^ (BUFFERS - 1), own = APART ? 0 : buffer;
        // a row of the warpgroup sees it
        bool seen = !Source::causal || first < s.past + 64 * (warp / 4) + 64;
        uint32_t p[TILE_KV / 16][4];

        copy_wait<0>();
#ifdef EK_WGMMA
        publish_shared();
#endif
        __syncthreads(); // this step's tokens are there, and all warps are done with the last one's
        if constexpr (APART) {
            copy.values(m.v[0], first);
            copy_commit();
        }
        if (BUFFERS > 1 && first + TILE_KV < s.end) {
            if constexpr (APART)
                copy.keys(m.k[next], first + TILE_KV);
            else
                copy_kv<T, WARPS, Source>(a, m.k[next], m.v[next], s, dim, first + TILE_KV);
            if (!APART)
                copy_commit();
        }
        if (APART)
            copy_commit(); // always: so the values' are the last but one
        if (seen) {
            float scores[TILE_KV / 8][4];

            state.scores(m.q, m.k[buffer], warp, lane, scores);
            if (first + TILE_KV > s.open + (Source::causal ? 16 * warp : 0))
                state.mask(scores, first, limit, Source::causal ? limit + 8 : limit, lane % 4);
            state.softmax(scores, a.scale * LOG2E);
            state.operands(scores, p);
        }
        if constexpr (APART) {
            copy_wait<1>();
#ifdef EK_WGMMA
            publish_shared();
#endif
            __syncthreads();
        }
        if (seen)
            state.values(m.v[own], lane, p);
    }
    if (s.done)
        state.finish(a, s, dim - (Source::DK - Source::DV), row, lane % 4);
    else
        state.save(a, s, row, lane % 4);
}

template <typename T, int WARPS, int BUFFERS, typename Source>
static cudaError_t tiles_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    dim3 grid(a->heads, div_up(a->batch.max_q, 16 * WARPS), a->batch.n_seqs);

    return launch(q, tiles_k<T, WARPS, BUFFERS, Source>, grid, 32 * WARPS,
                  sizeof(TileShared<T, Source::DK, Source::DV, WARPS, BUFFERS, Source::VALUES>),
                  *a);
}

#endif
