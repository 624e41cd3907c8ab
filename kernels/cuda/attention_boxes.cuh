// SPDX-License-Identifier: Apache-2.0
// Attention of many rows on Hopper. One warp copies boxes of queries and keys into shared memory,
// another those of values; two or three warpgroups (Source::GROUPS) multiply, 64 rows of queries
// each: while the scores of one step become probabilities, the values of the step before are
// multiplied, and the warpgroups ask for products in turns. Blocks stay for several tiles of rows.
// A source is one of attention_tiles.cuh that says besides how many warpgroups and tokens a step it
// takes (GROUPS, KV) and where its boxes lie: queries() for a tile, and Boxes for the steps of its
// context; all lanes of the warp that copies call them.
#ifndef EK_CUDA_ATTENTION_BOXES_CUH
#define EK_CUDA_ATTENTION_BOXES_CUH

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tma.cuh"

#define BOX_STAGES 2

struct box_maps {
    CUtensorMap q, k, v;
};
template <typename Source> constexpr uint32_t BOX_ROWS = 64 * Source::GROUPS; // of a tile
template <typename Source>
constexpr uint32_t BOX_THREADS = 128 * (Source::GROUPS + 1); // one warpgroup copies
template <typename T, typename Source> struct BoxShared {
    T q[BOX_ROWS<Source> * tile_columns<Source::DK>()];
    T k[BOX_STAGES][Source::KV * tile_columns<Source::DK>()];
    T v[BOX_STAGES][Source::KV * tile_columns<Source::DV>()];
    uint64_t q_full, q_empty, k_full[BOX_STAGES], k_empty[BOX_STAGES], v_full[BOX_STAGES],
        v_empty[BOX_STAGES];
};

#ifdef EK_WGMMA
// Tiles of all heads and sequences.
template <typename Source> __device__ __forceinline__ uint32_t box_items(const ek_cu_attention &a)
{
    return (a.batch.max_q + BOX_ROWS<Source> - 1) / BOX_ROWS<Source> * a.heads * a.batch.n_seqs;
}
// The one that the block takes in its round: back and forth, so that all get as much, and the
// longest contexts first. False: it has no rows.
template <typename Source>
__device__ __forceinline__ bool find_item(const ek_cu_attention &a, uint32_t round, TileSpan &s)
{
    uint32_t all = box_items<Source>(a), each = a.heads * a.batch.n_seqs;
    uint32_t i = round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);

    if (i >= all)
        return false;
    s = {.seq = i / a.heads % a.batch.n_seqs, .head = i % a.heads};
    return Source::span(a, BOX_ROWS<Source>, (all - 1 - i) / each, s);
}

// Queries and keys, or values, of all tiles, by one warp.
template <typename T, typename Source>
__device__ __forceinline__ void copy_steps(const box_maps &maps, const ek_cu_attention &a,
                                           BoxShared<T, Source> &m, bool values)
{
    constexpr uint32_t K = sizeof(m.k[0]), V = sizeof(m.v[0]);
    uint32_t used = 0, taken = 0;

    for (uint32_t round = 0; round * gridDim.x < box_items<Source>(a); round++) {
        TileSpan s;

        if (!find_item<Source>(a, round, s))
            continue;
        if (!values) {
            if (used++ > 0)
                barrier_wait(shared_at(&m.q_empty), used % 2);
            if (threadIdx.x % 32 == 0)
                barrier_expect(shared_at(&m.q_full), sizeof(m.q));
            __syncwarp();
            Source::queries(maps, s, shared_at(m.q), shared_at(&m.q_full));
        }
        typename Source::Boxes boxes(a, s);
        for (uint32_t first = s.begin; first < s.end; first += Source::KV, taken++) {
            uint32_t stage = taken % BOX_STAGES;
            uint32_t full = shared_at(values ? &m.v_full[stage] : &m.k_full[stage]);

            if (taken >= BOX_STAGES)
                barrier_wait(shared_at(values ? &m.v_empty[stage] : &m.k_empty[stage]),
                             taken / BOX_STAGES % 2 ^ 1);
            if (threadIdx.x % 32 == 0)
                barrier_expect(full, values ? V : K);
            __syncwarp();
            boxes.copy(maps, a, s, first, values, shared_at(values ? m.v[stage] : m.k[stage]),
                       full);
        }
    }
}

// One warpgroup's 64 rows.
template <typename T, typename Source> struct BoxRows : AttentionRows<T, Source::DV> {
    using AttentionRows<T, Source::DV>::o;
    using AttentionRows<T, Source::DV>::peak;
    using AttentionRows<T, Source::DV>::weight;
    float s[Source::KV / 8][4], shrink[2];
    uint32_t p[Source::KV / 16][4];

    __device__ __forceinline__ void scores(uint32_t q, uint32_t k)
    {
        wgmma_begin();
#pragma unroll
        for (int d = 0; d < Source::DK / 16; d++)
            wgmma_shared(s, operand_at(q + d / 4 * BOX_ROWS<Source> * 128 + d % 4 * 32, 0),
                         operand_at(k + d / 4 * Source::KV * 128 + d % 4 * 32, 0), d > 0, T());
        wgmma_commit();
    }
    __device__ __forceinline__ void values(uint32_t v)
    {
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < Source::KV / 16; j++)
            wgmma_registers(o, p[j], operand_at(v + j * 2048, Source::KV * 128), T());
        wgmma_commit();
    }
    // limit: first token that row g does not see.
    __device__ __forceinline__ void mask(uint32_t first, int32_t limit)
    {
        int32_t t = (int32_t)(first + 2 * (threadIdx.x % 4));

#pragma unroll
        for (int i = 0; i < Source::KV / 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (t + 8 * i + c % 2 >= limit + (Source::causal ? c / 2 * 8 : 0))
                    s[i][c] = -INFINITY;
    }
    __device__ __forceinline__ void softmax(float scale)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float m = -INFINITY, sum = 0;
#pragma unroll
            for (int i = 0; i < Source::KV / 8; i++)
                m = fmaxf(m, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            m = fmaxf(peak[r], m * scale);
            float shift = m == -INFINITY ? 0.0f : m;
            shrink[r] = power2(peak[r] - shift);
#pragma unroll
            for (int i = 0; i < Source::KV / 8; i++)
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
        for (int i = 0; i < Source::DV / 8; i++)
            o[i][0] *= shrink[0], o[i][1] *= shrink[0], o[i][2] *= shrink[1], o[i][3] *= shrink[1];
    }
    __device__ __forceinline__ void pack()
    {
#pragma unroll
        for (int j = 0; j < Source::KV / 16; j++) {
            p[j][0] = pack2<T>(s[2 * j][0], s[2 * j][1]);
            p[j][1] = pack2<T>(s[2 * j][2], s[2 * j][3]);
            p[j][2] = pack2<T>(s[2 * j + 1][0], s[2 * j + 1][1]);
            p[j][3] = pack2<T>(s[2 * j + 1][2], s[2 * j + 1][3]);
        }
    }
};

// Named barriers: 1 to 3 of a warpgroup alone, 4 to 6 for its turn.
__device__ __forceinline__ void group_meets(uint32_t group)
{
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
}
// The warpgroups ask for products in turns: one multiplies while another weighs.
__device__ __forceinline__ void my_turn(uint32_t group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(4 + group) : "memory");
}
template <int GROUPS> __device__ __forceinline__ void next_turn(uint32_t group)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(4 + (group + 1) % GROUPS) : "memory");
}

// What was never written to the cache may be no number: values behind the end become zeros. All
// warpgroups write the same.
template <typename T, int D, int KV>
__device__ __forceinline__ void clear_values(T *v, uint32_t valid, uint32_t group)
{
    for (uint32_t i = threadIdx.x % 128; i < (KV - valid) * (D / 8); i += 128) {
        uint32_t row = valid + i / (D / 8), piece = i % (D / 8);

        *reinterpret_cast<uint4 *>(v + place<KV>(row, piece)) = make_uint4(0, 0, 0, 0);
    }
    publish_shared();
    group_meets(group);
}

template <typename T, typename Source>
__device__ __forceinline__ void box_tile(const ek_cu_attention &a, BoxShared<T, Source> &m,
                                         const TileSpan &t, uint32_t &taken)
{
    uint32_t group = threadIdx.x / 128, row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    uint32_t steps = (t.end - t.begin + Source::KV - 1) / Source::KV;
    uint32_t q = shared_at(m.q) + group * 64 * 128;
    int32_t limit = (int32_t)(Source::causal ? t.past + row + 1 : t.end); // first that it masks
    bool leader = threadIdx.x % 32 == 0;
    BoxRows<T, Source> w;

    auto stage = [&](uint32_t i) { return (taken + i) % BOX_STAGES; };
    auto parity = [&](uint32_t i) { return (taken + i) / BOX_STAGES % 2; };
    auto add_values = [&](uint32_t i) {
        uint32_t first = t.begin + Source::KV * i;
        barrier_wait(shared_at(&m.v_full[stage(i)]), parity(i));
        if (first + Source::KV > t.end)
            clear_values<T, Source::DV, Source::KV>(m.v[stage(i)], t.end - first, group);
        w.values(shared_at(m.v[stage(i)]));
    };
    auto weigh = [&](uint32_t i) {
        uint32_t first = t.begin + Source::KV * i;
        if (first + Source::KV > t.open + (Source::causal ? 64 * group : 0))
            w.mask(first, limit);
        w.softmax(a.scale * LOG2E);
    };

    w.start();
    if (t.begin > 0)
        w.resume(a, t, row, threadIdx.x % 4);
    barrier_wait(shared_at(&m.k_full[stage(0)]), parity(0));
    w.scores(q, shared_at(m.k[stage(0)]));
    wgmma_wait(w.s);
    if (leader)
        barrier_arrive(shared_at(&m.k_empty[stage(0)]));
    weigh(0);
    w.rescale();
    w.pack();
    for (uint32_t i = 1; i < steps; i++) {
        barrier_wait(shared_at(&m.k_full[stage(i)]), parity(i));
        my_turn(group);
        w.scores(q, shared_at(m.k[stage(i)]));
        add_values(i - 1);
        next_turn<Source::GROUPS>(group);
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
    if (t.done)
        w.finish(a, t, Source::dim(a) - (Source::DK - Source::DV), row, threadIdx.x % 4);
    else
        w.save(a, t, row, threadIdx.x % 4);
}

template <typename T, typename Source>
__device__ __forceinline__ void box_barriers(BoxShared<T, Source> &m)
{
    constexpr uint32_t WARPS = 4 * Source::GROUPS;

    barrier_init(shared_at(&m.q_full), 1);
    barrier_init(shared_at(&m.q_empty), WARPS);
    for (int i = 0; i < BOX_STAGES; i++) {
        barrier_init(shared_at(&m.k_full[i]), 1);
        barrier_init(shared_at(&m.v_full[i]), 1);
        barrier_init(shared_at(&m.k_empty[i]), WARPS);
        barrier_init(shared_at(&m.v_empty[i]), WARPS);
    }
    barriers_ready();
}

// Registers of a thread that copies and of one that multiplies.
template <int GROUPS> __device__ __forceinline__ void few_registers()
{
    if (GROUPS == 2)
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    else
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
}
template <int GROUPS> __device__ __forceinline__ void many_registers()
{
    if (GROUPS == 2)
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    else
        asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
}
#endif

template <typename T, typename Source>
__global__ void __launch_bounds__(BOX_THREADS<Source>, 1)
    boxes_k(const __grid_constant__ box_maps maps, const __grid_constant__ ek_cu_attention a)
{
#ifdef EK_WGMMA
    constexpr uint32_t GROUPS = Source::GROUPS;
    extern __shared__ __align__(1024) uint4 raw[];
    BoxShared<T, Source> &m = *reinterpret_cast<BoxShared<T, Source> *>(raw);
    uint32_t group = threadIdx.x / 128, used = 0, taken = 0;

    if (threadIdx.x == 0)
        box_barriers(m);
    __syncthreads();
    pdl_next();
    pdl_wait();
    if (group == GROUPS) {
        few_registers<GROUPS>();
        if (threadIdx.x % 128 < 64)
            copy_steps(maps, a, m, threadIdx.x % 128 >= 32);
        return;
    }
    many_registers<GROUPS>();
    if (group == GROUPS - 1)
        next_turn<GROUPS>(group); // the first is group 0's
    for (uint32_t round = 0; round * gridDim.x < box_items<Source>(a); round++) {
        TileSpan s;

        if (!find_item<Source>(a, round, s))
            continue;
        barrier_wait(shared_at(&m.q_full), used++ % 2);
        Source::prepare(a, m.q, s);
        box_tile(a, m, s, taken);
    }
#endif
}

template <typename T, typename Source>
static cudaError_t boxes_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a,
                                const struct box_maps *maps)
{
    uint32_t all = div_up(a->batch.max_q, BOX_ROWS<Source>) * a->heads * a->batch.n_seqs;

    return launch(q, boxes_k<T, Source>, all < q->n_sm ? all : q->n_sm, BOX_THREADS<Source>,
                  sizeof(BoxShared<T, Source>), *maps, *a);
}

#endif
