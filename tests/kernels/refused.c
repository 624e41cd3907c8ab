/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/kernels/refused.h"

#include <check.h>
#include <stddef.h>
#include <string.h>

static float memory[4]; /* for addresses alone: far smaller than what the calls are about */
#define AT ((void *)memory)

static struct ek_mat mat(uint32_t rows, uint32_t cols)
{
    return (struct ek_mat){.data = AT,
                           .dtype = EK_F32,
                           .rows = rows,
                           .cols = cols,
                           .bytes = (uint64_t)rows * cols * sizeof(float)};
}

/* ---- rows and products: which of them is wrong */
static enum ek_status rms_norm(struct ek_device *dev, int wrong)
{
    return dev->ops->rms_norm(dev, AT, wrong == 0 ? 48 : 64, memory, 1e-6f, 3, 64, AT,
                              wrong == 1 ? 32 : 64);
}

static enum ek_status layer_norm(struct ek_device *dev, int wrong)
{
    (void)wrong;
    return dev->ops->layer_norm(dev, AT, memory, memory, 1e-6f, 3, 0, AT);
}

static enum ek_status swiglu(struct ek_device *dev, int wrong)
{
    return dev->ops->swiglu(dev, AT, wrong == 0 ? 100 : 128, 3, 64, AT, wrong == 1 ? 63 : 64);
}

static enum ek_status gather(struct ek_device *dev, int wrong)
{
    (void)wrong;
    return dev->ops->gather(dev, AT, 63, AT, 3, 64, AT);
}

static enum ek_status permute(struct ek_device *dev, int wrong)
{
    (void)wrong;
    return dev->ops->permute(dev, AT, 63, AT, 3, 64, AT);
}

static enum ek_status scatter_rows(struct ek_device *dev, int wrong)
{
    (void)wrong;
    return dev->ops->scatter_rows(dev, memory, AT, 3, 64, AT, 63);
}

static enum ek_status argmax(struct ek_device *dev, int wrong)
{
    (void)wrong;
    return dev->ops->argmax(dev, memory, 3, 0, AT);
}

static enum ek_status sample(struct ek_device *dev, int wrong)
{
    (void)wrong;
    return dev->ops->sample(dev, memory, 3, 0, AT, AT);
}

static enum ek_status embed(struct ek_device *dev, int wrong)
{
    struct ek_mat table = mat(0, 64);

    (void)wrong;
    return dev->ops->embed(dev, &table, AT, 3, AT);
}

static enum ek_status mat_new(struct ek_device *dev, int wrong)
{
    struct ek_mat m;

    return dev->ops->mat_new(dev, EK_F32, wrong == 0 ? 0 : 3, wrong == 1 ? 0 : 4, &m);
}

static enum ek_status linear(struct ek_device *dev, int wrong)
{
    struct ek_mat m = mat(wrong == 0 ? 0 : 48, 64);

    return dev->ops->linear(dev, AT, wrong == 1 ? 63 : 64, 3, &m, NULL, AT, wrong == 2 ? 47 : 48,
                            0);
}

static enum ek_status norm_linear(struct ek_device *dev, int wrong)
{
    struct ek_mat m[2] = {mat(48, 64), mat(16, wrong == 0 ? 65 : 64)};

    return dev->ops->norm_linear(dev, AT, memory, 1e-6f, 3, m, 2, NULL, AT, wrong == 1 ? 60 : 64);
}

static enum ek_status norm_gate_up(struct ek_device *dev, int wrong)
{
    struct ek_mat m[2] = {mat(48, 64), mat(wrong == 0 ? 40 : 48, wrong == 1 ? 56 : 64)};

    return dev->ops->norm_gate_up(dev, AT, memory, 1e-6f, 3, m, AT, wrong == 2 ? 47 : 48);
}

static enum ek_status layer_tail(struct ek_device *dev, int wrong)
{
    struct ek_mat o = mat(64, 32), m[2] = {mat(48, wrong == 0 ? 60 : 64), mat(48, 64)};
    struct ek_mat down = mat(wrong == 2 ? 56 : 64, wrong == 3 ? 40 : 48);
    bool taken;

    m[1].rows = wrong == 1 ? 44 : 48;
    return dev->ops->layer_tail(dev, AT, wrong == 4 ? 31 : 32, 20, &o, memory, 1e-6f, m, &down, AT,
                                NULL, &taken);
}

/* ---- attention */
static struct ek_kv cache(void)
{
    return (struct ek_kv){
        .k = AT, .v = AT, .dtype = EK_F32, .kv_heads = 2, .head_dim = 16, .v_dim = 16, .page = 16};
}

static struct ek_batch batch(void)
{
    return (struct ek_batch){.n_tokens = 3,
                             .n_seqs = 3,
                             .max_q = 1,
                             .max_kv = 40,
                             .max_blocks = 3,
                             .tokens = AT,
                             .positions = AT,
                             .slots = AT,
                             .seq_start = AT,
                             .kv_len = AT,
                             .block_table = AT};
}

static struct ek_rope rotation(uint32_t dim)
{
    return (struct ek_rope){.inv_freq = memory, .dim = dim, .amplitude = 1};
}

static enum ek_status attention(struct ek_device *dev, int wrong)
{
    struct ek_kv kv = cache();
    struct ek_batch b = batch();

    kv.dtype = wrong == 0 ? EK_F8_E5M2 : EK_F32;
    kv.kv_heads = wrong == 1 ? 0 : wrong == 2 ? 3 : 2;
    kv.page = wrong == 3 ? 0 : 16;
    kv.v = wrong == 4 ? NULL : AT;
    b.n_seqs = wrong == 5 ? 0 : 3;
    b.max_kv = wrong == 6 ? 49 : 40;
    return dev->ops->attention(dev, AT, wrong == 7 ? 60 : 64, &b, &kv, 4, 1, AT,
                               wrong == 8 ? 61 : 64);
}

static enum ek_status attention_dense(struct ek_device *dev, int wrong)
{
    return dev->ops->attention_dense(dev, AT, wrong == 0 ? 95 : 96, 3, AT, wrong == 1 ? 4 : 1,
                                     wrong == 2 ? 5 : 3, 2, 16, 1, AT, wrong == 3 ? 31 : 32);
}

static enum ek_status rope_append(struct ek_device *dev, int wrong)
{
    struct ek_rope rope = rotation(wrong == 0 ? 18 : wrong == 1 ? 7 : 16);
    struct ek_kv kv = cache();
    struct ek_batch b = batch();

    kv.v = wrong == 2 ? NULL : AT;
    kv.kv_heads = wrong == 2 ? 1 : 2;
    return dev->ops->rope_append(dev, AT, wrong == 3 ? 127 : 128, &rope, &b, 4, &kv);
}

static enum ek_status rope_rows(struct ek_device *dev, int wrong)
{
    struct ek_rope rope = rotation(wrong == 0 ? 18 : 16);

    return dev->ops->rope_rows(dev, AT, wrong == 1 ? 63 : 64, &rope, AT, 3, 4, 16);
}

static enum ek_status norm_qkv_rope(struct ek_device *dev, int wrong)
{
    struct ek_mat m[3] = {mat(wrong == 0 ? 60 : 64, 48), mat(wrong == 1 ? 16 : 32, 48),
                          mat(32, wrong == 2 ? 40 : 48)};
    const float *biases[3] = {NULL};
    struct ek_rope rope = rotation(16);
    struct ek_kv kv = cache();
    struct ek_batch b = batch();

    kv.head_dim = wrong == 3 ? 0 : 16;
    return dev->ops->norm_qkv_rope(dev, AT, memory, 1e-6f, &b, m, biases, &rope, &kv, NULL, AT,
                                   wrong == 4 ? 120 : 128);
}

/* ---- latent attention: 2 heads of 8 + 4 and 6, latents of 12 */
static struct ek_kv latent_cache(int wrong)
{
    struct ek_kv kv = cache();

    kv.v = NULL;
    kv.kv_heads = wrong == 0 ? 2 : 1;
    kv.v_dim = 12;
    kv.head_dim = wrong == 1 ? 17 : 16;
    return kv;
}

static struct ek_latent latent(int wrong)
{
    return (struct ek_latent){2, 12, 8, 4, wrong == 2 ? 7 : 6};
}

static enum ek_status latent_append(struct ek_device *dev, int wrong)
{
    struct ek_rope rope = rotation(4);
    struct ek_kv kv = latent_cache(wrong);
    struct ek_batch b = batch();

    return dev->ops->latent_append(dev, AT, wrong == 2 ? 15 : 16, memory, 1e-6f, &rope, &b, &kv);
}

static enum ek_status latent_query(struct ek_device *dev, int wrong)
{
    struct ek_rope rope = rotation(wrong == 1 ? 6 : 4);
    struct ek_mat kv_b = mat(28, wrong == 0 ? 13 : 12);
    struct ek_latent l = latent(wrong);
    struct ek_batch b = batch();

    return dev->ops->latent_query(dev, AT, wrong == 3 ? 23 : 24, &rope, &b, &l, &kv_b, AT,
                                  wrong == 4 ? 31 : 32);
}

static enum ek_status latent_value(struct ek_device *dev, int wrong)
{
    struct ek_mat kv_b = mat(28, 12);
    struct ek_latent l = latent(wrong);

    l.heads = wrong == 0 ? 0x80000002u : 2; /* rows that would overflow to the right number */
    return dev->ops->latent_value(dev, AT, wrong == 1 ? 23 : 24, 3, &l, &kv_b, AT,
                                  wrong == 3 ? 11 : 12);
}

static void mix_of(struct ek_latent_mix *m, struct ek_rope *rope, struct ek_kv *kv,
                   struct ek_batch *b, struct ek_mat *kv_b, int wrong)
{
    *rope = rotation(4);
    *kv = latent_cache(wrong);
    *b = batch();
    *kv_b = mat(28, 12);
    *m = (struct ek_latent_mix){.ckv = AT,
                                .ld = 16,
                                .norm = memory,
                                .rope = rope,
                                .batch = b,
                                .kv = kv,
                                .q = AT,
                                .ldq = wrong == 3 ? 23 : 24,
                                .shape = latent(wrong),
                                .kv_b = kv_b,
                                .query = AT,
                                .mixed = AT,
                                .out = AT,
                                .ldo = wrong == 4 ? 11 : 12};
    b->n_seqs = wrong == 5 ? 0 : 3;
}

static enum ek_status latent_mix(struct ek_device *dev, int wrong)
{
    struct ek_latent_mix m;
    struct ek_batch b;
    struct ek_rope rope;
    struct ek_mat kv_b;
    struct ek_kv kv;

    mix_of(&m, &rope, &kv, &b, &kv_b, wrong);
    return dev->ops->latent_mix(dev, &m);
}

static enum ek_status latent_prefill(struct ek_device *dev, int wrong)
{
    struct ek_latent_mix m;
    struct ek_batch b;
    struct ek_rope rope;
    struct ek_mat kv_b;
    struct ek_kv kv;
    bool taken;

    mix_of(&m, &rope, &kv, &b, &kv_b, wrong);
    return dev->ops->latent_prefill(dev, &m, &taken);
}

/* ---- mixtures of experts: 8, best 2, of 16, rows of 32 */
static struct ek_router router_of(int wrong)
{
    return (struct ek_router){.kind = wrong == 2 ? EK_ROUTE_GROUP_LIMITED : EK_ROUTE_GREEDY,
                              .n_experts = wrong == 0 ? 0 : 8,
                              .top_k = wrong == 1 ? 9 : 2,
                              .n_group = 3,
                              .topk_group = 1,
                              .scale = 1};
}

static enum ek_status route(struct ek_device *dev, int wrong)
{
    struct ek_router r = router_of(wrong);
    struct ek_mat gate = mat(wrong == 3 ? 7 : 8, 32);

    return dev->ops->route(dev, AT, wrong == 4 ? 31 : 32, 3, &gate, NULL, &r, AT, memory);
}

static enum ek_status experts(struct ek_device *dev, int wrong)
{
    struct ek_mat up = mat(wrong == 0 ? 255 : 256, 32), down = mat(wrong == 1 ? 248 : 256, 16);
    struct ek_experts e = {&up, &down, wrong == 2 ? 0 : 8, 16};

    return dev->ops->experts(dev, AT, wrong == 4 ? 31 : 32, 3, AT, memory, wrong == 3 ? 0 : 2, &e,
                             AT, wrong == 5 ? 30 : 32);
}

static enum ek_status mixture(struct ek_device *dev, int wrong)
{
    struct ek_mat gate = mat(wrong == 3 ? 0 : 8, wrong == 4 ? 24 : 32);
    struct ek_mat shared[2] = {mat(wrong == 5 ? 60 : 64, 32), mat(wrong == 6 ? 30 : 32, 32)};
    struct ek_mat up = mat(wrong == 7 ? 0 : 256, 32), down = mat(256, 16);
    struct ek_experts e = {&up, &down, wrong == 8 ? 4 : 8, wrong == 9 ? 0 : 16};
    struct ek_router r = router_of(wrong);
    struct ek_mixture m = {.x = AT,
                           .n = 3,
                           .norm = memory,
                           .gate = &gate,
                           .router = &r,
                           .experts = &e,
                           .shared = shared,
                           .normed = AT,
                           .ids = AT,
                           .weights = memory};
    bool taken;

    if (wrong == 8)
        up.rows = down.rows = 128;
    return dev->ops->mixture(dev, &m, &taken);
}

/* ---- all of them, and what the message names */
#define CALL(op, wrong) #op, offsetof(struct ek_ops, op), op, wrong
static const struct {
    const char *name;
    size_t at;
    enum ek_status (*call)(struct ek_device *dev, int wrong);
    int wrong;
    enum ek_status want;
    const char *words[2];
} refused[] = {
    {CALL(rms_norm, 0), EK_EUSAGE, {"64", "48"}},
    {CALL(rms_norm, 1), EK_EUSAGE, {"64", "32"}},
    {CALL(layer_norm, 0), EK_EUSAGE, {"3 rows", "of 0"}},
    {CALL(swiglu, 0), EK_EUSAGE, {"128", "100"}},
    {CALL(swiglu, 1), EK_EUSAGE, {"64", "63"}},
    {CALL(gather, 0), EK_EUSAGE, {"64", "63"}},
    {CALL(permute, 0), EK_EUSAGE, {"64", "63"}},
    {CALL(scatter_rows, 0), EK_EUSAGE, {"64", "63"}},
    {CALL(argmax, 0), EK_EUSAGE, {"3 rows", "of 0"}},
    {CALL(sample, 0), EK_EUSAGE, {"3 rows", "of 0"}},
    {CALL(embed, 0), EK_EUSAGE, {"0 x 64", ""}},
    {CALL(mat_new, 0), EK_EFORMAT, {"0 x 4", ""}},
    {CALL(mat_new, 1), EK_EFORMAT, {"3 x 0", ""}},
    {CALL(linear, 0), EK_EUSAGE, {"0 x 64", ""}},
    {CALL(linear, 1), EK_EUSAGE, {"64", "63"}},
    {CALL(linear, 2), EK_EUSAGE, {"48", "47"}},
    {CALL(norm_linear, 0), EK_EUSAGE, {"48 x 64", "16 x 65"}},
    {CALL(norm_linear, 1), EK_EUSAGE, {"64", "60"}},
    {CALL(norm_gate_up, 0), EK_EUSAGE, {"40 x 64", "48 x 64"}},
    {CALL(norm_gate_up, 1), EK_EUSAGE, {"48 x 56", "48 x 64"}},
    {CALL(norm_gate_up, 2), EK_EUSAGE, {"48", "47"}},
    {CALL(layer_tail, 0), EK_EUSAGE, {"48 x 60", "48 x 64"}},
    {CALL(layer_tail, 1), EK_EUSAGE, {"44 x 64", "48 x 64"}},
    {CALL(layer_tail, 2), EK_EUSAGE, {"56 x 48", "64 x 48"}},
    {CALL(layer_tail, 3), EK_EUSAGE, {"64 x 40", "64 x 48"}},
    {CALL(layer_tail, 4), EK_EUSAGE, {"32", "31"}},
    {CALL(attention, 0), EK_EUNSUPPORTED, {"F8_E5M2", ""}},
    {CALL(attention, 1), EK_EUSAGE, {"0 heads of 16", ""}},
    {CALL(attention, 2), EK_EUSAGE, {"4 heads", "3 cached"}},
    {CALL(attention, 3), EK_EUSAGE, {"pages of 0", ""}},
    {CALL(attention, 4), EK_EUSAGE, {"2 heads", "latent"}},
    {CALL(attention, 5), EK_EUSAGE, {"3 tokens", "0 sequences"}},
    {CALL(attention, 6), EK_EUSAGE, {"49", "3 blocks of 16"}},
    {CALL(attention, 7), EK_EUSAGE, {"64", "60"}},
    {CALL(attention, 8), EK_EUSAGE, {"64", "61"}},
    {CALL(attention_dense, 0), EK_EUSAGE, {"96", "95"}},
    {CALL(attention_dense, 1), EK_EUSAGE, {"3 rows", "4 segments"}},
    {CALL(attention_dense, 2), EK_EUSAGE, {"3 rows", "most 5"}},
    {CALL(attention_dense, 3), EK_EUSAGE, {"32", "31"}},
    {CALL(rope_append, 0), EK_EUSAGE, {"18", "head of 16"}},
    {CALL(rope_append, 1), EK_EUSAGE, {"7", "head of 16"}},
    {CALL(rope_append, 2), EK_EUSAGE, {"latent_append", ""}},
    {CALL(rope_append, 3), EK_EUSAGE, {"128", "127"}},
    {CALL(rope_rows, 0), EK_EUSAGE, {"18", "head of 16"}},
    {CALL(rope_rows, 1), EK_EUSAGE, {"64", "63"}},
    {CALL(norm_qkv_rope, 0), EK_EUSAGE, {"60", "heads of 16"}},
    {CALL(norm_qkv_rope, 1), EK_EUSAGE, {"16 x 48", "32 x 48"}},
    {CALL(norm_qkv_rope, 2), EK_EUSAGE, {"32 x 40", "32 x 48"}},
    {CALL(norm_qkv_rope, 3), EK_EUSAGE, {"heads of 0", ""}},
    {CALL(norm_qkv_rope, 4), EK_EUSAGE, {"128", "120"}},
    {CALL(latent_append, 0), EK_EUSAGE, {"2 heads of 16", "12 + 4"}},
    {CALL(latent_append, 1), EK_EUSAGE, {"1 heads of 17", "12 + 4"}},
    {CALL(latent_append, 2), EK_EUSAGE, {"16", "15"}},
    {CALL(latent_query, 0), EK_EUSAGE, {"28 x 13", "by 12"}},
    {CALL(latent_query, 1), EK_EUSAGE, {"6", "4"}},
    {CALL(latent_query, 2), EK_EUSAGE, {"28 x 12", "8 + 7"}},
    {CALL(latent_query, 3), EK_EUSAGE, {"24", "23"}},
    {CALL(latent_query, 4), EK_EUSAGE, {"32", "31"}},
    {CALL(latent_value, 0), EK_EUSAGE, {"28 x 12", "2147483650 heads"}},
    {CALL(latent_value, 1), EK_EUSAGE, {"24", "23"}},
    {CALL(latent_value, 2), EK_EUSAGE, {"28 x 12", "8 + 7"}},
    {CALL(latent_value, 3), EK_EUSAGE, {"12", "11"}},
    {CALL(latent_mix, 0), EK_EUSAGE, {"2 heads of 16", "12 + 4"}},
    {CALL(latent_mix, 1), EK_EUSAGE, {"1 heads of 17", "12 + 4"}},
    {CALL(latent_mix, 2), EK_EUSAGE, {"28 x 12", "8 + 7"}},
    {CALL(latent_mix, 3), EK_EUSAGE, {"24", "23"}},
    {CALL(latent_mix, 4), EK_EUSAGE, {"12", "11"}},
    {CALL(latent_mix, 5), EK_EUSAGE, {"3 tokens", "0 sequences"}},
    {CALL(latent_prefill, 2), EK_EUSAGE, {"28 x 12", "8 + 7"}},
    {CALL(latent_prefill, 4), EK_EUSAGE, {"12", "11"}},
    {CALL(route, 0), EK_EUSAGE, {"0 experts", "8 rows"}},
    {CALL(route, 1), EK_EUSAGE, {"8 experts", "best 9"}},
    {CALL(route, 2), EK_EUSAGE, {"8 experts", "3 groups"}},
    {CALL(route, 3), EK_EUSAGE, {"8 experts", "7 rows"}},
    {CALL(route, 4), EK_EUSAGE, {"32", "31"}},
    {CALL(experts, 0), EK_EUSAGE, {"8 experts of 16", "255 x 32"}},
    {CALL(experts, 1), EK_EUSAGE, {"8 experts of 16", "248 x 16"}},
    {CALL(experts, 2), EK_EUSAGE, {"0 experts", "256 x 32"}},
    {CALL(experts, 3), EK_EUSAGE, {"8 experts", "best 0"}},
    {CALL(experts, 4), EK_EUSAGE, {"32", "31"}},
    {CALL(experts, 5), EK_EUSAGE, {"32", "30"}},
    {CALL(mixture, 0), EK_EUSAGE, {"0 experts", "8 rows"}},
    {CALL(mixture, 1), EK_EUSAGE, {"8 experts", "best 9"}},
    {CALL(mixture, 2), EK_EUSAGE, {"8 experts", "3 groups"}},
    {CALL(mixture, 3), EK_EUSAGE, {"8 experts", "0 rows"}},
    {CALL(mixture, 4), EK_EUSAGE, {"8 x 24", "8 x 32"}},
    {CALL(mixture, 5), EK_EUSAGE, {"60 x 32", "64 x 32"}},
    {CALL(mixture, 6), EK_EUSAGE, {"30 x 32", "32 x 32"}},
    {CALL(mixture, 7), EK_EUSAGE, {"8 experts of 16", "0 x 32"}},
    {CALL(mixture, 8), EK_EUSAGE, {"8 experts", "4 of them"}},
    {CALL(mixture, 9), EK_EUSAGE, {"8 experts of 0", "256 x 32"}},
};
const int n_refused = EK_ARRAY_LEN(refused);

void check_refused(struct ek_device *dev, int which)
{
    void (*op)(void) = NULL;
    enum ek_status st;

    memcpy(&op, (const char *)dev->ops + refused[which].at, sizeof(op));
    if (op == NULL)
        return;
    st = refused[which].call(dev, refused[which].wrong);
    ck_assert_msg(st == refused[which].want, "%s %d: status %d: %s", refused[which].name,
                  refused[which].wrong, (int)st, st == EK_OK ? "" : ek_last_error());
    for (int i = 0; i < 2; i++)
        ck_assert_msg(strstr(ek_last_error(), refused[which].words[i]) != NULL,
                      "%s %d: \"%s\" in %s", refused[which].name, refused[which].wrong,
                      refused[which].words[i], ek_last_error());
}
