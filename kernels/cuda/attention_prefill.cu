// SPDX-License-Identifier: Apache-2.0
// Prefill attention on tensor cores: causal, ragged, over the paged cache. On Hopper a warp copies
// boxes of queries, keys and values, and two warpgroups multiply, 64 rows of queries each: while
// the scores of one step become probabilities, the values of the step before are multiplied, and
// the two warpgroups ask for products in turns. Blocks stay for several tiles of rows, the long
// ones first. Elsewhere, for few rows, and where pages are no boxes: attention_tiles.cuh.
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tma.cuh"

#define PRE_ROWS    128 // of a tile: two warpgroups'
#define PRE_KV      128 // tokens a step
#define PRE_STAGES  2
#define PRE_THREADS 384 // two warpgroups that multiply, one that copies

struct pre_maps {
    CUtensorMap q, k, v;
};
template <typename T, int D> struct PreShared {
    T q[PRE_ROWS * D], k[PRE_STAGES][PRE_KV * D], v[PRE_STAGES][PRE_KV * D];
    uint64_t q_full, q_empty, k_full[PRE_STAGES], k_empty[PRE_STAGES], v_full[PRE_STAGES],
        v_empty[PRE_STAGES];
};

#ifdef EK_WGMMA
// A tile of rows of one sequence and head.
struct PreTile {
    uint32_t seq, head, token, n, past, end; // as in TileSpan

    // Number i of all, of the longest contexts first; false: it has no rows.
    __device__ __forceinline__ bool find(const ek_cu_attention &a, uint32_t tiles, uint32_t i)
    {
        uint32_t tile = tiles - 1 - i / (a.heads * a.batch.n_seqs);

        head = i % a.heads;
        seq = i / a.heads % a.batch.n_seqs;
        uint32_t first = (uint32_t)a.batch.seq_start[seq];
        uint32_t n_new = (uint32_t)a.batch.seq_start[seq + 1] - first;
        uint32_t len = (uint32_t)max(a.batch.kv_len[seq], 0);
        if (PRE_ROWS * tile >= n_new)
            return false;
        token = first + PRE_ROWS * tile;
        n = min(n_new - PRE_ROWS * tile, (uint32_t)PRE_ROWS);
        past = len - n_new + PRE_ROWS * tile;
        end = past + n;
        return true;
    }
};
// Which tile a block takes in its round: back and forth, so that all get as much.
__device__ __forceinline__ uint32_t pre_item(uint32_t round)
{
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

// The queries of a tile, by the warp that copies keys.
template <typename T, int D>
__device__ __forceinline__ void copy_queries(const pre_maps &maps, PreShared<T, D> &m,
                                             const PreTile &t, uint32_t before)
{
    if (before > 0)
        barrier_wait(shared_at(&m.q_empty), (before - 1) % 2);
    if (threadIdx.x % 32 == 0) {
        barrier_expect(shared_at(&m.q_full), PRE_ROWS * D * 2);
        copy_box(shared_at(m.q), &maps.q, t.token, t.head * (D / EK_CHUNK), shared_at(&m.q_full),
                 false);
    }
}

// Keys or values of all tiles, by one warp: rows of a page and one chunk a lane.
template <typename T, int D>
__device__ __forceinline__ void copy_steps(const pre_maps &maps, const ek_cu_attention &a,
                                           PreShared<T, D> &m, uint32_t tiles, uint32_t rows,
                                           bool values)
{
    const uint32_t chunks = D / EK_CHUNK;
    uint32_t lane = threadIdx.x % 32, at = lane / chunks * rows, chunk = lane % chunks;
    uint32_t all = tiles * a.heads * a.batch.n_seqs, used = 0, taken = 0;
    bool copies = at < PRE_KV;

    for (uint32_t round = 0; round * gridDim.x < all; round++) {
        PreTile t;

        if (pre_item(round) >= all || !t.find(a, tiles, pre_item(round)))
            continue;
        if (!values)
            copy_queries(maps, m, t, used++);
        uint32_t kv_head = t.head / (a.heads / a.kv.kv_heads), last = (t.end - 1) / rows * rows;
        uint32_t slot = copies ? (uint32_t)slot_of(a, t.seq, min(at, last)) : 0;
        for (uint32_t first = 0; first < t.end; first += PRE_KV, taken++) {
            uint32_t s = taken % PRE_STAGES, now = slot;
            uint32_t full = shared_at(values ? &m.v_full[s] : &m.k_full[s]);

            if (copies) // of the next step, while this one waits for room
                slot = (uint32_t)slot_of(a, t.seq, min(first + PRE_KV + at, last));
            if (taken >= PRE_STAGES)
                barrier_wait(shared_at(values ? &m.v_empty[s] : &m.k_empty[s]),
                             taken / PRE_STAGES % 2 ^ 1);
            if (lane == 0)
                barrier_expect(full, PRE_KV * D * 2);
            __syncwarp();
            if (copies)
                copy_box4(shared_at(values ? m.v[s] : m.k[s]) + (chunk * PRE_KV + at) * 128,
                          values ? &maps.v : &maps.k, now, chunk, kv_head, full);
        }
    }
}

// One warpgroup's 64 rows.
template <typename T, int D> struct PreWarp {
    float o[D / 8][4], s[PRE_KV / 8][4], peak[2], weight[2], shrink[2];
    uint32_t p[PRE_KV / 16][4];

    __device__ __forceinline__ void start()
    {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
        peak[0] = peak[1] = -INFINITY;
        weight[0] = weight[1] = 0;
    }
    __device__ __forceinline__ void scores(uint32_t q, uint32_t k)
    {
        wgmma_begin();
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            wgmma_shared(s, operand_at(q + d / 4 * PRE_ROWS * 128 + d % 4 * 32, 0),
                         operand_at(k + d / 4 * PRE_KV * 128 + d % 4 * 32, 0), d > 0, T());
        wgmma_commit();
    }
    __device__ __forceinline__ void values(uint32_t v)
    {
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < PRE_KV / 16; j++)
            wgmma_registers(o, p[j], operand_at(v + j * 2048, PRE_KV * 128), T());
        wgmma_commit();
    }
    // limit: first token that row g does not see.
    __device__ __forceinline__ void mask(uint32_t first, int32_t limit)
    {
        int32_t t = (int32_t)(first + 2 * (threadIdx.x % 4));

#pragma unroll
        for (int i = 0; i < PRE_KV / 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (t + 8 * i + c % 2 >= limit + c / 2 * 8)
                    s[i][c] = -INFINITY;
    }
    __device__ __forceinline__ void softmax(float scale)
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
            float shift = m == -INFINITY ? 0.0f : m;
            shrink[r] = power2(peak[r] - shift);
#pragma unroll
            for (int i = 0; i < PRE_KV / 8; i++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float e = power2(fmaf(s[i][2 * r + c], scale, -shift));
                    s[i][2 * r + c] = e;
                    sum += e;
                }
            weight[r] = weight[r] * shrink[r] + sum;
            peak[r] = m;
        }
    }
    __device__ __forceinline__ void rescale()
    {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            o[i][0] *= shrink[0], o[i][1] *= shrink[0], o[i][2] *= shrink[1], o[i][3] *= shrink[1];
    }
    __device__ __forceinline__ void pack()
    {
#pragma unroll
        for (int j = 0; j < PRE_KV / 16; j++) {
            p[j][0] = pack2<T>(s[2 * j][0], s[2 * j][1]);
            p[j][1] = pack2<T>(s[2 * j][2], s[2 * j][3]);
            p[j][2] = pack2<T>(s[2 * j + 1][0], s[2 * j + 1][1]);
            p[j][3] = pack2<T>(s[2 * j + 1][2], s[2 * j + 1][3]);
        }
    }
    __device__ __forceinline__ void finish(const ek_cu_attention &a, const PreTile &t, uint32_t row)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float l = weight[r];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            float f = l > 0 ? 1.0f / l : 0.0f;
            if (row + 8 * r >= t.n)
                continue;
            T *out =
                (T *)a.out + (t.token + row + 8 * r) * a.ldo + t.head * D + 2 * (threadIdx.x % 4);
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *reinterpret_cast<uint32_t *>(out + 8 * i) =
                    pack2<T>(o[i][2 * r] * f, o[i][2 * r + 1] * f);
        }
    }
};

// What was never written to the cache may be no number: values behind the end become zeros. Both
// warpgroups write the same.
template <typename T, int D>
__device__ __forceinline__ void clear_values(T *v, uint32_t valid, uint32_t group)
{
    for (uint32_t i = threadIdx.x % 128; i < (PRE_KV - valid) * (D / 8); i += 128) {
        uint32_t row = valid + i / (D / 8), piece = i % (D / 8);

        *reinterpret_cast<uint4 *>(v + (piece / 8 * PRE_KV + row) * 64 + piece % 8 * 8) =
            make_uint4(0, 0, 0, 0);
    }
    publish_shared();
    if (group == 0)
        asm volatile("bar.sync 1, 128;" ::: "memory");
    else
        asm volatile("bar.sync 2, 128;" ::: "memory");
}

// The warpgroups ask for products in turns: one multiplies while the other weighs.
__device__ __forceinline__ void my_turn(uint32_t group)
{
    if (group == 0)
        asm volatile("bar.sync 3, 256;" ::: "memory");
    else
        asm volatile("bar.sync 4, 256;" ::: "memory");
}
__device__ __forceinline__ void other_turn(uint32_t group)
{
    if (group == 0)
        asm volatile("bar.arrive 4, 256;" ::: "memory");
    else
        asm volatile("bar.arrive 3, 256;" ::: "memory");
}

template <typename T, int D>
__device__ __forceinline__ void pre_tile(const ek_cu_attention &a, PreShared<T, D> &m,
                                         const PreTile &t, uint32_t &taken)
{
    uint32_t group = threadIdx.x / 128, row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    uint32_t steps = (t.end + PRE_KV - 1) / PRE_KV, q = shared_at(m.q) + group * 64 * 128;
    int32_t limit = (int32_t)(t.past + row + 1);
    bool leader = threadIdx.x % 32 == 0;
    PreWarp<T, D> w;

    auto stage = [&](uint32_t i) { return (taken + i) % PRE_STAGES; };
    auto parity = [&](uint32_t i) { return (taken + i) / PRE_STAGES % 2; };
    auto add_values = [&](uint32_t i) {
        barrier_wait(shared_at(&m.v_full[stage(i)]), parity(i));
        if (PRE_KV * (i + 1) > t.end)
            clear_values<T, D>(m.v[stage(i)], t.end - PRE_KV * i, group);
        w.values(shared_at(m.v[stage(i)]));
    };
    auto weigh = [&](uint32_t i) {
        if (PRE_KV * (i + 1) > t.past + 64 * group)
            w.mask(PRE_KV * i, limit);
        w.softmax(a.scale * LOG2E);
    };

    w.start();
    barrier_wait(shared_at(&m.k_full[stage(0)]), parity(0));
    w.scores(q, shared_at(m.k[stage(0)]));
    wgmma_wait(w.s);
    if (leader)
        barrier_arrive(shared_at(&m.k_empty[stage(0)]));
    weigh(0);
    w.pack();
    for (uint32_t i = 1; i < steps; i++) {
        barrier_wait(shared_at(&m.k_full[stage(i)]), parity(i));
        my_turn(group);
        w.scores(q, shared_at(m.k[stage(i)]));
        add_values(i - 1);
        other_turn(group);
        wgmma_wait_but<1>(w.s);
        if (leader)
            barrier_arrive(shared_at(&m.k_empty[stage(i)]));
        weigh(i);
        wgmma_wait(w.o);
        if (leader)
            barrier_arrive(shared_at(&m.v_empty[stage(i - 1)]));
        w.rescale();
        w.pack();
    }
    if (leader)
        barrier_arrive(shared_at(&m.q_empty));
    add_values(steps - 1);
    wgmma_wait(w.o);
    if (leader)
        barrier_arrive(shared_at(&m.v_empty[stage(steps - 1)]));
    taken += steps;
    w.finish(a, t, row);
}

template <typename T, int D> __device__ __forceinline__ void pre_barriers(PreShared<T, D> &m)
{
    barrier_init(shared_at(&m.q_full), 1);
    barrier_init(shared_at(&m.q_empty), 8);
    for (int i = 0; i < PRE_STAGES; i++) {
        barrier_init(shared_at(&m.k_full[i]), 1);
        barrier_init(shared_at(&m.v_full[i]), 1);
        barrier_init(shared_at(&m.k_empty[i]), 8);
        barrier_init(shared_at(&m.v_empty[i]), 8);
    }
    barriers_ready();
}
#endif

// rows: of a box of keys.
template <typename T, int D>
__global__ void __launch_bounds__(PRE_THREADS, 1)
    prefill_k(const __grid_constant__ pre_maps maps, const __grid_constant__ ek_cu_attention a,
              uint32_t tiles, uint32_t rows)
{
#ifdef EK_WGMMA
    extern __shared__ __align__(1024) uint4 raw[];
    PreShared<T, D> &m = *reinterpret_cast<PreShared<T, D> *>(raw);

    if (threadIdx.x == 0)
        pre_barriers(m);
    __syncthreads();
    pdl_next();
    pdl_wait();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 320)
            copy_steps(maps, a, m, tiles, rows, threadIdx.x >= 288);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    uint32_t all = tiles * a.heads * a.batch.n_seqs, used = 0, taken = 0;
    if (threadIdx.x >= 128)
        other_turn(1); // the first is group 0's
    for (uint32_t round = 0; round * gridDim.x < all; round++) {
        uint32_t item = pre_item(round);
        PreTile t;

        if (item >= all || !t.find(a, tiles, item))
            continue;
        barrier_wait(shared_at(&m.q_full), used++ % 2);
        pre_tile(a, m, t, taken);
    }
#endif
}

// Keys or values: [slot][head][D], in boxes of rows x D of one head.
static cudaError_t cache_map(CUtensorMap *map, const void *data, const struct ek_kv *kv,
                             uint32_t rows)
{
    const size_t dims[4] = {EK_CHUNK, INT32_MAX, kv->head_dim / EK_CHUNK, kv->kv_heads};
    const size_t strides[3] = {(size_t)kv->kv_heads * kv->head_dim * 2, EK_CHUNK * 2,
                               (size_t)kv->head_dim * 2};
    const uint32_t box[4] = {EK_CHUNK, rows, 1, 1};

    return tensor_map(map, data, 4, dims, strides, box);
}

template <typename T, int D>
static cudaError_t prefill_hopper(const struct ek_cu_queue *q, const struct ek_cu_attention *a,
                                  uint32_t rows)
{
    uint32_t tiles = div_up(a->batch.max_q, PRE_ROWS), all = tiles * a->heads * a->batch.n_seqs;
    struct pre_maps maps;
    cudaError_t e = matrix_map(&maps.q, a->q, a->batch.n_tokens, a->heads * D, a->ldq * 2, PRE_ROWS,
                               D / EK_CHUNK);

    if (e == cudaSuccess)
        e = cache_map(&maps.k, a->kv.k, &a->kv, rows);
    if (e == cudaSuccess)
        e = cache_map(&maps.v, a->kv.v, &a->kv, rows);
    if (e != cudaSuccess)
        return e;
    return launch(q, prefill_k<T, D>, all < q->n_sm ? all : q->n_sm, PRE_THREADS,
                  sizeof(PreShared<T, D>), maps, *a, tiles, rows);
}

template <typename T, int D>
static cudaError_t prefill(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t page = a->kv.page, rows = page < PRE_KV ? page : PRE_KV;
    /* boxes take rows behind a context along, which in an unpacked cache are anything */
    bool boxes = a->kv.k_scale == NULL && page % 8 == 0 && PRE_KV % rows == 0 && page % rows == 0 &&
                 PRE_KV / rows * (D / EK_CHUNK) <= 32 && a->ldq % 8 == 0 &&
                 (uintptr_t)a->q % 16 == 0;

    return boxes && hopper_built() && a->batch.max_q > 64
               ? prefill_hopper<T, D>(q, a, rows)
               : tiles_launch<T, 8, 2, PagedSource<D>>(q, a);
}

extern "C" cudaError_t ek_cu_attention_prefill(const struct ek_cu_queue *q, enum ek_dtype act,
                                               const struct ek_cu_attention *a)
{
    bool narrow = a->kv.head_dim == 64;

    if (act == EK_BF16)
        return narrow ? prefill<bf16, 64>(q, a) : prefill<bf16, 128>(q, a);
    if (act == EK_F16)
        return narrow ? prefill<f16, 64>(q, a) : prefill<f16, 128>(q, a);
    return cudaErrorNotSupported;
}
