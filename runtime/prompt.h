/* SPDX-License-Identifier: Apache-2.0
 *
 * Pieces of a prompt that holds pictures, for steps; and the pictures of a reference.
 */
#ifndef EK_RUNTIME_PROMPT_H
#define EK_RUNTIME_PROMPT_H

#include "runtime/runtime.h"

/* Rows of tokens [at, at + n) of the prompt, appended to rows; base: the first of these tokens in
 * the step. Returns how many. */
uint32_t prompt_embeds(const struct ek_prompt *p, size_t at, uint32_t n, uint32_t base,
                       struct ek_embed_row *rows);
/* Positions of tokens [at, at + n), those behind the prompt's too: rows t, h, w, ld apart. */
void prompt_positions(const struct ek_prompt *p, size_t at, uint32_t n, int32_t *out, size_t ld);
/* The model has positions of three rows. */
bool prompt_has_rows(const struct ek_model *m);

/* ---- compare.c */
/* As ek_engine_prefill, of a prompt that may hold pictures. */
enum ek_status prompt_prefill(struct ek_engine *e, uint32_t seq, const struct ek_prompt *p,
                              enum ek_logits want, float *logits, int32_t *argmax);
/* The prompt of a reference: its pictures prepared and encoded. EK_NO where they do not give its
 * tokens or positions. Closed with ek_vision_prompt_close. */
enum ek_status prompt_of_reference(struct ek_engine *e, const struct ek_reference *r,
                                   struct ek_vision_prompt *out);

/* ---- reference_images.c */
/* image.N, video.N and position_ids of an opened reference file into r. */
enum ek_status reference_read_images(const char *path, struct ek_safetensors *file,
                                     struct ek_reference *r);
void reference_free_images(struct ek_reference *r);

#endif
