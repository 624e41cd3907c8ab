/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations on one row: exponential, norms, activations, rotation, argmax, conversions. A tail is
 * padded and takes the same steps as whole vectors.
 */
INLINE vec load_part(const float *p, size_t n)
{
    float b[VL] = {0};

    memcpy(b, p, n * sizeof(float));
    return v_load(b);
}

INLINE void store_part(float *p, vec v, size_t n)
{
    float b[VL];

    v_store(b, v);
    memcpy(p, b, n * sizeof(float));
}

/* e^x within 2 ulp; 0 below -87.3, largest about 2.4e38 above 88.37 */
INLINE vec v_exp(vec x)
{
    const vec low = v_set1(-87.33f);
    vec c = v_min(v_max(x, low), v_set1(88.37f));
    vec n = v_round(c * v_set1(1.44269504f));
    vec r = v_fma(n, v_set1(2.12194440e-4f), v_fma(n, v_set1(-0.693359375f), c));
    vec p = v_set1(1.9875691500e-4f);

    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p, r * r, r) + v_set1(1.0f);
    return v_keep_ge(p * v_pow2(n), x, low);
}

INLINE vec v_sigmoid(vec x)
{
    return v_set1(1.0f) / (v_set1(1.0f) + v_exp(v_set1(0.0f) - x));
}

static void rms_norm(const float *x, const float *weight, float eps, uint32_t dim, float *out)
{
    vec sum = v_set1(0.0f);
    uint32_t i = 0;

    for (; i + VL <= dim; i += VL)
        sum = v_fma(v_load(x + i), v_load(x + i), sum);
    if (i < dim)
        sum = v_fma(load_part(x + i, dim - i), load_part(x + i, dim - i), sum);
    vec scale = v_set1(1.0f / sqrtf(v_sum(sum) / (float)dim + eps));
    for (i = 0; i + VL <= dim; i += VL)
        v_store(out + i, v_load(x + i) * scale * v_load(weight + i));
    if (i < dim)
        store_part(out + i, load_part(x + i, dim - i) * scale * load_part(weight + i, dim - i),
                   dim - i);
}

static void layer_norm(const float *x, const float *weight, const float *bias, float eps,
                       uint32_t dim, float *out)
{
    vec sum = v_set1(0.0f), square = v_set1(0.0f);
    uint32_t i = 0, whole = dim - dim % VL;

    for (; i < whole; i += VL)
        sum = sum + v_load(x + i);
    if (i < dim)
        sum = sum + load_part(x + i, dim - i);
    float mean = v_sum(sum) / (float)dim, tail = 0.0f;
    for (i = 0; i < whole; i += VL) {
        vec c = v_load(x + i) - v_set1(mean);
        square = v_fma(c, c, square);
    }
    for (; i < dim; i++)
        tail += (x[i] - mean) * (x[i] - mean);
    vec scale = v_set1(1.0f / sqrtf((v_sum(square) + tail) / (float)dim + eps));
    for (i = 0; i < whole; i += VL) {
        vec c = (v_load(x + i) - v_set1(mean)) * scale * v_load(weight + i);
        if (bias)
            c = c + v_load(bias + i);
        v_store(out + i, c);
    }
    for (; i < dim; i++)
        out[i] = (x[i] - mean) * v_first(scale) * weight[i] + (bias ? bias[i] : 0.0f);
}

static void swiglu(const float *gate, const float *up, uint32_t dim, float *out)
{
    uint32_t i = 0;

    for (; i + VL <= dim; i += VL) {
        vec g = v_load(gate + i);
        v_store(out + i, g * v_sigmoid(g) * v_load(up + i));
    }
    if (i < dim) {
        vec g = load_part(gate + i, dim - i);
        store_part(out + i, g * v_sigmoid(g) * load_part(up + i, dim - i), dim - i);
    }
}

INLINE vec gelu(vec x, int flags)
{
    float b[VL];

    if (flags & EK_LINEAR_GELU_TANH) { /* (1 + tanh u) / 2 is the sigmoid of 2u */
        vec cube = v_fma(v_set1(0.044715f) * x * x, x, x);
        return x * v_sigmoid(v_set1(2.0f * 0.79788456f) * cube);
    }
    v_store(b, x);
    for (int i = 0; i < VL; i++)
        b[i] = 0.5f * b[i] * (1.0f + erff(b[i] * 0.70710678f));
    return v_load(b);
}

INLINE vec finish_one(vec y, vec bias, vec old, int flags)
{
    y = y + bias;
    if (flags & (EK_LINEAR_GELU | EK_LINEAR_GELU_TANH))
        y = gelu(y, flags);
    if (flags & EK_LINEAR_ADD)
        y = old + y;
    return y;
}

static void finish(float *out, const float *y, const float *bias, uint32_t n, int flags)
{
    vec zero = v_set1(0.0f);
    uint32_t i = 0;

    for (; i + VL <= n; i += VL)
        v_store(out + i, finish_one(v_load(y + i), bias ? v_load(bias + i) : zero,
                                    flags & EK_LINEAR_ADD ? v_load(out + i) : zero, flags));
    if (i < n)
        store_part(out + i,
                   finish_one(load_part(y + i, n - i), bias ? load_part(bias + i, n - i) : zero,
                              flags & EK_LINEAR_ADD ? load_part(out + i, n - i) : zero, flags),
                   n - i);
}

static void angles(float position, const float *inv_freq, uint32_t n, float amplitude,
                   float *cosine, float *sine)
{
    for (uint32_t i = 0; i < n; i++) {
        float a = position * inv_freq[i]; /* rounded to fp32, as the official code does */
        cosine[i] = cosf(a) * amplitude;
        sine[i] = sinf(a) * amplitude;
    }
}

static void rotate(float *head, const float *cosine, const float *sine, uint32_t dim,
                   bool interleaved)
{
    uint32_t half = dim / 2, i = 0;

    for (; !interleaved && i + VL <= half; i += VL) {
        vec a = v_load(head + i), b = v_load(head + half + i);
        vec c = v_load(cosine + i), s = v_load(sine + i);
        v_store(head + i, a * c - b * s);
        v_store(head + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float *pa = interleaved ? head + 2 * i : head + i;
        float *pb = interleaved ? pa + 1 : head + half + i;
        float a = *pa, b = *pb;
        *pa = a * cosine[i] - b * sine[i];
        *pb = b * cosine[i] + a * sine[i];
    }
}

static uint32_t argmax(const float *x, uint32_t n)
{
    vec best = v_set1(-INFINITY);
    uint32_t i = 0;

    for (; i + VL <= n; i += VL)
        best = v_max(best, v_load(x + i));
    float most = v_hmax(best);
    for (; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (i = 0; i < n; i++)
        if (x[i] == most)
            return i;
    return 0;
}

static void to_f16(const float *x, uint16_t *out, size_t n)
{
    size_t i = 0;

    for (; i + VL <= n; i += VL)
        v_store_f16(out + i, v_load(x + i));
    for (; i < n; i++)
        out[i] = ek_f32_to_f16(x[i]);
}

static void to_bf16(const float *x, uint16_t *out, size_t n)
{
    size_t i = 0;

    for (; i + VL <= n; i += VL)
        v_store_bf16(out + i, v_load(x + i));
    for (; i < n; i++)
        out[i] = ek_f32_to_bf16(x[i]);
}
