/* SPDX-License-Identifier: Apache-2.0
 *
 * A request's prompt: token ids, and pictures that have been through the tower.
 */
#ifndef EK_SERVER_PROMPT_H
#define EK_SERVER_PROMPT_H

#include "server/request.h"

struct server_prompt {
    int32_t *ids;
    size_t n_ids;
    struct ek_image *images; /* [n_images], the request's */
    size_t n_images;
    struct ek_vision_prompt vision;
    struct ek_prompt prompt; /* what is generated from; points into these */
};
/* The request's prompt i. rules: the model's, NULL when it takes no pictures. EK_NO when the prompt
 * is longer than the engine's context. Closed with server_prompt_close, also where it fails. */
enum ek_status server_prompt_open(struct ek_engine *e, const struct ek_tokenizer *t,
                                  const struct ek_vl_rules *rules, const struct request *r,
                                  size_t i, struct server_prompt *p);
void server_prompt_close(struct server_prompt *p); /* zeroes it; a zeroed one is fine */

#endif
