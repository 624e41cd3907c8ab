/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole prompts through the engine in chunks, and the comparison of logits with a reference.
 */
#include "runtime/prompt.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW     16 /* chunks under way */
#define WINDOW_ALL 2  /* with logits of every token, which the host keeps */

/* ---- chunks of one sequence, results in order */
struct chunk {
    uint64_t ticket;
    size_t first, n; /* rows of the prompt */
};

typedef enum ek_status (*chunk_fn)(void *user, const struct chunk *c, const float *logits,
                                   const int32_t *argmax, uint32_t rows);

static enum ek_status take_oldest(struct ek_engine *e, struct chunk *c, bool logits_wanted,
                                  chunk_fn fn, void *user)
{
    const float *logits = NULL;
    const int32_t *argmax;
    uint32_t rows;
    enum ek_status st =
        ek_engine_wait(e, c->ticket, logits_wanted ? &logits : NULL, &argmax, &rows);

    if (st == EK_OK && rows > 0)
        st = fn(user, c, logits, argmax, rows);
    ek_engine_release(e, c->ticket);
    return st;
}

/* What a step has besides tokens when the prompt holds pictures. */
struct extras {
    int32_t *positions;        /* [3][chunk], or NULL */
    struct ek_embed_row *rows; /* [chunk], or NULL */
};

static void extras_close(struct extras *x)
{
    free(x->positions);
    free(x->rows);
}

static enum ek_status extras_open(struct extras *x, const struct ek_prompt *prompt, size_t chunk)
{
    bool rows = prompt->positions != NULL || prompt->delta != 0;

    if ((rows && (x->positions = ek_calloc(3 * chunk, sizeof(*x->positions))) == NULL) ||
        (prompt->embeds && (x->rows = ek_calloc(chunk, sizeof(*x->rows))) == NULL))
        return EK_ENOMEM;
    return EK_OK;
}

static void extras_fill(struct extras *x, const struct ek_prompt *p, size_t at, uint32_t n,
                        struct ek_step *step)
{
    if (x->positions != NULL)
        prompt_positions(p, at, n, x->positions, n);
    if (x->rows != NULL)
        step->n_embeds = prompt_embeds(p, at, n, 0, x->rows);
    step->positions = x->positions;
    step->embeds = x->rows;
}

/* want ALL: logits of every chunk; LAST: of the last token of the last chunk; NONE. */
static enum ek_status run_chunks(struct ek_engine *e, uint32_t seq, const struct ek_prompt *prompt,
                                 size_t n, enum ek_logits want, bool ids_only, chunk_fn fn,
                                 void *user)
{
    struct extras x = {0};
    struct chunk ring[WINDOW];
    size_t most = ek_engine_plan(e)->prefill_chunk, put = 0, got = 0;
    size_t window = want == EK_LOGITS_ALL && !ids_only ? WINDOW_ALL : WINDOW;
    enum ek_status st = extras_open(&x, prompt, most);

    for (size_t at = 0; at < n && st == EK_OK; at += ring[(put - 1) % WINDOW].n) {
        struct chunk *c = &ring[put % WINDOW];
        uint32_t k = (uint32_t)(n - at < most ? n - at : most);
        struct ek_step step = {.n_seqs = 1,
                               .seqs = &seq,
                               .n_tokens = &k,
                               .tokens = prompt->ids + at,
                               .logits =
                                   want == EK_LOGITS_LAST && at + k < n ? EK_LOGITS_NONE : want,
                               .ids_only = ids_only};
        if (put - got == window)
            EK_GOTO(take_oldest(e, &ring[got++ % WINDOW], !ids_only, fn, user), st, drain);
        *c = (struct chunk){.first = at, .n = k};
        extras_fill(&x, prompt, at, k, &step);
        EK_GOTO(ek_engine_submit(e, &step, &c->ticket), st, drain);
        put++;
    }
drain:
    for (; got < put; got++) {
        struct chunk *c = &ring[got % WINDOW];
        if (st == EK_OK)
            st = take_oldest(e, c, !ids_only, fn, user);
        else
            ek_engine_release(e, c->ticket);
    }
    extras_close(&x);
    return st;
}

struct copy_out {
    float *logits;
    int32_t *argmax;
    uint32_t vocab;
    size_t rows; /* written so far */
};

static enum ek_status copy_chunk(void *user, const struct chunk *c, const float *logits,
                                 const int32_t *argmax, uint32_t rows)
{
    struct copy_out *o = user;

    (void)c;
    if (o->logits != NULL)
        memcpy(o->logits + o->rows * o->vocab, logits, (size_t)rows * o->vocab * sizeof(*logits));
    if (o->argmax != NULL)
        memcpy(o->argmax + o->rows, argmax, rows * sizeof(*argmax));
    o->rows += rows;
    return EK_OK;
}

enum ek_status prompt_prefill(struct ek_engine *e, uint32_t seq, const struct ek_prompt *p,
                              enum ek_logits want, float *logits, int32_t *argmax)
{
    struct copy_out o = {logits, argmax, ek_engine_model(e)->config.vocab, 0};

    if (p->n == 0)
        return ek_error(EK_EUSAGE, "prefill: no tokens");
    return run_chunks(e, seq, p, p->n, want, logits == NULL, copy_chunk, &o);
}

enum ek_status ek_engine_prefill(struct ek_engine *e, uint32_t seq, const int32_t *tokens, size_t n,
                                 enum ek_logits want, float *logits, int32_t *argmax)
{
    struct ek_prompt prompt = {.ids = tokens, .n = n};

    return prompt_prefill(e, seq, &prompt, want, logits, argmax);
}

/* ---- comparison */
struct verdict { /* of one row */
    double margin;
    bool top1_equal;
};

struct comparison {
    const struct ek_reference *r;
    struct ek_comparison c;
    struct verdict *verdicts; /* [n_rows] */
    double kl_sum;
    uint32_t vocab;
    size_t next; /* row of the reference */
};

static double log_sum_exp(const float *x, size_t n)
{
    double best = -INFINITY, sum = 0;

    for (size_t i = 0; i < n; i++)
        best = x[i] > best ? x[i] : best;
    for (size_t i = 0; i < n; i++)
        sum += exp(x[i] - best);
    return best + log(sum);
}

/* Index of the largest, and how far the next one is below it. */
static size_t best_of(const float *x, size_t n, double *margin)
{
    size_t best = 0;
    double second = -INFINITY;

    for (size_t i = 1; i < n; i++) {
        if (x[i] > x[best]) {
            second = x[best];
            best = i;
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    *margin = x[best] - second;
    return best;
}

static bool all_finite(struct comparison *k, const float *x)
{
    size_t bad = 0;

    for (uint32_t i = 0; i < k->vocab; i++)
        bad += !isfinite(x[i]);
    k->c.not_finite += bad;
    return bad == 0;
}

static void note_difference(struct comparison *k, size_t row, double ref, double ours)
{
    double d = fabs(ref - ours);

    if (d > k->c.max_abs) {
        k->c.max_abs = d;
        k->c.worst_row = row;
    }
    if (fabs(ref) > k->c.max_logit)
        k->c.max_logit = fabs(ref);
}

/* KL(reference || ours) over the whole vocabulary. */
static double compare_full(struct comparison *k, size_t row, const float *ours)
{
    const float *ref = k->r->logits + row * k->vocab;
    double zr = log_sum_exp(ref, k->vocab), zo = log_sum_exp(ours, k->vocab), kl = 0;

    for (uint32_t i = 0; i < k->vocab; i++) {
        note_difference(k, row, ref[i], ours[i]);
        kl += exp(ref[i] - zr) * ((ref[i] - zr) - (ours[i] - zo));
    }
    return kl;
}

/* The same over the top k and, as one outcome, the rest. */
static double compare_topk(struct comparison *k, size_t row, const float *ours)
{
    const int32_t *ids = k->r->topk_ids + row * k->r->n_topk;
    const float *ref = k->r->topk_logits + row * k->r->n_topk;
    double zr = k->r->logsumexp[row], zo = log_sum_exp(ours, k->vocab);
    double kl = 0, left_r = 1, left_o = 1;

    for (uint32_t i = 0; i < k->r->n_topk; i++) {
        double lr = ref[i] - zr, lo = ours[ids[i]] - zo;
        note_difference(k, row, ref[i], ours[ids[i]]);
        kl += exp(lr) * (lr - lo);
        left_r -= exp(lr);
        left_o -= exp(lo);
    }
    if (left_r > FLT_EPSILON && left_o > FLT_EPSILON) /* else nothing but rounding is left */
        kl += left_r * log(left_r / left_o);
    return kl;
}

static void compare_row(struct comparison *k, size_t row, const float *ours)
{
    const struct ek_reference *r = k->r;
    struct verdict *v = &k->verdicts[row];
    double ignored, kl;
    size_t best;

    if (!all_finite(k, ours)) {
        k->c.worst_row = row;
        return;
    }
    kl = r->logits ? compare_full(k, row, ours) : compare_topk(k, row, ours);
    if (r->logits != NULL)
        best = best_of(r->logits + row * k->vocab, k->vocab, &v->margin);
    else
        best = (size_t)r->topk_ids[row * r->n_topk + best_of(r->topk_logits + row * r->n_topk,
                                                             r->n_topk, &v->margin)];
    v->top1_equal = best == best_of(ours, k->vocab, &ignored);
    k->kl_sum += kl;
    k->c.max_kl = kl > k->c.max_kl ? kl : k->c.max_kl;
}

static enum ek_status compare_chunk(void *user, const struct chunk *c, const float *logits,
                                    const int32_t *argmax, uint32_t rows)
{
    struct comparison *k = user;

    (void)argmax;
    while (k->next < k->r->n_rows && (uint64_t)k->r->positions[k->next] < c->first + rows) {
        size_t at = (size_t)k->r->positions[k->next] - c->first;
        compare_row(k, k->next++, logits + at * k->vocab);
    }
    return EK_OK;
}

static enum ek_status check_reference(const struct ek_reference *r, const struct ek_model *m)
{
    if (r->logits != NULL && r->vocab != m->config.vocab)
        return ek_error(EK_EFORMAT, "reference: logits of a vocabulary of %u, the model has %u",
                        r->vocab, m->config.vocab);
    for (size_t i = 0; i < r->n_ids; i++)
        if ((uint32_t)r->ids[i] >= m->config.vocab)
            return ek_error(EK_EFORMAT, "reference: input_ids[%zu] is %d, the vocabulary has %u", i,
                            r->ids[i], m->config.vocab);
    for (size_t i = 0; r->topk_ids && i < r->n_rows * r->n_topk; i++)
        if ((uint32_t)r->topk_ids[i] >= m->config.vocab)
            return ek_error(EK_EFORMAT, "reference: topk_ids[%zu] is %d, the vocabulary has %u", i,
                            r->topk_ids[i], m->config.vocab);
    return EK_OK;
}

static void sum_up(struct comparison *k)
{
    struct ek_comparison *c = &k->c;

    c->rows = k->r->n_rows;
    c->mean_kl = c->rows ? k->kl_sum / (double)c->rows : 0;
    for (size_t i = 0; i < c->rows; i++) {
        bool decided = k->verdicts[i].margin > 2 * c->max_abs;
        c->top1_equal += k->verdicts[i].top1_equal;
        c->top1_decided += decided;
        c->top1_decided_equal += decided && k->verdicts[i].top1_equal;
    }
}

/* The reference's positions, where it says them, are those that its pictures give. */
static enum ek_status check_positions(const struct ek_reference *r, const struct ek_prompt *p)
{
    for (size_t i = 0; r->position_ids && i < 3 * r->n_ids; i++) {
        int32_t ours = p->positions ? p->positions[i] : (int32_t)(i % r->n_ids);
        if (ours != r->position_ids[i])
            return ek_error(EK_NO, "position %c of token %zu is %d, the reference's %d",
                            "thw"[i / r->n_ids], i % r->n_ids, ours, r->position_ids[i]);
    }
    return EK_OK;
}

enum ek_status prompt_of_reference(struct ek_engine *e, const struct ek_reference *r,
                                   struct ek_vision_prompt *v)
{
    struct ek_vl_rules rules;

    if (r->n_items == 0) {
        v->prompt = (struct ek_prompt){.ids = r->ids, .n = r->n_ids};
        return check_positions(r, &v->prompt);
    }
    EK_TRY(ek_vl_rules_open(ek_engine_model(e), &rules));
    rules.repeat_tiles = true; /* as the official code does: traces have those rows */
    EK_TRY(ek_vision_prompt_open(e, &rules, r->ids, r->n_ids, r->items, r->n_items, v));
    if (v->prompt.n != r->n_ids)
        return ek_error(EK_NO, "the pictures make a prompt of %zu tokens, the reference has %zu",
                        v->prompt.n, r->n_ids);
    return check_positions(r, &v->prompt);
}

enum ek_status ek_compare(struct ek_engine *e, const struct ek_reference *r,
                          struct ek_comparison *out)
{
    struct comparison k = {.r = r, .vocab = ek_engine_model(e)->config.vocab};
    struct ek_vision_prompt v = {0};
    uint32_t seq;
    enum ek_status st;

    EK_TRY(check_reference(r, ek_engine_model(e)));
    EK_TRY(ek_engine_seq_open(e, &seq));
    EK_GOTO(prompt_of_reference(e, r, &v), st, done);
    if ((k.verdicts = ek_calloc(r->n_rows, sizeof(*k.verdicts))) == NULL)
        st = EK_ENOMEM;
    else /* ids behind the last row asked for need not run */
        st = run_chunks(e, seq, &v.prompt, (size_t)r->positions[r->n_rows - 1] + 1, EK_LOGITS_ALL,
                        false, compare_chunk, &k);
    if (st == EK_OK) {
        sum_up(&k);
        *out = k.c;
    }
done:
    ek_engine_seq_close(e, seq);
    ek_vision_prompt_close(&v);
    free(k.verdicts);
    return st;
}

struct ek_tolerance ek_tolerance_for(const struct ek_model *m, enum ek_dtype act,
                                     const struct ek_reference *r)
{
    struct ek_tolerance exact = {.relative = 1e-4}, rounded = {.mean_kl = 1e-3};
    double official = r->bf16_mean_kl * (m->config.n_experts > 0 ? 2 : 1);
    bool rough = strcmp(r->dtype, "bfloat16") == 0 || strcmp(r->dtype, "float16") == 0;

    if (act == EK_F32 && !rough)
        return exact;
    if (official > rounded.mean_kl)
        rounded.mean_kl = official;
    return rounded;
}

enum ek_status ek_comparison_judge(const struct ek_comparison *c, const struct ek_tolerance *t)
{
    if (c->not_finite > 0)
        return ek_error(EK_NO, "%zu logits are not finite, first seen by row %zu", c->not_finite,
                        c->worst_row);
    if (t->relative > 0 && c->max_abs > t->relative * c->max_logit)
        return ek_error(EK_NO,
                        "logits differ: %.3g at row %zu, allowed %.3g (%.3g of the largest, %.3g)",
                        c->max_abs, c->worst_row, t->relative * c->max_logit, t->relative,
                        c->max_logit);
    if (t->mean_kl > 0 && c->mean_kl > t->mean_kl)
        return ek_error(EK_NO, "logits differ: mean KL %.3g, allowed %.3g", c->mean_kl, t->mean_kl);
    if (c->top1_decided_equal < c->top1_decided)
        return ek_error(EK_NO, "the best token differs in %zu of %zu decided rows",
                        c->top1_decided - c->top1_decided_equal, c->top1_decided);
    return EK_OK;
}
