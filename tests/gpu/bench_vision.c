/* SPDX-License-Identifier: Apache-2.0
 *
 * Speed of vision towers on the shapes of Qwen2.5-VL (3B and 7B alike) and of DeepSeek-VL2: blocks
 * as the runtime composes them and their operations alone, as shares of the product measured in the
 * same run, over pictures of several sizes. Weights rotate over several blocks.
 * Usage: bench_vision
 */
#include "tests/gpu/bench.h"

#include <math.h>
#include <stdlib.h>

enum { BLOCKS = 6, WINDOW = 64 };
struct shape {
    const char *name;
    uint32_t width, heads, ff, tile; /* tile: rows of VL2's; 0: Qwen's towers */
    double whole;                    /* share of blocks that attend to the whole picture */
};
/* Qwen's feed-forward layer is 3420 wide, and made 3424 when its weights are loaded. */
static const struct shape shapes[] = {{"Qwen2.5-VL", 1280, 16, 3424, 0, 4.0 / 32},
                                      {"DeepSeek-VL2", 1152, 16, 4304, 729, 1}};

struct block {
    struct ek_mat qkv, o, up, down;
};
enum { ALL, NORMS, QKV, ROPE, ATTENTION, OUTPUT, UP, SWIGLU, DOWN, N_PARTS };
static const char *const part_names[] = {"all",    "norms", "qkv",    "rope", "attention",
                                         "output", "up",    "swiglu", "down"};
struct tower {
    const struct shape *s;
    struct block blocks[BLOCKS];
    uint32_t n, n_segments, segment;
    const int32_t *segments, *positions;
    struct ek_rope rope;
    float *norm, *bias;
    void *x, *xn, *qkv, *attn, *up, *inner;
    int only;
};

/* ---- a block ------------------------------------------------------------------------------------
 */
static bool does(const struct tower *t, int part)
{
    return t->only == ALL || t->only == part;
}

static void run_norm(struct tower *t)
{
    uint32_t w = t->s->width;

    if (t->s->tile)
        need(ops->layer_norm(dev, t->x, t->norm, t->bias, 1e-6f, t->n, w, t->xn));
    else
        need(ops->rms_norm(dev, t->x, w, t->norm, 1e-6f, t->n, w, t->xn, w));
}

static void run_attention(struct tower *t, const struct block *b)
{
    uint32_t w = t->s->width, dim = w / t->s->heads;
    size_t ld = 3 * (size_t)w;

    if (does(t, NORMS))
        run_norm(t);
    if (does(t, QKV))
        need(ops->linear(dev, t->xn, w, t->n, &b->qkv, t->bias, t->qkv, ld, 0));
    if (does(t, ROPE) && !t->s->tile)
        need(ops->rope_rows(dev, t->qkv, ld, &t->rope, t->positions, t->n, 2 * t->s->heads, dim));
    if (does(t, ATTENTION))
        need(ops->attention_dense(dev, t->qkv, ld, t->n, t->segments, t->n_segments, t->segment,
                                  t->s->heads, dim, 1 / sqrtf((float)dim), t->attn, w));
    if (does(t, OUTPUT))
        need(ops->linear(dev, t->attn, w, t->n, &b->o, t->bias, t->x, w, EK_LINEAR_ADD));
}

static void run_feed_forward(struct tower *t, const struct block *b)
{
    uint32_t w = t->s->width, ff = t->s->ff;
    bool vl2 = t->s->tile > 0;

    if (does(t, NORMS))
        run_norm(t);
    if (does(t, UP))
        need(ops->linear(dev, t->xn, w, t->n, &b->up, t->bias, t->up, b->up.rows,
                         vl2 ? EK_LINEAR_GELU_TANH : 0));
    if (does(t, SWIGLU) && !vl2)
        need(ops->swiglu(dev, t->up, b->up.rows, t->n, ff, t->inner, ff));
    if (does(t, DOWN))
        need(ops->linear(dev, vl2 ? t->up : t->inner, ff, t->n, &b->down, t->bias, t->x, w,
                         EK_LINEAR_ADD));
}

static void run_blocks(void *arg)
{
    struct tower *t = arg;

    for (int i = 0; i < BLOCKS; i++) {
        run_attention(t, &t->blocks[i]);
        run_feed_forward(t, &t->blocks[i]);
    }
}

/* ---- pictures -----------------------------------------------------------------------------------
 */
static void make_tower(struct tower *t, const struct shape *s)
{
    uint32_t half = s->width / s->heads / 2, up = (s->tile ? 1 : 2) * s->ff;
    float freq[64];

    t->s = s;
    for (int i = 0; i < BLOCKS; i++) {
        t->blocks[i].qkv = matrix(EK_BF16, 3 * s->width, s->width);
        t->blocks[i].o = matrix(EK_BF16, s->width, s->width);
        t->blocks[i].up = matrix(EK_BF16, up, s->width);
        t->blocks[i].down = matrix(EK_BF16, s->width, s->ff);
    }
    for (uint32_t i = 0; i < half; i++)
        freq[i] = powf(10000, -2.0f * (float)(i % (half / 2)) / (float)half);
    t->norm = take_ones(s->width);
    t->bias = take_ones(2 * (size_t)s->ff);
    t->rope = (struct ek_rope){.inv_freq = take_copy(freq, half * sizeof(*freq)),
                               .dim = 2 * half,
                               .sections = {half / 2, half - half / 2},
                               .amplitude = 1};
}

static void free_tower(struct tower *t)
{
    for (int i = 0; i < BLOCKS; i++) {
        ops->mat_free(dev, &t->blocks[i].qkv);
        ops->mat_free(dev, &t->blocks[i].o);
        ops->mat_free(dev, &t->blocks[i].up);
        ops->mat_free(dev, &t->blocks[i].down);
    }
}

/* n rows in segments of so many. */
static void make_segments(struct tower *t, uint32_t n, uint32_t segment)
{
    int32_t *v = calloc(2 * (size_t)n + 1, sizeof(*v));

    if (v == NULL)
        exit(1);
    t->n = n;
    t->segment = segment;
    t->n_segments = n / segment;
    for (uint32_t i = 0; i <= t->n_segments; i++)
        v[i] = (int32_t)(i * segment);
    t->segments = take_ints(v, t->n_segments + 1);
    for (uint32_t i = 0; i < 2 * n; i++)
        v[i] = (int32_t)(i % 100);
    t->positions = take_ints(v, 2 * (size_t)n);
    free(v);
}

static double flops_of(const struct tower *t, int part)
{
    double n = t->n, w = t->s->width, ff = t->s->ff, up = 2 * n * w * ff * (t->s->tile ? 1 : 2);

    switch (part) {
    case QKV:
        return 6 * n * w * w;
    case ATTENTION:
        return 4 * n * t->segment * w;
    case OUTPUT:
        return 2 * n * w * w;
    case UP:
        return up;
    case DOWN:
        return 2 * n * w * ff;
    case ALL:
        return 8 * n * w * w + 4 * n * t->segment * w + up + 2 * n * w * ff;
    default:
        return 0;
    }
}

/* Time of a block, and of its parts where asked. */
static double picture(struct tower *t, bool parts)
{
    double whole = 0;

    for (int part = 0; part < (parts ? N_PARTS : 1); part++) {
        double s, flops = flops_of(t, part);
        if (t->s->tile && (part == ROPE || part == SWIGLU))
            continue;
        t->only = part;
        s = seconds(run_blocks, t, true, 11) / BLOCKS;
        whole = part == ALL ? s : whole;
        printf("  %-10s %9.2f us", part_names[part], s * 1e6);
        if (flops > 0)
            printf("  %5.0f TFLOP/s, %4.1f %% of product", flops / s / 1e12,
                   100 * flops / s / matrix_rate);
        printf("\n");
        fflush(stdout);
    }
    return whole;
}

static void *rows(const struct tower *t, size_t width)
{
    return take(t->n * width * 2);
}

/* A picture of n rows: blocks with windows and with all of it, joined as the tower has them. */
static void one_size(struct tower *t, uint32_t n)
{
    const struct shape *s = t->s;
    double window = 0, whole, flops;

    make_segments(t, n, s->tile ? s->tile : WINDOW);
    void *buffers[] = {t->x = rows(t, s->width),       t->xn = rows(t, s->width),
                       t->qkv = rows(t, 3 * s->width), t->attn = rows(t, s->width),
                       t->up = rows(t, 2 * s->ff),     t->inner = rows(t, s->ff)};
    printf("%s, %u patches, segments of %u\n", s->name, n, t->segment);
    flops = (1 - s->whole) * flops_of(t, ALL);
    if (s->tile == 0) {
        window = picture(t, true);
        make_segments(t, n, n);
        printf("%s, %u patches, one segment\n", s->name, n);
    }
    whole = picture(t, true);
    flops += s->whole * flops_of(t, ALL);
    whole = s->whole * whole + (1 - s->whole) * window;
    printf("%s, %u patches: %.2f us a block, %.0f TFLOP/s, %.1f %% of product\n\n", s->name, n,
           whole * 1e6, flops / whole / 1e12, 100 * flops / whole / matrix_rate);
    for (size_t i = 0; i < EK_ARRAY_LEN(buffers); i++)
        ops->release(dev, buffers[i]);
}

int main(void)
{
    static struct tower t;

    if (!bench_open())
        return 77;
    make_tower(&t, &shapes[0]);
    one_size(&t, 1024);
    one_size(&t, 4096);
    one_size(&t, 16384);
    free_tower(&t);
    make_tower(&t, &shapes[1]);
    one_size(&t, 729 * 2);
    one_size(&t, 729 * 5);
    one_size(&t, 729 * 10);
    free_tower(&t);
    ek_device_close(dev);
    return 0;
}
