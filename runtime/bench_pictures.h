/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures of the benchmark: random pixels of the size asked for, before each prompt's tokens.
 */
#ifndef EK_RUNTIME_BENCH_PICTURES_H
#define EK_RUNTIME_BENCH_PICTURES_H

#include "runtime/runtime.h"

struct bench_pictures {
    struct ek_vl_rules rules;
    struct ek_image image; /* every picture is this one */
    struct ek_vl_prompt vl;
    struct ek_embeds embeds; /* of the last prompt that was encoded */
    double prepare_s;        /* of one picture */
};
/* n pictures of exactly width x height pixels, or (0) of about so many tokens each, before n_text
 * tokens. */
enum ek_status bench_pictures_open(struct ek_engine *e, uint32_t n, uint32_t tokens, uint32_t width,
                                   uint32_t height, uint32_t n_text, uint64_t seed,
                                   struct bench_pictures *out);
void bench_pictures_close(struct bench_pictures *b); /* zeroes it; a zeroed one is fine */
/* The pictures of one prompt through the tower. */
enum ek_status bench_pictures_encode(struct ek_engine *e, struct bench_pictures *b);

#endif
