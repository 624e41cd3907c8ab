/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures and the prompts that hold them: decoding (JPEG, PNG), Pillow's resizing, the processors
 * of DeepSeek-VL2 and Qwen2.5-VL, their token layout and positions. Computes on the host alone; the
 * towers that take the patches are the runtime's. Part of model/; include model/model.h from
 * outside. Facts and rules: docs/models.md.
 */
#ifndef EK_MODEL_IMAGE_H
#define EK_MODEL_IMAGE_H

#include "model/tokenizer.h"

/* ---- Pictures ----------------------------------------------------------------------------------
 */
#define EK_IMAGE_SIDE_MAX   16384u
#define EK_IMAGE_PIXELS_MAX ((uint64_t)64 << 20)
#define EK_IMAGE_SCANS_MAX  100 /* of a progressive JPEG */
#define EK_IMAGE_FILE_MAX   ((size_t)256 << 20)

struct ek_image {
    uint8_t *rgb; /* [height][width][3]; malloc'd */
    uint32_t width, height;
};
struct ek_image_options {
    bool white;   /* compose transparent pictures on white (qwen-vl-utils); else alpha is dropped */
    bool upright; /* turn as EXIF says (transformers' load_image); else as stored (VL2) */
};

/* Decodes a JPEG or PNG as Pillow's convert("RGB") does. Sizes are held against the limits above
 * before a pixel is decoded; damaged or truncated files are refused. options NULL: none.
 * Freed with ek_image_free. */
enum ek_status ek_image_read(const char *path, const struct ek_image_options *options,
                             struct ek_image *out);
/* The same from n bytes; where names them in messages. */
enum ek_status ek_image_decode(const void *data, size_t n, const char *where,
                               const struct ek_image_options *options, struct ek_image *out);
/* Zeroed picture of a size within the limits. */
enum ek_status ek_image_new(uint32_t width, uint32_t height, struct ek_image *out);
void ek_image_free(struct ek_image *image); /* zeroes it; a zeroed one is fine */

/* Pillow's resize(BICUBIC), bit for bit (of Pillow <= 12.0: rows first, then columns). */
enum ek_status ek_image_resize(const struct ek_image *in, uint32_t width, uint32_t height,
                               struct ek_image *out);
/* Pillow's ImageOps.pad(BICUBIC): fitted inside, centred on fill. */
enum ek_status ek_image_pad(const struct ek_image *in, uint32_t width, uint32_t height,
                            const uint8_t fill[3], struct ek_image *out);

/* ---- A model's processor -----------------------------------------------------------------------
 * Read from config.json, processor_config.json (VL2), preprocessor_config.json (Qwen) beside the
 * checkpoint, with the published values for what they leave out. */
#define EK_VL_CANDIDATES_MAX 256
#define EK_VL_ITEMS_MAX      1024 /* pictures and videos of one prompt */
#define EK_VL_FRAMES_MAX     4096 /* of one video */

struct ek_model;
struct ek_vl_rules {
    int kind; /* enum ek_vision_kind, never EK_VISION_NONE */
    uint32_t patch, merge, temporal;
    float mean[3], std[3];
    struct ek_image_options decode; /* how the official processor opens files */
    int32_t image_id, video_id;     /* placeholder tokens; -1: none */
    /* VL2 */
    uint32_t tile;                                              /* pixels a side: 384 */
    uint32_t candidates[EK_VL_CANDIDATES_MAX][2], n_candidates; /* width, height */
    uint8_t fill[3];
    bool global_last;  /* global_view_pos "tail" */
    bool repeat_tiles; /* encode the local view of 1 x 1 tiles, equal to the global one, again as
                        * the official code does (for traces); else t is 1 and both use it */
    /* Qwen */
    uint64_t min_pixels, max_pixels;
    uint32_t window; /* merged cells a side of a window: 4 */
    double tokens_per_second;
};
/* EK_EUNSUPPORTED when the model takes no pictures. */
enum ek_status ek_vl_rules_open(const struct ek_model *m, struct ek_vl_rules *out);

/* ---- What the tower is given -------------------------------------------------------------------
 */
/* One picture or video. Rows of pixels are patches, normalised; a row is what the tower's first
 * matrix is multiplied with, in the order of its flattened weight: VL2 [3][patch][patch], Qwen
 * [3][temporal][patch][patch].
 * VL2: t tiles (global view, then local ones, h rows of w tiles) of g*g patches each, raster order,
 *   g = tile / patch. The projector makes ceil(g / merge)^2 rows a tile.
 * Qwen: t slices of h*w patches; order: slice, block row, block column, then row and column inside
 *   the merge*merge block. The merger makes one row of every merge*merge rows. */
struct ek_visual {
    float *pixels; /* [n_rows][row_size]; malloc'd */
    uint64_t n_rows;
    uint32_t row_size;
    uint32_t t, h, w;
    uint32_t n_features; /* rows after projector or merger */
    uint32_t n_tokens;   /* positions of the prompt: VL2's newlines and separator included */
    bool video;
    double seconds_per_slice;     /* of a video; 0 for pictures */
    uint32_t width, height;       /* of the picture as it was given: boxes refer to it */
    uint32_t to_width, to_height; /* resized: VL2's candidate, Qwen's multiple of patch*merge */
};
struct ek_vl_item {
    const struct ek_image *frames; /* borrowed; all of one size */
    size_t n_frames;               /* 1 for pictures */
    bool video;                    /* Qwen only */
    double seconds_per_frame;      /* of a video: 1 / frames a second, > 0 */
};
/* Sizes and counts without pixels (out->pixels NULL): what planning and limits need. n_items: of
 * the whole prompt, since VL2 tiles only when there are at most two. */
enum ek_status ek_vl_measure(const struct ek_vl_rules *rules, uint32_t width, uint32_t height,
                             size_t n_frames, bool video, size_t n_items, struct ek_visual *out);
/* The same with pixels. Freed with ek_visual_free. */
enum ek_status ek_vl_prepare(const struct ek_vl_rules *rules, const struct ek_vl_item *item,
                             size_t n_items, struct ek_visual *out);
void ek_visual_free(struct ek_visual *v); /* zeroes it; a zeroed one is fine */

/* Qwen: coordinates of the tower's rows for its rotary embedding (in patches), and its windows.
 * Cells are merged cells (merge*merge rows) in raster order, slice by slice. */
struct ek_vl_geometry {
    uint32_t n_rows, n_cells;
    int32_t *positions;           /* [2][n_rows]: h, then w of every row */
    uint32_t *order;              /* [n_cells]: the cell at each place of the windowed order */
    uint32_t *windows, n_windows; /* [n_windows + 1]: first row of each, in windowed order */
    uint32_t rows_per_slice;      /* full attention stays within a slice; windows never cross */
};
enum ek_status ek_vl_geometry(const struct ek_vl_rules *rules, const struct ek_visual *v,
                              struct ek_vl_geometry *out);
void ek_vl_geometry_free(struct ek_vl_geometry *g);

/* ---- The prompt --------------------------------------------------------------------------------
 */
enum ek_vl_source {
    EK_VL_FEATURE,  /* row of the projector's or merger's output, counted over all visuals */
    EK_VL_NEWLINE,  /* VL2's image_newline vector */
    EK_VL_SEPARATOR /* VL2's view_seperator vector */
};
/* The token at this place is not looked up in the embedding but comes from here. */
struct ek_vl_row {
    uint32_t token;
    uint8_t source; /* enum ek_vl_source */
    uint32_t row;   /* with EK_VL_FEATURE */
};
struct ek_vl_prompt {
    int32_t *ids; /* placeholders expanded */
    size_t n_ids;
    int32_t *positions;     /* [3][n_ids], rows t, h, w; NULL: ordinary positions 0, 1, ... */
    int32_t delta;          /* the position (all rows) of token i >= n_ids is i + delta */
    struct ek_vl_row *rows; /* ascending by token */
    size_t n_rows;
    struct ek_visual
        *visuals; /* in the order of their placeholders; NULL: borrowed by the caller */
    size_t n_visuals;
};
/* ids holds one placeholder for every visual, or is expanded already (a run of n_tokens for each):
 * anything else is refused with both numbers, as are prompts of more than max_tokens (0: no limit).
 * Images and videos are matched by kind, in order. Takes nothing over: out->visuals stays NULL.
 * Freed with ek_vl_prompt_free. */
enum ek_status ek_vl_layout(const struct ek_vl_rules *rules, const int32_t *ids, size_t n_ids,
                            const struct ek_visual *visuals, size_t n_visuals, uint64_t max_tokens,
                            struct ek_vl_prompt *out);
/* ek_vl_prepare of every item (which stay the caller's), then ek_vl_layout; sizes are checked
 * before pixels are made. out->visuals are the prompt's. */
enum ek_status ek_vl_prompt(const struct ek_vl_rules *rules, const int32_t *ids, size_t n_ids,
                            const struct ek_vl_item *items, size_t n_items, uint64_t max_tokens,
                            struct ek_vl_prompt *out);
void ek_vl_prompt_free(struct ek_vl_prompt *p); /* zeroes it; a zeroed one is fine */

/* Like ek_chat_encode for conversations with pictures: every "<image>" in a user's message is one
 * (Qwen: also "<video>"), n_images and n_videos in all; other numbers are refused. When no message
 * names any, they stand before the text of the first user's message. ids have one placeholder
 * each. */
enum ek_status ek_vl_chat_encode(const struct ek_tokenizer *t, const struct ek_vl_rules *rules,
                                 const struct ek_message *messages, size_t n, size_t n_images,
                                 size_t n_videos, int32_t **ids, size_t *n_ids);

/* ---- Grounding ---------------------------------------------------------------------------------
 */
/* Finds <|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|> in VL2's answer (decoded with
 * special tokens): [{"label", "boxes": [[x1, y1, x2, y2]], "pixels": [[...]]}], boxes on the 0..999
 * grid, pixels (width > 0) of that picture. Malformed pieces are left out. *out: new reference. */
enum ek_status ek_grounding_parse(const char *text, uint32_t width, uint32_t height, json_t **out);

#endif
