/* SPDX-License-Identifier: Apache-2.0
 *
 * Generation: prompts in waves of as many as the engine has sequences.
 */
#include "runtime/wave.h"

#include <stdlib.h>

void ek_completions_free(struct ek_completion *c, size_t n)
{
    for (size_t i = 0; c && i < n; i++)
        free(c[i].ids);
    free(c);
}

static enum ek_status check(const struct ek_engine *e, const struct ek_prompt *prompts, size_t n,
                            const struct ek_generate_options *opt)
{
    uint32_t context = ek_engine_max_context(e);

    if (n == 0)
        return ek_error(EK_EUSAGE, "generate: no prompt");
    if (opt->max_tokens == 0)
        return ek_error(EK_EUSAGE, "generate: max_tokens must be at least 1");
    for (size_t i = 0; i < n; i++)
        if (prompts[i].n == 0 || prompts[i].n > context)
            return ek_error(EK_EUSAGE,
                            "generate: prompt %zu has %zu tokens; the context holds 1 to %u", i,
                            prompts[i].n, context);
    return opt->penalties ? ek_penalties_check(opt->penalties, ek_engine_model(e)->config.vocab)
                          : EK_OK;
}

static void add_timing(struct ek_generate_timing *t, const struct wave *w, uint64_t start,
                       uint64_t filled, uint64_t *rounds)
{
    t->prefill_s += (double)(filled - start) * 1e-9;
    t->decode_s += (double)(ek_now_ns() - filled) * 1e-9;
    *rounds += w->n_rounds;
    for (uint32_t i = 0; i < w->n; i++) {
        t->prompt_tokens += w->seqs[i].prompt->n;
        t->new_tokens += w->seqs[i].out->n;
    }
    t->decode_step_s = *rounds ? t->decode_s / (double)*rounds : 0;
}

static enum ek_status run_wave(struct ek_engine *e, const struct ek_generate_options *opt,
                               struct wave_seq *seqs, uint32_t n, struct ek_generate_timing *timing,
                               uint64_t *rounds)
{
    struct wave w;
    uint64_t start = ek_now_ns(), filled;
    enum ek_status st;

    EK_TRY(wave_open(&w, e, opt, seqs, n));
    st = wave_prefill(&w);
    filled = ek_now_ns();
    if (st == EK_OK)
        st = wave_decode(&w);
    add_timing(timing, &w, start, filled, rounds);
    wave_close(&w);
    return st;
}

enum ek_status ek_generate(struct ek_engine *e, const struct ek_prompt *prompts, size_t n,
                           const struct ek_generate_options *opt, struct ek_completion **out,
                           struct ek_generate_timing *timing)
{
    struct ek_generate_timing t = {0};
    struct ek_completion *done = NULL;
    struct wave_seq *seqs = NULL;
    uint32_t most = ek_engine_max_seqs(e);
    uint64_t rounds = 0;
    enum ek_status st = EK_OK;

    EK_TRY(check(e, prompts, n, opt));
    if ((done = ek_calloc(n, sizeof(*done))) == NULL ||
        (seqs = ek_calloc(n, sizeof(*seqs))) == NULL)
        st = EK_ENOMEM;
    for (size_t i = 0; st == EK_OK && i < n; i++) {
        seqs[i].prompt = &prompts[i];
        seqs[i].index = i;
        seqs[i].out = &done[i];
    }
    for (size_t at = 0; st == EK_OK && at < n; at += most)
        st = run_wave(e, opt, seqs + at, (uint32_t)(n - at < most ? n - at : most), &t, &rounds);
    free(seqs);
    if (st != EK_OK && st != EK_EINTR) {
        ek_completions_free(done, n);
        return st;
    }
    *out = done;
    if (timing != NULL)
        *timing = t;
    return st;
}

enum ek_status ek_generate_stream(struct ek_engine *e, const struct ek_generations *from)
{
    return wave_stream(e, from);
}
