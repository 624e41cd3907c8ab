/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside of the modules that see: the vision tower, whole or in parts, what projects its output to
 * embeddings, and the vectors between views. A tower runs on whole slices (VL2's tiles; an image or
 * two frames of Qwen2.5-VL), which never attend to one another.
 */
#ifndef EK_RUNTIME_VISION_H
#define EK_RUNTIME_VISION_H

#include "runtime/stage.h"

struct vision_block {
    float *norm1, *bias1, *norm2, *bias2; /* device, [width]; biases: VL2's layer norms */
    struct stage_linear qkv, o, up, down; /* up: gate and up of Qwen2.5-VL */
};

/* Byte offsets into the stage's arena, which the chain's activations use at other times. With R =
 * max_rows, F features of R rows, a = bytes of an activation. Parts differ in scratch alone, so a
 * stage of several takes what the largest of them takes. */
struct vision_arena {
    size_t x;       /* [R][width]: the residual stream, input of a stage that begins behind patches;
                     * in its place at the end [F][hidden]: features */
    size_t xn;      /* [R][width]: normalised; what VL2's tower gives to the projector */
    size_t scratch; /* pixels; qkv and attention's output; feed-forward; merged rows; in the end
                     * Qwen's features in the picture's order */
    size_t features; /* of scratch, [F][hidden] F32: what goes to the host (F32: where they are) */
    size_t ints;     /* I32: what vision_pack made */
    size_t bytes;
};

/* Qwen's feed-forward layer (3420 wide) is made so wide that this divides it, by zeros in its
 * weights: fast products read rows in pieces of 16 bytes. */
#define VISION_ALIGN 8u

enum { VISION_NEWLINE, VISION_SEPARATOR, N_VISION_VECTORS };

struct stage_vision {
    bool patches, merger, projector; /* parts that are here, with blocks [first_block, + n) */
    uint32_t first_block, n_blocks;
    uint32_t max_rows;                /* of the tower in one run */
    struct stage_linear patch;        /* pixels of a patch to its row */
    struct ek_mat pos;                /* VL2: embedding of the place in a tile, a table */
    struct vision_block *blocks;      /* [vision_layers], those of other stages empty */
    float *norm, *norm_bias;          /* VL2: after the last block; Qwen: before the merger */
    struct stage_linear merge[2];     /* of the merger or projector */
    float *vectors[N_VISION_VECTORS]; /* device, [hidden]; NULL: elsewhere */
    struct ek_rope rope;              /* Qwen: rows of h and w */
    struct vision_arena at;
    struct vision_look *look; /* look.c's picture; NULL: none yet */
};

/* ---- weights_vision.c */
/* fn over every matrix that is there; NULL frees them (and the blocks). */
enum ek_status vision_each_mat(struct ek_stage *s,
                               enum ek_status (*fn)(struct ek_device *dev, struct ek_mat *m));
enum ek_status vision_load_rope(struct ek_stage *s);

/* ---- vision.c */
/* Notes a visual module of the stage; makes s->vision. */
enum ek_status vision_scan(struct ek_stage *s, const struct ek_module *mod);
/* s->vision's max_rows and arena; EK_EUNSUPPORTED when the device lacks an operation. */
enum ek_status vision_lay_out(struct ek_stage *s);
void vision_free(struct ek_stage *s);

/* Whole slices of one picture as the device gets them. Qwen's rows are put in the order of their
 * windows there, and its features back. */
struct vision_pack {
    const float *pixels; /* [rows][row_size], the picture's own; NULL: it has none */
    uint32_t row_size;
    bool windowed; /* Qwen */
    int32_t *ints;
    size_t n_ints;
    /* where in ints; order: the row at each place of the windowed order, back: the feature there
     * that is each of the picture's (both Qwen); cells: rows of VL2's */
    size_t positions, order, slices, windows, back, cells;
    uint32_t first_row, rows, slice_rows, n_slices, n_windows, max_window, features;
};
/* Slices [first, first + n) of v, whose pixels are borrowed. g: NULL for VL2. */
enum ek_status vision_pack(const struct ek_config *c, const struct ek_visual *v,
                           const struct ek_vl_geometry *g, uint32_t first, uint32_t n,
                           struct vision_pack *out);
void vision_pack_free(struct vision_pack *p);
/* Rows of the tower in one run; rows and number of a picture's slices. */
uint32_t vision_max_rows(const struct ek_config *c, const struct ek_stage_options *o);
uint32_t vision_slice_rows(const struct ek_visual *v);
uint32_t vision_n_slices(const struct ek_visual *v);

/* ---- look.c */
void vision_look_free(struct vision_look *l); /* NULL is fine */

/* ---- modules_vision.c */
typedef enum ek_status (*vision_after_fn)(void *user, struct ek_stage *s, uint32_t block);
/* Runs the parts that the stage has over the pack: from its pixels, or from [rows][width] at x. The
 * output is at vision_output. after (may be NULL) is called behind every block, whose output is at
 * x, and as block vision_layers behind VL2's last norm, whose output is at xn. */
enum ek_status vision_run(struct ek_stage *s, const struct vision_pack *p, vision_after_fn after,
                          void *user);
/* Offset of what vision_run leaves: features, F32, or rows for the next part. */
size_t vision_output(const struct ek_stage *s);
static inline bool vision_makes_features(const struct ek_stage *s)
{
    return s->vision->projector || (s->vision->merger && s->m->config.vision == EK_VISION_QWEN25);
}
static inline bool vision_has_tower(const struct stage_vision *v)
{
    return v->patches || v->n_blocks > 0 || v->merger;
}
static inline bool vision_is_qwen(const struct ek_config *c)
{
    return c->vision == EK_VISION_QWEN25;
}
/* Width of a block's feed-forward layer as the device has it. */
static inline uint32_t vision_inner(const struct ek_config *c)
{
    return vision_is_qwen(c) ? (uint32_t)ek_round_up(c->vision_intermediate, VISION_ALIGN)
                             : c->vision_intermediate;
}
/* Patches a side and cells a side of VL2's tiles. */
static inline uint32_t vision_grid(const struct ek_config *c)
{
    return c->vision_image / c->vision_patch;
}
static inline uint32_t vision_cells(const struct ek_config *c)
{
    return (vision_grid(c) + c->vision_merge - 1) / c->vision_merge;
}
static inline uint32_t vision_row_size(const struct ek_config *c)
{
    return 3 * c->vision_temporal * c->vision_patch * c->vision_patch;
}

#endif
