/* SPDX-License-Identifier: Apache-2.0
 *
 * A wave: as many prompts as the engine has sequences, prefilled together, decoded in groups. The
 * one way that generation and the benchmark run.
 */
#ifndef EK_RUNTIME_WAVE_H
#define EK_RUNTIME_WAVE_H

#include "runtime/history.h"

struct wave_seq {
    const struct ek_prompt *prompt;
    const struct ek_generate_options *opt; /* set by wave_open */
    size_t index;                          /* of the prompt, for the callback */
    uint32_t slot;                         /* of the engine */
    uint64_t random;                       /* the stream of draws */
    uint32_t *seen;                        /* as of ek_penalize; NULL: not asked for, yet */
    size_t filled;                         /* tokens of the prompt in the cache, or on their way */
    size_t held;    /* of them in steps that are submitted, so that others may share them */
    int32_t last;   /* newest token */
    uint32_t ahead; /* steps under way whose token of it is not known */
    bool open, running;
    struct ek_completion *out;
    struct ek_generation *generation; /* whose it is, in wave_stream */
    size_t cap;                       /* of out->ids */
};

#define WAVE_AHEAD 2 /* steps of a group under way: one follows the other on the devices */

struct wave_group {
    struct wave_step {
        uint64_t ticket;
        uint32_t n;        /* sequences in it */
        bool ids_only;     /* no sequence needs the logits here */
        uint32_t *members; /* [max members] which of the wave's */
    } steps[WAVE_AHEAD];
    uint64_t put, got;   /* steps submitted, and taken */
    uint32_t first, end; /* its part of the wave's sequences */
};

struct wave {
    struct ek_engine *e;
    const struct ek_generate_options *opt;
    struct wave_seq *seqs;
    struct history *past; /* [n] what ended last at each place; NULL: sequences come only once */
    uint64_t n_ended;     /* of them */
    uint32_t n, n_groups;
    struct wave_group *groups;
    uint32_t *slots, *counts; /* [n] scratch of a step */
    int32_t *tokens;          /* [most] tokens of a step */
    uint32_t *order;          /* [n] ring: sequences whose prompts wait, in the order they came */
    uint64_t n_queued;        /* put into it */
    bool draws;               /* on the device of the head; else (not greedy) from logits, here */
    float *row;               /* [vocab] logits with penalties; NULL: not asked for, yet */
    struct ek_draw *drawn;    /* [n] of a step */
    size_t most;
    int32_t *positions;        /* [3][most]; NULL: no prompt says any */
    struct ek_embed_row *rows; /* [most]; NULL: no prompt has pictures */
    double *round_s;           /* times of decode rounds, for the benchmark; NULL: not asked */
    size_t n_rounds, max_rounds;
};

/* seqs[i].prompt, index and out are set; opens a sequence for each. */
enum ek_status wave_open(struct wave *w, struct ek_engine *e, const struct ek_generate_options *opt,
                         struct wave_seq *seqs, uint32_t n);
void wave_close(struct wave *w); /* frees all but seqs and their completions */
/* Prompts in chunks; the first token of each. */
enum ek_status wave_prefill(struct wave *w);
/* All further tokens. */
enum ek_status wave_decode(struct wave *w);
/* ek_generate_stream. */
enum ek_status wave_stream(struct ek_engine *e, const struct ek_generations *from);

#endif
