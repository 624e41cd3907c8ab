/* SPDX-License-Identifier: Apache-2.0
 *
 * Pillow's bicubic resizing of 8-bit pictures, bit for bit: weights in double, then in fixed point;
 * rows first, a u8 picture between the passes, then columns; a pass that changes nothing is left
 * out.
 */
#include "model/image_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A fused multiply-add would round the weights otherwise than Pillow's build does. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif

#define PRECISION_BITS 22 /* of a fixed-point weight: 32 - 8 of the pixel - 2 of the overshoot */
#define SUPPORT        2.0

/* Where every output pixel of one axis comes from. */
struct filter {
    uint32_t n_out, taps; /* taps: room for the weights of one output */
    uint32_t *first, *count;
    int32_t *weights; /* [n_out][taps] */
};

static double bicubic(double x)
{
    const double a = -0.5;

    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static void filter_free(struct filter *f)
{
    free(f->first);
    free(f->count);
    free(f->weights);
    *f = (struct filter){0};
}

static enum ek_status filter_new(uint32_t n_in, uint32_t n_out, struct filter *f)
{
    double scale = (double)n_in / n_out, stretch = scale < 1 ? 1 : scale;
    size_t n;

    *f = (struct filter){.n_out = n_out, .taps = (uint32_t)ceil(SUPPORT * stretch) * 2 + 1};
    if (!ek_mul_size(n_out, f->taps, &n))
        return ek_error(EK_ENOMEM, "resizing %u to %u pixels overflows", n_in, n_out);
    f->first = ek_calloc(n_out, sizeof(*f->first));
    f->count = ek_calloc(n_out, sizeof(*f->count));
    f->weights = ek_calloc(n, sizeof(*f->weights));
    if (f->first && f->count && f->weights)
        return EK_OK;
    filter_free(f);
    return EK_ENOMEM;
}

/* w holds f->taps doubles of scratch. */
static void filter_fill(struct filter *f, uint32_t n_in, double *w)
{
    double scale = (double)n_in / f->n_out, stretch = scale < 1 ? 1 : scale;
    double support = SUPPORT * stretch, inverse = 1.0 / stretch;

    for (uint32_t x = 0; x < f->n_out; x++) {
        double centre = (x + 0.5) * scale, sum = 0;
        double lo = centre - support + 0.5, hi = centre + support + 0.5;
        uint32_t first = lo > 0 ? (uint32_t)lo : 0, end = hi > n_in ? n_in : (uint32_t)hi;
        int32_t *out = f->weights + (size_t)x * f->taps;
        f->first[x] = first;
        f->count[x] = end - first;
        for (uint32_t k = 0; k < end - first; k++) {
            w[k] = bicubic((k + first - centre + 0.5) * inverse);
            sum += w[k];
        }
        for (uint32_t k = 0; k < end - first; k++) {
            double v = sum != 0.0 ? w[k] / sum : w[k];
            out[k] = (int32_t)((v < 0 ? -0.5 : 0.5) + v * (1 << PRECISION_BITS));
        }
    }
}

static enum ek_status filter_make(uint32_t n_in, uint32_t n_out, struct filter *f)
{
    double *scratch;

    EK_TRY(filter_new(n_in, n_out, f));
    if ((scratch = ek_calloc(f->taps, sizeof(*scratch))) == NULL) {
        filter_free(f);
        return EK_ENOMEM;
    }
    filter_fill(f, n_in, scratch);
    free(scratch);
    return EK_OK;
}

static uint8_t clip(int32_t sum)
{
    sum >>= PRECISION_BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

/* Every row to f->n_out pixels. */
static void resize_rows(const struct ek_image *in, const struct filter *f, struct ek_image *out)
{
    for (uint32_t y = 0; y < in->height; y++) {
        const uint8_t *row = in->rgb + (size_t)y * in->width * 3;
        uint8_t *to = out->rgb + (size_t)y * out->width * 3;
        for (uint32_t x = 0; x < f->n_out; x++, to += 3) {
            const int32_t *w = f->weights + (size_t)x * f->taps;
            const uint8_t *p = row + (size_t)f->first[x] * 3;
            int32_t r = 1 << (PRECISION_BITS - 1), g = r, b = r;
            for (uint32_t k = 0; k < f->count[x]; k++, p += 3) {
                r += p[0] * w[k];
                g += p[1] * w[k];
                b += p[2] * w[k];
            }
            to[0] = clip(r);
            to[1] = clip(g);
            to[2] = clip(b);
        }
    }
}

/* Every column to f->n_out pixels; sums holds a row. */
static void resize_columns(const struct ek_image *in, const struct filter *f, int32_t *sums,
                           struct ek_image *out)
{
    size_t row = (size_t)in->width * 3;

    for (uint32_t y = 0; y < f->n_out; y++) {
        const int32_t *w = f->weights + (size_t)y * f->taps;
        uint8_t *to = out->rgb + y * row;
        for (size_t i = 0; i < row; i++)
            sums[i] = 1 << (PRECISION_BITS - 1);
        for (uint32_t k = 0; k < f->count[y]; k++) {
            const uint8_t *p = in->rgb + (f->first[y] + k) * row;
            for (size_t i = 0; i < row; i++)
                sums[i] += p[i] * w[k];
        }
        for (size_t i = 0; i < row; i++)
            to[i] = clip(sums[i]);
    }
}

static enum ek_status pass_rows(const struct ek_image *in, uint32_t width, struct ek_image *out)
{
    struct filter f;
    enum ek_status st;

    EK_TRY(filter_make(in->width, width, &f));
    st = ek_image_new(width, in->height, out);
    if (st == EK_OK)
        resize_rows(in, &f, out);
    filter_free(&f);
    return st;
}

static enum ek_status pass_columns(const struct ek_image *in, uint32_t height, struct ek_image *out)
{
    int32_t *sums = ek_calloc((size_t)in->width * 3, sizeof(*sums));
    struct filter f = {0};
    enum ek_status st = sums ? EK_OK : EK_ENOMEM;

    if (st == EK_OK)
        st = filter_make(in->height, height, &f);
    if (st == EK_OK)
        st = ek_image_new(in->width, height, out);
    if (st == EK_OK)
        resize_columns(in, &f, sums, out);
    filter_free(&f);
    free(sums);
    return st;
}

static enum ek_status copy(const struct ek_image *in, struct ek_image *out)
{
    EK_TRY(ek_image_new(in->width, in->height, out));
    memcpy(out->rgb, in->rgb, (size_t)in->width * in->height * 3);
    return EK_OK;
}

enum ek_status ek_image_resize(const struct ek_image *in, uint32_t width, uint32_t height,
                               struct ek_image *out)
{
    struct ek_image wide = {0};
    enum ek_status st;

    EK_TRY(ek_image_check_size("resizing", width, height));
    if (width == in->width && height == in->height)
        return copy(in, out);
    if (width == in->width)
        return pass_columns(in, height, out);
    if (height == in->height)
        return pass_rows(in, width, out);
    EK_TRY(pass_rows(in, width, &wide));
    st = pass_columns(&wide, height, out);
    ek_image_free(&wide);
    return st;
}

/* Python's round() of a positive number: halves to even. */
static uint32_t round_even(double v)
{
    return (uint32_t)nearbyint(v);
}

enum ek_status ek_image_pad(const struct ek_image *in, uint32_t width, uint32_t height,
                            const uint8_t fill[3], struct ek_image *out)
{
    double ratio = (double)in->width / in->height, want = (double)width / height;
    uint32_t w = width, h = height, x, y;
    struct ek_image fitted;
    enum ek_status st;

    if (ratio > want)
        h = round_even((double)in->height / in->width * width);
    else if (ratio < want)
        w = round_even((double)in->width / in->height * height);
    if (w == 0 || h == 0)
        return ek_error(EK_EUNSUPPORTED, "a picture of %u x %u pixels vanishes within %u x %u",
                        in->width, in->height, width, height);
    EK_TRY(ek_image_resize(in, w, h, &fitted));
    st = ek_image_new(width, height, out);
    if (st == EK_OK) {
        for (size_t i = 0; i < (size_t)width * height; i++)
            memcpy(out->rgb + i * 3, fill, 3);
        x = round_even((width - w) * 0.5);
        y = round_even((height - h) * 0.5);
        for (uint32_t i = 0; i < h; i++)
            memcpy(out->rgb + ((size_t)(y + i) * width + x) * 3, fitted.rgb + (size_t)i * w * 3,
                   (size_t)w * 3);
    }
    ek_image_free(&fitted);
    return st;
}
