/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures of run: files given by --image and --frame, until they are rows of a prompt. */
#ifndef EK_CLI_PICTURES_H
#define EK_CLI_PICTURES_H

#include "cli/cli.h"
#include "runtime/runtime.h"

struct ek_pictures {
    struct ek_vl_rules rules;
    struct ek_image *frames; /* of all items, in order */
    size_t n_frames;
    struct ek_vl_item items[EK_MAX_VALUES]; /* pictures, then the video */
    size_t n_items, n_images, n_videos;
    struct ek_vision_prompt prompt;
    double seconds; /* that preparing and encoding took */
};

/* True when the arguments name any. */
bool ek_pictures_given(const struct ek_args *args);
/* Reads the files as the model's processor does. On failure *p is to be closed all the same. */
enum ek_status ek_pictures_open(const struct ek_args *args, const struct ek_model *m,
                                struct ek_pictures *p);
/* Tokens of a prompt of n_ids with a placeholder for every picture. */
enum ek_status ek_pictures_tokens(const struct ek_pictures *p, size_t n_ids, uint64_t *out);
/* Prepares, encodes and lays out: p->prompt.prompt is what is generated from. */
enum ek_status ek_pictures_encode(struct ek_pictures *p, struct ek_engine *e, const int32_t *ids,
                                  size_t n_ids);
/* [{"width", "height", "resized": [w, h], "tokens"}] */
json_t *ek_pictures_json(const struct ek_pictures *p);
void ek_pictures_close(struct ek_pictures *p);

#endif
