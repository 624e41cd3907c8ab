// SPDX-License-Identifier: Apache-2.0
// Decode attention by parts on Hopper, of several sequences: contexts come to shared memory in
// boxes of 16 tokens, so that all that a block has room for is asked for at once, by few
// instructions and without registers. (Loads take a multiprocessor 4 us to ask for 128 KiB.) Such
// blocks do not fit beside those of wide products; they begin as these leave. Scores are
// [token][head], and sums [dimension][head], of 8 heads that share a cached head.
#include "kernels/cuda/parts_join.cuh"
#include "kernels/cuda/split.cuh"
#include "kernels/cuda/tma.cuh"

#define BOX_WARPS 8
#define BOX_STEPS 2 // of a warp, under way

// A step's keys, then its values: chunks of 64 dimensions of 16 rows, swizzled.
template <int D> constexpr uint32_t BOX_BYTES = PART_STEP *D * 2;

template <int D> struct BoxShared {
    PartShared<D, BOX_WARPS, 2, BOX_STEPS * 2 * BOX_BYTES<D>> part;
    uint64_t full[BOX_WARPS][BOX_STEPS];
};
struct box_maps {
    CUtensorMap k, v;
};

#ifdef EK_WGMMA
// A piece of 16 bytes of a row.
__device__ __forceinline__ uint32_t piece_at(uint32_t box, uint32_t row, uint32_t piece)
{
    return box + piece / 8 * (PART_STEP * 128) + row * 128 + (piece % 8 ^ row % 8) * 16;
}
__device__ __forceinline__ void store_piece(uint32_t at, const uint4 &v)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

// Row g + 8 c of a tile of sums is dimension g + 8 c of its 16.
template <typename T, int D> struct BoxWarp : PartState<D> {
    using PartState<D>::o;
    uint32_t q[D / 16][2]; // of head g: elements 16 i + 2 t, + 1; + 8, + 9
    uint4 newest;          // a piece of the newest token's keys, or values

    __device__ __forceinline__ void load_q(const ek_cu_attention &a, uint32_t token, uint32_t head,
                                           uint32_t heads, uint32_t lane)
    {
        uint32_t g = lane / 4, t = lane % 4;
        const T *base = (const T *)a.q + token * a.ldq + (head + g) * D + 2 * t;

#pragma unroll
        for (int i = 0; i < D / 8; i++)
            q[i / 2][i % 2] = g < heads ? *reinterpret_cast<const uint32_t *>(base + 8 * i) : 0;
        this->begin();
    }
    __device__ __forceinline__ void load_newest(const ek_cu_attention &a, size_t row, uint32_t lane)
    {
        const T *base = (const T *)(lane < 16 ? a.kv.k : a.kv.v);

        newest = load_once(base + row * D + lane % 16 % (D / 8) * 8);
    }
    // In the last step: the newest token's row, where it is stale, and zeros for values behind it.
    __device__ __forceinline__ void mend(uint32_t k, uint32_t row, bool stale, uint32_t lane) const
    {
        const uint32_t v = k + BOX_BYTES<D>, pieces = D / 8;

        if (stale && lane % 16 < pieces)
            store_piece(piece_at(lane < 16 ? k : v, row, lane % 16), newest);
        for (uint32_t i = (row + 1) * pieces + lane; i < PART_STEP * pieces; i += 32)
            store_piece(piece_at(v, i / pieces, i % pieces), make_uint4(0, 0, 0, 0));
        __syncwarp();
    }
    // Scores in units of log2 of tokens first .. first + 15, those from len on masked.
    __device__ __forceinline__ void scores(const ek_cu_attention &a, uint32_t k, float (&s)[4],
                                           uint32_t first, uint32_t len, uint32_t lane) const
    {
        float odd[4] = {};

        s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t r[4];

            load_tiles(r, piece_at(k, lane % 16, 2 * i + lane / 16));
            mma<T>(i % 2 ? odd : s, r, q[i][0], q[i][1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[i] = first + lane / 4 + i / 2 * 8 < len ? (s[i] + odd[i]) * (a.scale * LOG2E)
                                                      : -INFINITY;
    }
    __device__ __forceinline__ void add_values(uint32_t v, const float (&s)[4], uint32_t lane)
    {
        uint32_t p0 = turn_tile(pack2<T>(s[0], s[1])), p1 = turn_tile(pack2<T>(s[2], s[3]));

#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t r[4];

            load_tiles_turned(r, piece_at(v, lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2));
            mma<T>(o[i], r, p0, p1);
        }
    }
    template <typename S>
    __device__ __forceinline__ void publish(S &s, uint32_t warp, uint32_t lane) const
    {
        publish_weights(s, *this, warp, lane);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int m = 0; m < D / 16; m++)
                *s.sums(warp, 2 * (lane % 4) + i % 2, 16 * m + lane / 4 + i / 2 * 8) = o[m][i];
    }
};

// A warp's places in shared memory.
template <int D> struct BoxRing {
    uint32_t at, full;

    __device__ __forceinline__ uint32_t box(uint32_t i) const
    {
        return at + i * 2 * BOX_BYTES<D>;
    }
    __device__ __forceinline__ void open() const
    {
        for (uint32_t i = 0; i < BOX_STEPS; i++)
            barrier_init(full + 8 * i, 1);
        barriers_ready();
    }
    __device__ __forceinline__ void ask(const box_maps &maps, uint32_t i, uint32_t place,
                                        uint32_t kv_head) const
    {
        barrier_expect(full + 8 * i, 2 * BOX_BYTES<D>);
        copy_box(box(i), &maps.k, place, kv_head * (D / 64), full + 8 * i, true);
        copy_box(box(i) + BOX_BYTES<D>, &maps.v, place, kv_head * (D / 64), full + 8 * i, true);
    }
};
#endif

// The batch's description was uploaded, and the cache of earlier tokens written, before the kernels
// of this step: both are read before the end of the kernel ahead is awaited, and the new token's
// row after it.
template <typename T, int D, bool CLUSTER>
__global__ void __launch_bounds__(32 * BOX_WARPS)
    boxed_k(const __grid_constant__ box_maps maps, const __grid_constant__ ek_cu_attention a)
{
#ifdef EK_WGMMA
    extern __shared__ __align__(1024) uint8_t raw[];
    BoxShared<D> &shared = *reinterpret_cast<BoxShared<D> *>(raw);
    const PartSpan<BOX_WARPS> p(a);
    const BoxRing<D> ring = {shared_at(shared.part.place[p.warp]), shared_at(shared.full[p.warp])};
    uint32_t places[BOX_STEPS];
    BoxWarp<T, D> state;

#pragma unroll
    for (uint32_t i = 0; i < BOX_STEPS; i++)
        places[i] = place_of(a, p.seq, p.first + i * p.stride);
    if (CLUSTER)
        cooperative_groups::this_cluster().barrier_arrive();
    pdl_next();
    uint32_t token = (uint32_t)a.batch.seq_start[p.seq];
    bool none = (int32_t)token == a.batch.seq_start[p.seq + 1]; // a sequence without a new token
    uint32_t len = none ? 0 : (uint32_t)max(a.batch.kv_len[p.seq], 0), parts = p.parts(len);
    if (p.lane == 0) {
        ring.open();
#pragma unroll
        for (uint32_t i = 0; i < BOX_STEPS; i++)
            if (p.first + i * p.stride < len)
                ring.ask(maps, i, places[i], p.kv_head);
    }
    __syncwarp();
    pdl_wait();
    if (none || (!CLUSTER && blockIdx.x >= max(parts, 1u)))
        return;
    if (len)
        state.load_newest(a, (size_t)place_of(a, p.seq, len - 1) * a.kv.kv_heads + p.kv_head,
                          p.lane);
    state.load_q(a, token, p.head, p.heads, p.lane);
    for (uint32_t at = p.first, round = 0; at < len; at += BOX_STEPS * p.stride, round++) {
        float s[BOX_STEPS][4];

#pragma unroll
        for (uint32_t i = 0; i < BOX_STEPS; i++) {
            uint32_t now = at + i * p.stride;

            s[i][0] = s[i][1] = s[i][2] = s[i][3] = -INFINITY;
            if (now >= len)
                continue;
            places[i] = place_of(a, p.seq, now + BOX_STEPS * p.stride);
            barrier_wait(ring.full + 8 * i, round % 2);
            if (now + PART_STEP >= len)
                state.mend(ring.box(i), len - 1 - now, round == 0, p.lane);
            state.scores(a, ring.box(i), s[i], now, len, p.lane);
        }
        state.softmax(s);
#pragma unroll
        for (uint32_t i = 0; i < BOX_STEPS; i++) {
            uint32_t now = at + i * p.stride;

            if (now < len)
                state.add_values(ring.box(i) + BOX_BYTES<D>, s[i], p.lane);
            __syncwarp();
            if (p.lane == 0 && now + BOX_STEPS * p.stride < len)
                ring.ask(maps, i, places[i], p.kv_head);
        }
    }
    state.publish(shared.part, p.warp, p.lane);
    join<T, CLUSTER>(a, shared.part, p, parts, (T *)a.out + token * a.ldo + p.head * D);
#endif
}

template <typename T, int D, bool CLUSTER>
static cudaError_t form_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a,
                               const struct box_maps *maps)
{
    cudaError_t e = split_memory(boxed_k<T, D, CLUSTER>, SPLIT_COPIES);

    return e == cudaSuccess
               ? launch_cluster(q, boxed_k<T, D, CLUSTER>, part_grid(a), 32 * BOX_WARPS,
                                sizeof(BoxShared<D>), CLUSTER ? a->n_parts : 1, *maps, *a)
               : e;
}

// The cache's rows, past any that there is.
#define BOX_ROWS (1u << 31)

template <typename T, int D>
static cudaError_t boxed_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t cols = a->kv.kv_heads * D;
    struct box_maps maps;
    cudaError_t e = matrix_map(&maps.k, a->kv.k, BOX_ROWS, cols, cols * 2, PART_STEP, D / 64);

    if (e == cudaSuccess)
        e = matrix_map(&maps.v, a->kv.v, BOX_ROWS, cols, cols * 2, PART_STEP, D / 64);
    if (e != cudaSuccess)
        return e;
    return a->team > 1 ? form_launch<T, D, true>(q, a, &maps)
                       : form_launch<T, D, false>(q, a, &maps);
}

// Contexts that are all under way at once in registers are so the sooner.
extern "C" bool ek_cu_boxed_takes(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    return q->wgmma && q->shared >= sizeof(BoxShared<128>) && a->batch.n_seqs > 1 && a->team <= 2 &&
           a->batch.max_kv > a->n_parts * BOX_STEPS * BOX_WARPS * PART_STEP &&
           (uintptr_t)a->kv.k % 16 == 0 && (uintptr_t)a->kv.v % 16 == 0;
}

extern "C" cudaError_t ek_cu_attention_boxed(const struct ek_cu_queue *q, enum ek_dtype act,
                                             const struct ek_cu_attention *a)
{
    bool narrow = a->kv.head_dim == 64;

    if (act == EK_BF16)
        return narrow ? boxed_launch<bf16, 64>(q, a) : boxed_launch<bf16, 128>(q, a);
    if (act == EK_F16)
        return narrow ? boxed_launch<f16, 64>(q, a) : boxed_launch<f16, 128>(q, a);
    return cudaErrorNotSupported;
}
