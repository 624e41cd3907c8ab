/* SPDX-License-Identifier: Apache-2.0
 *
 * bench_cpu [SPEC [PROMPT [CONTEXT [TYPE]]]]: operations per second of the CPU backend over the
 * shapes of SmolLM2-135M (30 layers, hidden 576, 9 / 3 heads of 64, feed-forward 1536, vocabulary
 * 49152), with random weights: decoding at CONTEXT tokens and a prompt of PROMPT tokens, each
 * operation's share, and the device's ceilings. Not a test: run by hand.
 */
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LAYERS = 30, HIDDEN = 576, HEADS = 9, KV_HEADS = 3, DIM = 64, FFN = 1536, VOCAB = 49152 };
enum { QKV = (HEADS + 2 * KV_HEADS) * DIM, PAGE = 16, MAX_TOKENS = 4096 };
enum { NORM_QKV, ROPE, ATTENTION, OUT, GATE_UP, DOWN, HEAD, ARGMAX, N_STEPS };
static const char *const step_names[N_STEPS] = {
    "norm+qkv", "rope+append", "attention", "out", "norm+gate+up", "down", "head", "argmax"};

struct layer {
    struct ek_mat qkv[3], out, gate_up[2], down;
    struct ek_kv kv;
};

struct bench {
    struct ek_device *dev;
    struct layer layers[LAYERS];
    struct ek_mat head;
    float *weight, *inv_freq, *x, *wide, *mid, *logits;
    int32_t slots[MAX_TOKENS], positions[MAX_TOKENS], table[MAX_TOKENS / PAGE];
    int32_t seq_start[2], kv_len[1];
    struct ek_batch batch;
    double seconds[N_STEPS];
};

static void must(enum ek_status st)
{
    if (st != EK_OK) {
        fprintf(stderr, "bench_cpu: %s\n", ek_last_error());
        exit(ek_exit_code(st));
    }
}

static void *get(struct bench *b, size_t bytes)
{
    void *p;

    must(b->dev->ops->alloc(b->dev, EK_TAG_ACTIVATIONS, bytes, &p));
    must(b->dev->ops->zero(b->dev, p, bytes));
    return p;
}

/* Weights need only cost what real ones do: bytes that decode to small numbers. */
static void mat(struct bench *b, enum ek_dtype type, uint32_t rows, uint32_t cols,
                struct ek_mat *out)
{
    must(b->dev->ops->mat_new(b->dev, type, rows, cols, out));
    memset(out->data, 0x11, out->bytes);
    for (uint64_t i = 0; type >= EK_G4_32 && type < EK_B8_32 && i < out->bytes;
         i += ek_dtype_block_bytes(type))
        ((uint8_t *)out->data)[i + 3] = 0; /* scales are F16 */
    must(b->dev->ops->mat_ready(b->dev, out));
}

static void build(struct bench *b, enum ek_dtype type)
{
    size_t cache = (size_t)MAX_TOKENS * KV_HEADS * DIM * 4;

    for (int l = 0; l < LAYERS; l++) {
        struct layer *y = &b->layers[l];
        mat(b, type, HEADS * DIM, HIDDEN, &y->qkv[0]);
        mat(b, type, KV_HEADS * DIM, HIDDEN, &y->qkv[1]);
        mat(b, type, KV_HEADS * DIM, HIDDEN, &y->qkv[2]);
        mat(b, type, HIDDEN, HIDDEN, &y->out);
        mat(b, type, FFN, HIDDEN, &y->gate_up[0]);
        mat(b, type, FFN, HIDDEN, &y->gate_up[1]);
        mat(b, type, HIDDEN, FFN, &y->down);
        y->kv = (struct ek_kv){.k = get(b, cache),
                               .v = get(b, cache),
                               .dtype = EK_F32,
                               .kv_heads = KV_HEADS,
                               .head_dim = DIM,
                               .v_dim = DIM,
                               .page = PAGE};
    }
    mat(b, type, VOCAB, HIDDEN, &b->head);
    b->weight = get(b, HIDDEN * 4);
    b->inv_freq = get(b, DIM / 2 * 4);
    for (int i = 0; i < DIM / 2; i++)
        b->inv_freq[i] = powf(10000.0f, -2.0f * (float)i / DIM);
    for (int i = 0; i < HIDDEN; i++)
        b->weight[i] = 1.0f;
    b->x = get(b, (size_t)MAX_TOKENS * HIDDEN * 4);
    b->wide = get(b, (size_t)MAX_TOKENS * FFN * 4);
    b->mid = get(b, (size_t)MAX_TOKENS * HIDDEN * 4);
    b->logits = get(b, VOCAB * 4);
}

static void batch(struct bench *b, uint32_t past, uint32_t n)
{
    for (uint32_t i = 0; i < MAX_TOKENS / PAGE; i++)
        b->table[i] = (int32_t)i;
    for (uint32_t i = 0; i < n; i++)
        b->slots[i] = b->positions[i] = (int32_t)(past + i);
    for (uint32_t i = 0; i < n * HIDDEN; i++)
        b->x[i] = (float)(i % 97) * 0.01f - 0.5f;
    b->seq_start[1] = (int32_t)n;
    b->kv_len[0] = (int32_t)(past + n);
    b->batch = (struct ek_batch){.n_tokens = n,
                                 .n_seqs = 1,
                                 .max_q = n,
                                 .max_kv = past + n,
                                 .max_blocks = MAX_TOKENS / PAGE,
                                 .positions = b->positions,
                                 .slots = b->slots,
                                 .seq_start = b->seq_start,
                                 .kv_len = b->kv_len,
                                 .block_table = b->table};
}

/* Processor time of the whole process: on a busy machine it says more than the clock. */
static double processor_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void step(struct bench *b, int which, enum ek_status st, double *from)
{
    double now = processor_seconds();

    must(st);
    b->seconds[which] += now - *from;
    *from = now;
}

static void forward(struct bench *b, uint32_t n)
{
    const struct ek_ops *o = b->dev->ops;
    const struct ek_rope rope = {.inv_freq = b->inv_freq, .dim = DIM, .amplitude = 1.0f};
    double t = processor_seconds();
    int32_t id;

    for (int i = 0; i < LAYERS; i++) {
        struct layer *l = &b->layers[i];
        step(b, NORM_QKV,
             o->norm_linear(b->dev, b->x, b->weight, 1e-5f, n, l->qkv, 3, NULL, b->wide, QKV), &t);
        step(b, ROPE, o->rope_append(b->dev, b->wide, QKV, &rope, &b->batch, HEADS, &l->kv), &t);
        step(b, ATTENTION,
             o->attention(b->dev, b->wide, QKV, &b->batch, &l->kv, HEADS, 0.125f, b->mid, HIDDEN),
             &t);
        step(b, OUT,
             o->linear(b->dev, b->mid, HIDDEN, n, &l->out, NULL, b->x, HIDDEN, EK_LINEAR_ADD), &t);
        step(b, GATE_UP,
             o->norm_gate_up(b->dev, b->x, b->weight, 1e-5f, n, l->gate_up, b->wide, FFN), &t);
        step(b, DOWN,
             o->linear(b->dev, b->wide, FFN, n, &l->down, NULL, b->x, HIDDEN, EK_LINEAR_ADD), &t);
    }
    step(b, HEAD,
         o->norm_linear(b->dev, b->x + (n - 1) * HIDDEN, b->weight, 1e-5f, 1, &b->head, 1, NULL,
                        b->logits, VOCAB),
         &t);
    step(b, ARGMAX, o->argmax(b->dev, b->logits, 1, VOCAB, &id), &t);
}

/* The fastest of several runs, and each operation's least processor time. */
static void report(struct bench *b, const char *what, uint32_t past, uint32_t n, int runs)
{
    double best = 1e30, least = 1e30, shares[N_STEPS];

    for (int r = 0; r < runs; r++) {
        batch(b, past, n);
        memset(b->seconds, 0, sizeof(b->seconds));
        double processor = processor_seconds();
        uint64_t from = ek_now_ns();
        forward(b, n);
        least = fmin(least, processor_seconds() - processor);
        double s = (double)(ek_now_ns() - from) * 1e-9;
        best = fmin(best, s);
        for (int i = 0; i < N_STEPS; i++)
            shares[i] = r ? fmin(shares[i], b->seconds[i]) : b->seconds[i];
    }
    printf("%s: %.3f ms, %.1f tokens/s; processor time %.3f ms\n", what, best * 1e3, n / best,
           least * 1e3);
    for (int i = 0; i < N_STEPS; i++)
        printf("  %-13s %8.3f ms %5.1f %%\n", step_names[i], shares[i] * 1e3,
               100 * shares[i] / least);
}

static void ceilings(struct bench *b)
{
    enum { N = 256, SIDE = 1024 };
    size_t bytes = (size_t)256 << 20;
    char *p = get(b, bytes);
    double read = 1e30, product = 1e30;
    struct ek_mat m;

    mat(b, EK_F32, SIDE, SIDE, &m);
    for (int i = 0; i < 5; i++) {
        uint64_t t = ek_now_ns();
        must(b->dev->ops->read_bytes(b->dev, p, bytes));
        read = fmin(read, (double)(ek_now_ns() - t) * 1e-9);
        t = ek_now_ns();
        must(b->dev->ops->linear(b->dev, b->wide, SIDE, N, &m, NULL, b->mid, SIDE, 0));
        product = fmin(product, (double)(ek_now_ns() - t) * 1e-9);
    }
    printf("read %.1f GB/s, product %.1f GFLOP/s (%s, %u threads)\n", (double)bytes / read * 1e-9,
           2.0 * N * SIDE * SIDE / product * 1e-9, b->dev->info.simd, b->dev->info.n_units);
}

int main(int argc, char **argv)
{
    struct bench *b = ek_calloc(1, sizeof(*b));
    uint64_t prompt = 512, context = 128;
    enum ek_dtype type = EK_Q4_1;
    struct ek_device_spec *specs;
    char what[64];
    size_t n;

    must(ek_device_specs_parse(argc > 1 ? argv[1] : "cpu:0", &specs, &n));
    if (argc > 2)
        must(ek_parse_u64(argv[2], "PROMPT", 1, MAX_TOKENS / 2, &prompt));
    if (argc > 3)
        must(ek_parse_u64(argv[3], "CONTEXT", 1, MAX_TOKENS, &context));
    if (argc > 4 && !ek_dtype_from_name(argv[4], &type))
        must(ek_error(EK_EUSAGE, "TYPE %s is not known", argv[4]));
    must(ek_device_open(&specs[0], EK_F32, &b->dev));
    build(b, type);
    ceilings(b);
    snprintf(what, sizeof(what), "prefill of %u", (unsigned)prompt);
    report(b, what, 0, (uint32_t)prompt, 3);
    snprintf(what, sizeof(what), "decode at context %u", (unsigned)context);
    report(b, what, (uint32_t)context - 1, 1, 60);
    ek_device_close(b->dev);
    free(specs);
    free(b);
    return 0;
}
