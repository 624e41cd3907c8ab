// SPDX-License-Identifier: Apache-2.0
// What products with a few tokens make of their sums: which rows of the weights belong together,
// and what becomes of them.
#ifndef EK_CUDA_UNITS_CUH
#define EK_CUDA_UNITS_CUH

#include "kernels/cuda/weights.cuh"

// ---- units: which rows belong together
// A pair of a head that rotates together, by number: first the rotated pairs, then the rest.
__device__ __forceinline__ uint2 pair_of(const struct ek_rope &rope, uint32_t i)
{
    uint32_t half = rope.dim / 2;

    if (i >= half || rope.interleaved)
        return make_uint2(2 * i, 2 * i + 1);
    return make_uint2(i, i + half);
}

template <int MODE> struct Unit;
template <> struct Unit<EK_CU_LINEAR> {
    static const int rows = 1;
    static __device__ __forceinline__ void find(const ek_cu_product &p, uint32_t u, uint32_t *m,
                                                uint32_t row[1])
    {
        *m = 0;
        while (*m + 1 < p.n_mats && u >= p.mat[*m].rows)
            u -= p.mat[(*m)++].rows;
        row[0] = u;
    }
    static __device__ __forceinline__ const uint8_t *data(const ek_cu_product &p, uint32_t m, int)
    {
        return p.mat[m].data;
    }
};
template <> struct Unit<EK_CU_GATE_UP> {
    static const int rows = 2;
    static __device__ __forceinline__ void find(const ek_cu_product &, uint32_t u, uint32_t *m,
                                                uint32_t row[2])
    {
        *m = 0;
        row[0] = row[1] = u;
    }
    static __device__ __forceinline__ const uint8_t *data(const ek_cu_product &p, uint32_t, int r)
    {
        return p.mat[r].data;
    }
};
template <> struct Unit<EK_CU_QKV> {
    static const int rows = 2;
    static __device__ __forceinline__ void find(const ek_cu_product &p, uint32_t u, uint32_t *m,
                                                uint32_t row[2])
    {
        uint32_t pairs = p.kv.head_dim / 2;

        *m = 0;
        while (*m + 1 < p.n_mats && u >= p.mat[*m].rows / 2)
            u -= p.mat[(*m)++].rows / 2;
        uint2 pair = pair_of(p.rope, u % pairs);
        row[0] = u / pairs * p.kv.head_dim + pair.x;
        row[1] = u / pairs * p.kv.head_dim + pair.y;
    }
    static __device__ __forceinline__ const uint8_t *data(const ek_cu_product &p, uint32_t m, int)
    {
        return p.mat[m].data;
    }
};

// ---- what becomes of a unit's sums. prepare() reads what it needs besides them while the weights
// are on their way; run() is one lane's.
template <typename T, int MODE> struct Finish;
template <typename T> struct Finish<T, EK_CU_LINEAR> {
    float add;

    __device__ __forceinline__ void prepare(const ek_cu_product &p, uint32_t i, uint32_t u,
                                            uint32_t m, const uint32_t row[1])
    {
        add = p.mat[m].bias ? p.mat[m].bias[row[0]] : 0.0f;
        if (p.flags & EK_LINEAR_ADD)
            add += p.flags & EK_LINEAR_OUT_F32 ? ((const float *)p.out)[i * p.ldo + u]
                                               : to_f(((const T *)p.out)[i * p.ldo + u]);
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, uint32_t i, uint32_t u, uint32_t,
                                        const uint32_t *, const float sum[1]) const
    {
        store_linear<T>(p, i * p.ldo + u, activate(p.flags, sum[0] + add));
    }
};
template <typename T> struct Finish<T, EK_CU_GATE_UP> {
    __device__ __forceinline__ void prepare(const ek_cu_product &, uint32_t, uint32_t, uint32_t,
                                            const uint32_t *)
    {
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, uint32_t i, uint32_t u, uint32_t,
                                        const uint32_t *, const float sum[2]) const
    {
        ((T *)p.out)[i * p.ldo + u] = from_f<T>(silu(round_to<T>(sum[0])) * round_to<T>(sum[1]));
    }
};
template <typename T> struct Finish<T, EK_CU_QKV> {
    float bias[2], sine, cosine;
    int32_t slot;

    __device__ __forceinline__ void prepare(const ek_cu_product &p, uint32_t i, uint32_t,
                                            uint32_t m, const uint32_t row[2])
    {
        uint32_t at = row[0] % p.kv.head_dim, half = p.rope.dim / 2, s = 0;

        bias[0] = p.mat[m].bias ? p.mat[m].bias[row[0]] : 0.0f;
        bias[1] = p.mat[m].bias ? p.mat[m].bias[row[1]] : 0.0f;
        slot = p.slots[i];
        sine = 0, cosine = 1;
        if (m < 2 && at < p.rope.dim) {
            uint32_t f = p.rope.interleaved ? at / 2 : at % half, first = f;

            while (s < 2 && p.rope.sections[0] && first >= p.rope.sections[s])
                first -= p.rope.sections[s++];
            sincosf((float)p.positions[s * p.position_row + i] * p.rope.inv_freq[f], &sine,
                    &cosine);
            sine *= p.rope.amplitude, cosine *= p.rope.amplitude;
        }
    }
    __device__ __forceinline__ void turn(float first, float second, float *x, float *y) const
    {
        float a = round_to<T>(first + bias[0]), b = round_to<T>(second + bias[1]);

        *x = a * cosine - b * sine;
        *y = b * cosine + a * sine;
    }
    // Where rows of matrix m go, or NULL: nowhere.
    __device__ __forceinline__ T *place(const ek_cu_product &p, uint32_t i, uint32_t m) const
    {
        if (m == 0)
            return (T *)p.out + i * p.ldo;
        if (slot < 0)
            return NULL;
        return (T *)(m == 1 ? p.kv.k : p.kv.v) + (size_t)slot * p.kv.kv_heads * p.kv.head_dim;
    }
    __device__ __forceinline__ void run(const ek_cu_product &p, uint32_t i, uint32_t, uint32_t m,
                                        const uint32_t row[2], const float sum[2]) const
    {
        T *to = place(p, i, m);
        float x, y;

        turn(sum[0], sum[1], &x, &y);
        if (to == NULL)
            return;
        to[row[0]] = from_f<T>(x);
        to[row[1]] = from_f<T>(y);
    }
};

#endif
