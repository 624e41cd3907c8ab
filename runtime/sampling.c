/* SPDX-License-Identifier: Apache-2.0
 *
 * Penalties, in vLLM's order. Drawing a token: temperature, top-k, top-p, min-p, in the order and
 * with the meaning of Hugging Face's generate; then one draw from what is left, on the device that
 * has the logits or here.
 */
#include "runtime/runtime.h"

#include <math.h>

static enum ek_status check(const struct ek_sampling *s)
{
    if (!isfinite(s->temperature) || s->temperature < 0)
        return ek_error(EK_EUSAGE, "sampling: temperature must be 0 or more, got %g",
                        s->temperature);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return ek_error(EK_EUSAGE, "sampling: top_p must be above 0 and at most 1, got %g",
                        s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return ek_error(EK_EUSAGE, "sampling: min_p must be from 0 to 1, got %g", s->min_p);
    return EK_OK;
}

enum ek_status ek_sampling_draw(const struct ek_sampling *s, uint64_t *state, struct ek_draw *out)
{
    EK_TRY(check(s));
    *out = (struct ek_draw){.top_k = s->top_k, .top_p = (float)s->top_p, .min_p = (float)s->min_p};
    if (s->temperature > 0) {
        /* colder or hotter than a float can say: only the best, or all alike */
        out->scale = (float)fmax(fmin(M_LOG2E / s->temperature, 0x1p100), 0x1p-100);
        out->random = ek_random_u64(state);
    }
    return EK_OK;
}

enum ek_status ek_sample(const struct ek_sampling *s, const float *logits, uint32_t vocab,
                         uint64_t *state, int32_t *id)
{
    struct ek_draw draw;
    int32_t drawn;

    if (vocab == 0 || vocab > INT32_MAX)
        return ek_error(EK_EUSAGE, "sampling: vocabulary of %u", vocab);
    EK_TRY(ek_sampling_draw(s, state, &draw));
    EK_TRY(ek_draw_token(&draw, logits, vocab, &drawn));
    EK_TRY(ek_drawn_check(drawn));
    *id = drawn;
    return EK_OK;
}

enum ek_status ek_drawn_check(int32_t id)
{
    return id >= 0 ? EK_OK : ek_error(EK_EDEVICE, "sampling: the logits are not finite");
}

/* ---- Penalties */
enum ek_status ek_penalties_check(const struct ek_penalties *p, uint32_t vocab)
{
    if (!isfinite(p->frequency) || !isfinite(p->presence))
        return ek_error(EK_EUSAGE, "sampling: penalties of %g and %g, must be finite",
                        (double)p->frequency, (double)p->presence);
    if (!isfinite(p->repetition) || p->repetition <= 0)
        return ek_error(EK_EUSAGE, "sampling: a penalty of repetition of %g, must be above 0",
                        (double)p->repetition);
    for (size_t i = 0; i < p->n_biases; i++)
        if (p->biases[i].id < 0 || (uint32_t)p->biases[i].id >= vocab)
            return ek_error(EK_EUSAGE, "sampling: a bias for token %d, the vocabulary ends at %u",
                            p->biases[i].id, vocab);
    return EK_OK;
}

void ek_penalize(const struct ek_penalties *p, const uint32_t *seen, uint32_t vocab, float *logits)
{
    for (size_t i = 0; i < p->n_biases; i++)
        logits[p->biases[i].id] += p->biases[i].add;
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t times = seen[i] / 2;
        if (seen[i] > 0)
            logits[i] = logits[i] > 0 ? logits[i] / p->repetition : logits[i] * p->repetition;
        if (times > 0)
            logits[i] -= (float)times * p->frequency + p->presence;
    }
}
