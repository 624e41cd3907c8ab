/* SPDX-License-Identifier: Apache-2.0
 *
 * What the cache holds of a sequence that has ended: a prompt that begins with the same tokens, as
 * a conversation's next turn does, goes on from there.
 */
#ifndef EK_RUNTIME_HISTORY_H
#define EK_RUNTIME_HISTORY_H

#include "runtime/runtime.h"

struct history {
    bool open;       /* slot is a sequence of the engine's, kept open */
    uint32_t slot;   /* its cache holds ... */
    uint64_t *names; /* ... these tokens, and maybe more behind them */
    size_t n, cap;
    uint64_t ended; /* when, in the order of ends; 0: never used */
};

/* Remembers a prompt and its answer, whose last token the cache does not hold: as far as names say
 * what the cache holds, so up to the first picture where the prompt has none. EK_ENOMEM: nothing is
 * remembered. */
enum ek_status history_keep(struct history *h, const struct ek_prompt *p,
                            const struct ek_completion *out);
/* How many of the prompt's tokens the cache holds, its last one never: something must be computed
 * to go on from. */
size_t history_common(const struct history *h, const struct ek_prompt *p);
/* How many tokens the prompt has in common with the first `held` of another, which does not end. */
size_t prompt_common(const struct ek_prompt *other, size_t held, const struct ek_prompt *p);

#endif
