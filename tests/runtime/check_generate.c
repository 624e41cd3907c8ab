/* SPDX-License-Identifier: Apache-2.0
 *
 * Generation and the benchmark: the same tokens whatever the grouping, stops, streaming.
 */
#include "tests/runtime/support.h"

#include <stdlib.h>
#include <string.h>

enum { PROMPTS = 5 };

static struct ek_model *model;
static int32_t *ids;
static struct ek_prompt prompts[PROMPTS];

static void make_prompts(void)
{
    static const size_t lengths[PROMPTS] = {7, 1, 33, 16, 20};
    size_t at = 0;

    model = small_model(3);
    ids = random_ids(model, 100, 9);
    for (int i = 0; i < PROMPTS; at += lengths[i++])
        prompts[i] = (struct ek_prompt){.ids = ids + at, .n = lengths[i]};
}

static void free_prompts(void)
{
    free(ids);
    ek_model_close(model);
}

static struct ek_plan *plan_of(uint32_t n_devices, uint32_t batch, uint32_t groups, uint32_t chunk)
{
    uint32_t cuts[] = {2, 4, (uint32_t)model->n_modules};
    struct plan_shape shape = {.n_devices = n_devices,
                               .n_stages = n_devices,
                               .cuts = cuts,
                               .batch = batch,
                               .context = 96,
                               .chunk = chunk,
                               .micro_batches = groups};

    cuts[n_devices - 1] = (uint32_t)model->n_modules;
    return make_plan(model, &shape);
}

static struct ek_completion *generate(struct ek_plan *p, const struct ek_generate_options *opt,
                                      struct ek_generate_timing *t)
{
    struct ek_engine *e = open_engine(model, p);
    struct ek_completion *c = NULL;

    ck_ok(ek_generate(e, prompts, PROMPTS, opt, &c, t));
    ek_engine_close(e);
    ek_plan_free(p);
    return c;
}

static void must_be_equal(const struct ek_completion *a, const struct ek_completion *b)
{
    for (int i = 0; i < PROMPTS; i++) {
        ck_assert_uint_eq(a[i].n, b[i].n);
        ck_assert_int_eq(a[i].finish, b[i].finish);
        ck_assert_int_eq(memcmp(a[i].ids, b[i].ids, a[i].n * sizeof(*a[i].ids)), 0);
    }
}

START_TEST(the_tokens_do_not_depend_on_devices_groups_or_chunks)
{
    static const uint32_t forms[][4] = {/* devices, batch, groups, chunk */
                                        {1, 5, 5, 16},
                                        {2, 5, 2, 16},
                                        {3, 5, 3, 64},
                                        {2, 2, 2, 16},
                                        {1, 1, 1, 7}};
    struct ek_generate_options opts[] = {
        {.sampling = EK_SAMPLING_GREEDY, .max_tokens = 20},
        {.sampling = {0.8, 40, 0.95, 0.01, 77}, .max_tokens = 20},
    };

    for (size_t k = 0; k < EK_ARRAY_LEN(opts); k++) {
        struct ek_generate_timing t;
        struct ek_completion *want = generate(plan_of(1, 5, 1, 16), &opts[k], &t);
        ck_assert_uint_eq(t.prompt_tokens, 77);
        ck_assert_uint_eq(t.new_tokens, PROMPTS * 20);
        ck_assert_double_gt(t.decode_step_s, 0);
        for (size_t i = 0; i < EK_ARRAY_LEN(forms); i++) {
            const uint32_t *f = forms[i];
            struct ek_completion *got = generate(plan_of(f[0], f[1], f[2], f[3]), &opts[k], &t);
            must_be_equal(got, want);
            ek_completions_free(got, PROMPTS);
        }
        ek_completions_free(want, PROMPTS);
    }
}
END_TEST

START_TEST(greedy_generation_equals_teacher_forcing)
{
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = 12};
    struct ek_completion *c = generate(plan_of(2, 5, 2, 16), &opt, NULL);
    struct ek_plan *p = plan_of(1, 1, 1, 16);
    struct ek_engine *e = open_engine(model, p);

    for (int i = 0; i < PROMPTS; i++) {
        size_t n = prompts[i].n + c[i].n - 1;
        int32_t *all = ek_calloc(n, sizeof(*all)), *best = ek_calloc(n, sizeof(*best));
        uint32_t seq;
        memcpy(all, prompts[i].ids, prompts[i].n * sizeof(*all));
        memcpy(all + prompts[i].n, c[i].ids, (c[i].n - 1) * sizeof(*all));
        ck_ok(ek_engine_seq_open(e, &seq));
        ck_ok(ek_engine_prefill(e, seq, all, n, EK_LOGITS_ALL, NULL, best));
        ck_assert_int_eq(memcmp(best + prompts[i].n - 1, c[i].ids, c[i].n * sizeof(*best)), 0);
        ek_engine_seq_close(e, seq);
        free(all);
        free(best);
    }
    ek_engine_close(e);
    ek_plan_free(p);
    ek_completions_free(c, PROMPTS);
}
END_TEST

START_TEST(a_stop_id_ends_its_sequence_alone)
{
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = 15};
    struct ek_completion *free_run = generate(plan_of(2, 5, 2, 16), &opt, NULL), *c;
    int32_t stop = free_run[2].ids[6];

    opt.stop = &stop;
    opt.n_stop = 1;
    c = generate(plan_of(2, 5, 2, 16), &opt, NULL);
    for (int i = 0; i < PROMPTS; i++) {
        size_t first = 0;
        while (first < 15 && free_run[i].ids[first] != stop)
            first++;
        ck_assert_uint_eq(c[i].n, first < 15 ? first + 1 : 15);
        ck_assert_int_eq(c[i].finish, first < 15 ? EK_FINISH_STOP : EK_FINISH_LENGTH);
        ck_assert_int_eq(memcmp(c[i].ids, free_run[i].ids, c[i].n * sizeof(stop)), 0);
    }
    ck_assert_int_eq(c[2].finish, EK_FINISH_STOP);
    ek_completions_free(c, PROMPTS);
    ek_completions_free(free_run, PROMPTS);
}
END_TEST

/* The cache has no block for a step ahead of an end: it waits, and the tokens are the same. */
START_TEST(a_full_cache_holds_nobody_up_who_ends_in_time)
{
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = 25};
    struct ek_prompt two[] = {{.ids = ids, .n = 31}, {.ids = ids + 40, .n = 33}};
    struct ek_engine_options tight = {.cache_tokens = 96}; /* 3 blocks */
    struct ek_plan *p = plan_of(2, 2, 1, 64);
    struct ek_engine *e = open_engine(model, p), *few = NULL;
    struct ek_completion *want = NULL, *got = NULL;

    ck_ok(ek_generate(e, two, 2, &opt, &want, NULL));
    opt.stop = &want[0].ids[1]; /* the first prompt ends with the last token of its block */
    opt.n_stop = 1;
    ck_ok(ek_engine_open(model, p, &tight, &few));
    for (int k = 0; k < 3; k++) {
        ck_ok(ek_generate(few, two, 2, &opt, &got, NULL));
        for (int i = 0; i < 2; i++)
            ck_assert_mem_eq(got[i].ids, want[i].ids, got[i].n * sizeof(int32_t));
        ck_assert_int_eq(got[0].finish, EK_FINISH_STOP);
        ek_completions_free(got, 2);
    }
    ek_completions_free(want, 2);
    ek_engine_close(e);
    ek_engine_close(few);
    ek_plan_free(p);
}
END_TEST

START_TEST(generation_ends_where_the_context_does)
{
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = 1000};
    struct ek_completion *c = generate(plan_of(2, 5, 2, 16), &opt, NULL);

    for (int i = 0; i < PROMPTS; i++) {
        ck_assert_uint_eq(c[i].n, 96 - prompts[i].n + 1);
        ck_assert_int_eq(c[i].finish, EK_FINISH_LENGTH);
    }
    ek_completions_free(c, PROMPTS);
}
END_TEST

/* ---- streaming */
struct stream {
    int32_t got[PROMPTS][64];
    size_t n[PROMPTS], limit;
    atomic_bool cancel;
    size_t cancel_at, total;
};

static bool on_token(void *user, size_t prompt, int32_t id)
{
    struct stream *s = user;

    s->got[prompt][s->n[prompt]++] = id;
    if (++s->total == s->cancel_at)
        s->cancel = true;
    return s->n[prompt] < s->limit;
}

START_TEST(tokens_are_streamed_and_a_callback_ends_its_sequence)
{
    struct stream s = {.limit = 9};
    struct ek_generate_options opt = {
        .sampling = EK_SAMPLING_GREEDY, .max_tokens = 15, .on_token = on_token, .user = &s};
    struct ek_completion *c = generate(plan_of(2, 5, 2, 16), &opt, NULL);

    for (int i = 0; i < PROMPTS; i++) {
        ck_assert_uint_eq(c[i].n, 9);
        ck_assert_uint_eq(s.n[i], 9);
        ck_assert_int_eq(c[i].finish, EK_FINISH_CALLBACK);
        ck_assert_int_eq(memcmp(c[i].ids, s.got[i], 9 * sizeof(int32_t)), 0);
    }
    ek_completions_free(c, PROMPTS);
}
END_TEST

START_TEST(an_interrupt_gives_what_there_is_and_frees_the_engine)
{
    struct stream s = {.limit = 100, .cancel_at = 12};
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY,
                                      .max_tokens = 30,
                                      .on_token = on_token,
                                      .user = &s,
                                      .cancel = &s.cancel};
    struct ek_plan *p = plan_of(2, 5, 2, 16);
    struct ek_engine *e = open_engine(model, p);
    struct ek_completion *c = NULL;
    uint32_t seq;

    ck_assert_int_eq(ek_generate(e, prompts, PROMPTS, &opt, &c, NULL), EK_EINTR);
    ck_assert_ptr_nonnull(c);
    ck_assert_uint_le(s.total, 12 + PROMPTS);
    ek_completions_free(c, PROMPTS);
    for (int i = 0; i < PROMPTS; i++) /* every slot is free again */
        ck_ok(ek_engine_seq_open(e, &seq));
    ek_engine_close(e);
    ek_plan_free(p);
}
END_TEST

START_TEST(impossible_requests_are_refused)
{
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = 3};
    struct ek_plan *p = plan_of(1, 2, 1, 16);
    struct ek_engine *e = open_engine(model, p);
    struct ek_prompt none = {.ids = ids}, much = {.ids = ids, .n = 97};
    struct ek_completion *c = NULL;

    ck_assert_int_eq(ek_generate(e, &none, 1, &opt, &c, NULL), EK_EUSAGE);
    ck_assert_int_eq(ek_generate(e, &much, 1, &opt, &c, NULL), EK_EUSAGE);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "97"));
    ck_assert_int_eq(ek_generate(e, prompts, 0, &opt, &c, NULL), EK_EUSAGE);
    opt.max_tokens = 0;
    ck_assert_int_eq(ek_generate(e, prompts, 1, &opt, &c, NULL), EK_EUSAGE);
    opt.max_tokens = 3;
    opt.sampling.top_p = 7;
    opt.sampling.temperature = 1;
    ck_assert_int_eq(ek_generate(e, prompts, 1, &opt, &c, NULL), EK_EUSAGE);
    ck_assert_ptr_null(c);
    ek_engine_close(e);
    ek_plan_free(p);
}
END_TEST

/* ---- prompts that come and go */
struct arrivals {
    struct ek_generation all[PROMPTS];
    size_t next, under_way, most, ended;
    int calls; /* every other one finds nobody, so that prompts join what runs */
};

static enum ek_status arrive(void *user, bool wait, struct ek_generation **out)
{
    struct arrivals *a = user;

    *out = NULL;
    if (a->next == PROMPTS || (!wait && a->calls++ % 2))
        return EK_OK;
    *out = &a->all[a->next++];
    if (++a->under_way > a->most)
        a->most = a->under_way;
    return EK_OK;
}

static void leave(void *user, struct ek_generation *g)
{
    struct arrivals *a = user;

    ck_assert(g >= a->all && g < a->all + PROMPTS);
    a->under_way--;
    a->ended++;
}

/* Lengths, sampling and stops of their own; what each says alone is what it says among others. */
START_TEST(prompts_that_join_others_get_the_answer_that_they_get_alone)
{
    static const uint32_t forms[][4] = {/* devices, batch, groups, chunk */
                                        {1, 2, 1, 16},
                                        {2, 3, 2, 16},
                                        {3, 4, 3, 7}};
    const uint32_t *f = forms[_i];
    struct ek_plan *p = plan_of(f[0], f[1], f[2], f[3]);
    struct ek_engine *e = open_engine(model, p);
    struct arrivals a = {.next = 0};
    struct ek_generations from = {.next = arrive, .ended = leave, .user = &a};

    for (int i = 0; i < PROMPTS; i++)
        a.all[i] = (struct ek_generation){.prompt = prompts[i],
                                          .opt = {.sampling = {i % 2 * 0.8, 40, 0.95, 0.01, 70 + i},
                                                  .max_tokens = 5 + 7 * (uint32_t)i}};
    ck_ok(ek_generate_stream(e, &from));
    ck_assert_uint_eq(a.ended, PROMPTS);
    ck_assert_uint_gt(a.most, 1);
    ck_assert_uint_le(a.most, f[1]);
    for (int i = 0; i < PROMPTS; i++) {
        struct ek_completion *want = NULL, *got = &a.all[i].out;
        ck_ok(ek_generate(e, &prompts[i], 1, &a.all[i].opt, &want, NULL));
        ck_assert_uint_eq(got->n, want->n);
        ck_assert_int_eq(got->finish, want->finish);
        ck_assert_mem_eq(got->ids, want->ids, got->n * sizeof(*got->ids));
        ek_completions_free(want, 1);
        free(got->ids);
    }
    ek_engine_close(e);
    ek_plan_free(p);
}
END_TEST

/* ---- penalties */
START_TEST(penalties_that_take_nothing_change_nothing)
{
    static const struct ek_penalties none = EK_PENALTIES_NONE;

    for (int k = 0; k < 2; k++) {
        struct ek_generate_options opt = {.sampling = {k * 0.8, 40, 0.95, 0.01, 77},
                                          .max_tokens = 20};
        struct ek_completion *want = generate(plan_of(2, 3, 2, 16), &opt, NULL), *got;
        opt.penalties = &none;
        got = generate(plan_of(2, 3, 2, 16), &opt, NULL);
        must_be_equal(got, want);
        ek_completions_free(got, PROMPTS);
        ek_completions_free(want, PROMPTS);
    }
}
END_TEST

static const struct {
    struct ek_penalties p;
    bool with_prompt; /* no token of the prompt is said either */
} penalties[] = {{{.repetition = 1, .presence = 1000}, false},
                 {{.repetition = 1, .frequency = 1000}, false},
                 {{.repetition = 1e6f, .presence = 1000}, true}};

/* One that the others do not have: no token is said twice by it, what they say stays. */
START_TEST(a_penalty_keeps_its_sequence_from_saying_a_token_again)
{
    struct ek_plan *p = plan_of(2, 3, 2, 16);
    struct ek_engine *e = open_engine(model, p);
    struct arrivals a = {.next = 0};
    struct ek_generations from = {.next = arrive, .ended = leave, .user = &a};
    const struct ek_completion *one = &a.all[2].out;
    const struct ek_prompt *said = &prompts[2];

    for (int i = 0; i < PROMPTS; i++)
        a.all[i] = (struct ek_generation){.prompt = prompts[i],
                                          .opt = {.sampling = {0.8 * (i % 2), 0, 1, 0, 7},
                                                  .max_tokens = 40}};
    a.all[2].opt.penalties = &penalties[_i].p;
    ck_ok(ek_generate_stream(e, &from));
    ck_assert_uint_eq(one->n, 40);
    for (size_t i = 0; i < one->n; i++) {
        for (size_t k = 0; k < i; k++)
            ck_assert_int_ne(one->ids[i], one->ids[k]);
        for (size_t k = 0; penalties[_i].with_prompt && k < said->n; k++)
            ck_assert_int_ne(one->ids[i], said->ids[k]);
    }
    for (int i = 0; i < PROMPTS; i++) {
        struct ek_completion *want = NULL;
        ck_ok(ek_generate(e, &prompts[i], 1, &a.all[i].opt, &want, NULL));
        ck_assert_mem_eq(a.all[i].out.ids, want->ids, want->n * sizeof(*want->ids));
        ek_completions_free(want, 1);
        free(a.all[i].out.ids);
    }
    ek_engine_close(e);
    ek_plan_free(p);
}
END_TEST

START_TEST(a_bias_makes_a_token_win_and_one_beyond_the_vocabulary_is_refused)
{
    struct ek_bias bias = {.id = 123, .add = 1000};
    const struct ek_penalties p = {.biases = &bias, .n_biases = 1, .repetition = 1};
    struct ek_generate_options opt = {
        .sampling = EK_SAMPLING_GREEDY, .max_tokens = 5, .penalties = &p};
    struct ek_plan *plan = plan_of(1, 2, 1, 16);
    struct ek_engine *e = open_engine(model, plan);
    struct ek_completion *c = NULL;

    ck_ok(ek_generate(e, prompts, 2, &opt, &c, NULL));
    for (size_t i = 0; i < 5; i++)
        ck_assert(c[0].ids[i] == 123 && c[1].ids[i] == 123);
    ek_completions_free(c, 2);
    bias.id = (int32_t)model->config.vocab;
    ck_assert_int_eq(ek_generate(e, prompts, 2, &opt, &c, NULL), EK_EUSAGE);
    ek_engine_close(e);
    ek_plan_free(plan);
}
END_TEST

/* ---- prompts that go on from others */
enum { TURNS = 6, FIRST = 40, ANSWERED = 20 };

struct talk {
    struct ek_generation turns[TURNS];
    int32_t ids[TURNS][128];
    size_t next;
};

/* One after another: the next one's prompt may be made of what this one was answered. */
static enum ek_status next_turn(void *user, bool wait, struct ek_generation **out)
{
    struct talk *t = user;

    *out = wait && t->next < TURNS ? &t->turns[t->next++] : NULL;
    return EK_OK;
}

/* The second prompt is the first with its answer and more, as in a conversation; another is of
 * nothing that was there; others part from what was within an answer, within a prompt, at the last
 * token. Of the two places the third takes the empty one, the fourth what begins as it does for the
 * most part; the fifth, which would cost that more than it saves, shares a block of it. */
static void turn_ended(void *user, struct ek_generation *g)
{
    struct talk *t = user;
    int32_t *second = t->ids[1];

    if (g != &t->turns[0])
        return;
    memcpy(second, t->ids[0], FIRST * sizeof(*second));
    memcpy(second + FIRST, g->out.ids, ANSWERED * sizeof(*second));
    for (int i = 3; i < TURNS; i++)
        memcpy(t->ids[i], second, sizeof(t->ids[i]));
    t->ids[3][50]++;
    t->ids[4][35]++;
}

static const struct {
    size_t n, kept;
} turns[TURNS] = {{FIRST, 0}, {70, FIRST + ANSWERED - 1}, {33, 0}, {70, 50}, {70, 32}, {36, 35}};

static void make_turns(struct talk *t, const struct ek_model *m)
{
    for (uint64_t i = 0; i < TURNS; i++) {
        int32_t *some = random_ids(m, 128, 90 + i);
        memcpy(t->ids[i], some, sizeof(t->ids[i]));
        free(some);
        t->turns[i] =
            (struct ek_generation){.prompt = {.ids = t->ids[i], .n = turns[i].n},
                                   .opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = ANSWERED}};
    }
    t->ids[2][0] = t->ids[0][0] + 1; /* else it might begin alike */
}

/* The same tokens as the prompt gives alone; frees them. */
static void hold_alone(struct ek_engine *e, const struct ek_prompt *p,
                       const struct ek_generate_options *opt, struct ek_completion *got)
{
    struct ek_completion *want = NULL;

    ck_ok(ek_generate(e, p, 1, opt, &want, NULL));
    ck_assert_uint_eq(got->n, want->n);
    ck_assert_mem_eq(got->ids, want->ids, got->n * sizeof(*got->ids));
    ek_completions_free(want, 1);
    free(got->ids);
}

START_TEST(a_prompt_that_begins_as_another_did_is_computed_from_where_they_part)
{
    static const char *const names[] = {"llama-gqa-tied", "qwen2-tied", "deepseek-v2-lite",
                                        "qwen2.5-vl"};
    struct ek_model *m = fixture_model(names[_i]);
    struct ek_plan *p = one_device_plan(m);
    struct talk t = {.next = 0};
    struct ek_generations from = {.next = next_turn, .ended = turn_ended, .user = &t};
    struct ek_engine *e;

    p->batch = 2;
    e = open_engine(m, p);
    make_turns(&t, m);
    ck_ok(ek_generate_stream(e, &from));
    for (int i = 0; i < TURNS; i++) {
        ck_assert_msg(t.turns[i].kept == turns[i].kept, "turn %d: %zu kept", i, t.turns[i].kept);
        hold_alone(e, &t.turns[i].prompt, &t.turns[i].opt, &t.turns[i].out);
    }
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* ---- prompts that begin alike, at once and in turns */
enum { CHATS = 8, HEAD = 70 };

struct chats {
    struct ek_generation all[CHATS];
    int32_t ids[CHATS][128];
    size_t next, at_once;
};

/* So many at once, then one after another. */
static enum ek_status next_chat(void *user, bool wait, struct ek_generation **out)
{
    struct chats *c = user;

    *out = c->next < CHATS && (wait || c->next < c->at_once) ? &c->all[c->next++] : NULL;
    return EK_OK;
}

static void chat_ended(void *user, struct ek_generation *g)
{
    (void)user;
    (void)g;
}

/* The first three are one prompt, drawn three times. The fourth has the head alone in common with
 * them and a place of its own; the fifth and the sixth go on from the first and from the fourth,
 * which are still there; the seventh takes the second's place, and parts from it within a block
 * that others have too; the last goes on from the fifth. */
static const struct {
    size_t n, parts, kept;
    uint64_t own; /* seed of what stands behind the part that all have */
} chats[CHATS] = {{100, 100, 0, 60},  {100, 100, 96, 61},  {100, 100, 96, 62},
                  {90, HEAD, 64, 63}, {110, 100, 100, 64}, {112, HEAD, 90, 63},
                  {100, 40, 32, 66},  {116, 100, 110, 64}};

static void make_chats(struct chats *c, const struct ek_model *m)
{
    int32_t *base = random_ids(m, 128, 5);

    for (uint64_t i = 0; i < CHATS; i++) {
        int32_t *own = random_ids(m, 128, chats[i].own);
        memcpy(c->ids[i], own, sizeof(c->ids[i]));
        memcpy(c->ids[i], base, chats[i].parts * sizeof(*base));
        c->all[i] = (struct ek_generation){.prompt = {.ids = c->ids[i], .n = chats[i].n},
                                           .opt = {.sampling = {i < 3 ? 0.8 : 0, 40, 1, 0, 70 + i},
                                                   .max_tokens = 8}};
        free(own);
    }
    free(base);
}

/* On one device, or two that work on chunks behind one another. */
static struct ek_plan *plan_of_chats(const struct ek_model *m, bool two)
{
    const uint32_t cuts[] = {3, (uint32_t)m->n_modules};
    const struct plan_shape shape = {.n_devices = two ? 2 : 1,
                                     .n_stages = two ? 2 : 1,
                                     .cuts = two ? cuts : cuts + 1,
                                     .batch = 4,
                                     .chunk = 16,
                                     .micro_batches = two ? 2 : 1};

    return make_plan(m, &shape);
}

START_TEST(prompts_that_begin_alike_share_what_is_computed_once)
{
    static const char *const names[] = {"llama-gqa-tied", "deepseek-v2-lite", "qwen2.5-vl"};
    struct ek_model *m = fixture_model(names[_i / 2]);
    struct ek_plan *p = plan_of_chats(m, _i % 2);
    struct ek_engine *e = open_engine(m, p);
    struct chats c = {.at_once = 3};
    struct ek_generations from = {.next = next_chat, .ended = chat_ended, .user = &c};

    make_chats(&c, m);
    ck_ok(ek_generate_stream(e, &from));
    for (int i = 0; i < CHATS; i++) {
        ck_assert_msg(c.all[i].kept == chats[i].kept, "chat %d: %zu kept", i, c.all[i].kept);
        hold_alone(e, &c.all[i].prompt, &c.all[i].opt, &c.all[i].out);
    }
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

/* Two conversations at two places; an answer of the newer is asked for anew, with an end of its
 * own: the older is still there. */
START_TEST(an_answer_that_is_made_anew_takes_the_place_of_the_old_one)
{
    static const size_t kept[] = {0, 0, 59, 59};
    struct ek_model *m = fixture_model("llama-gqa-tied");
    struct ek_plan *p = one_device_plan(m);
    struct chats c = {.next = CHATS - 4};
    struct ek_generations from = {.next = next_chat, .ended = chat_ended, .user = &c};
    int32_t *both = random_ids(m, 120, 3);
    struct ek_engine *e;

    both[60] = both[0] + 1; /* they do not begin alike */
    for (int i = 0; i < 4; i++)
        c.all[CHATS - 4 + i] =
            (struct ek_generation){.prompt = {.ids = both + (i % 3 ? 60 : 0), .n = 60},
                                   .opt = {.sampling = EK_SAMPLING_GREEDY, .max_tokens = 40}};
    p->batch = 2;
    e = open_engine(m, p);
    ck_ok(ek_generate_stream(e, &from));
    for (int i = 0; i < 4; i++) {
        ck_assert_uint_eq(c.all[CHATS - 4 + i].kept, kept[i]);
        free(c.all[CHATS - 4 + i].out.ids);
    }
    free(both);
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
}
END_TEST

START_TEST(the_benchmark_times_every_part)
{
    struct ek_bench_options opt = {.batch = 4, .prompt = 40, .generate = 9, .repeats = 2};
    struct ek_plan *p = plan_of(2, 5, 2, 16);
    struct ek_engine *e = open_engine(model, p);
    struct ek_bench_result r;

    ck_ok(ek_bench_run(e, &opt, &r));
    ck_assert_uint_eq(r.n_stages, 2);
    ck_assert_uint_eq(r.n_devices, 2);
    ck_assert_uint_eq(r.prefill_s.n, 2);
    ck_assert_uint_eq(r.decode_s.n, 2 * 8);
    ck_assert_double_gt(r.decode_s.min, 0);
    ck_assert(r.decode_s.min <= r.decode_s.median && r.decode_s.median <= r.decode_s.max);
    ck_assert_double_gt(r.decode_total_s, 0);
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_uint_eq(r.prefill[i].tokens, 2 * 160);
        ck_assert_uint_eq(r.prefill[i].steps, 2 * 10);
        ck_assert_uint_eq(r.decode[i].tokens, 2 * 8 * 4);
        ck_assert_uint_eq(r.decode[i].steps, 2 * 8 * 2); /* two groups */
        ck_assert_double_gt(r.decode[i].busy_s, 0);
        ck_assert_uint_eq(r.stage_decode_s[i].n, 2);
        ck_assert_double_eq_tol(r.stage_decode_s[i].mean * 16, r.decode[i].busy_s / 2, 1e-9);
        ck_assert_double_eq_tol(r.stage_prefill_s[i].mean * 2, r.prefill[i].busy_s, 1e-9);
        ck_assert_uint_gt(r.usage[i][EK_TAG_WEIGHTS].peak, 0);
    }
    ek_bench_result_clear(&r);
    opt.batch = 6;
    ck_assert_int_eq(ek_bench_run(e, &opt, &r), EK_EUSAGE);
    opt.batch = 1, opt.prompt = 97;
    ck_assert_int_eq(ek_bench_run(e, &opt, &r), EK_EUSAGE);
    ek_engine_close(e);
    ek_plan_free(p);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("generate");
    TCase *tc = tcase_create("generate");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, make_prompts, free_prompts);
    tcase_add_test(tc, the_tokens_do_not_depend_on_devices_groups_or_chunks);
    tcase_add_test(tc, greedy_generation_equals_teacher_forcing);
    tcase_add_test(tc, a_stop_id_ends_its_sequence_alone);
    tcase_add_test(tc, a_full_cache_holds_nobody_up_who_ends_in_time);
    tcase_add_test(tc, generation_ends_where_the_context_does);
    tcase_add_test(tc, tokens_are_streamed_and_a_callback_ends_its_sequence);
    tcase_add_test(tc, an_interrupt_gives_what_there_is_and_frees_the_engine);
    tcase_add_test(tc, impossible_requests_are_refused);
    tcase_add_loop_test(tc, prompts_that_join_others_get_the_answer_that_they_get_alone, 0, 3);
    tcase_add_test(tc, penalties_that_take_nothing_change_nothing);
    tcase_add_loop_test(tc, a_penalty_keeps_its_sequence_from_saying_a_token_again, 0,
                        EK_ARRAY_LEN(penalties));
    tcase_add_test(tc, a_bias_makes_a_token_win_and_one_beyond_the_vocabulary_is_refused);
    tcase_add_loop_test(tc, a_prompt_that_begins_as_another_did_is_computed_from_where_they_part, 0,
                        4);
    tcase_add_loop_test(tc, prompts_that_begin_alike_share_what_is_computed_once, 0, 6);
    tcase_add_test(tc, an_answer_that_is_made_anew_takes_the_place_of_the_old_one);
    tcase_add_test(tc, the_benchmark_times_every_part);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
