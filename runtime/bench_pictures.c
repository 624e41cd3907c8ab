/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures of random pixels for the benchmark: a size for so many tokens, and what it takes to
 * prepare one.
 */
#include "runtime/bench_pictures.h"

#include <stdlib.h>

/* ---- a size for so many tokens */
static uint32_t apart(uint32_t a, uint32_t b)
{
    return a > b ? a - b : b - a;
}

/* Qwen: cells of merge x merge patches, at most twice as wide as high, as near to a square as the
 * number allows. */
static void size_of_cells(const struct ek_vl_rules *r, uint32_t tokens, uint32_t size[2])
{
    uint32_t side = r->patch * r->merge, best = UINT32_MAX;

    for (uint32_t h = 1; (uint64_t)h * h <= tokens; h++) {
        uint32_t w = (tokens + h / 2) / h;
        if (w > 2 * h && h > 1 && (uint64_t)(h + 1) * (h + 1) <= tokens)
            continue;
        if (apart(w * h, tokens) <= best) {
            best = apart(w * h, tokens);
            size[0] = w * side;
            size[1] = h * side;
        }
    }
}

/* VL2: the candidate of tiles with the nearest number of tokens. */
static enum ek_status size_of_tiles(const struct ek_vl_rules *r, uint32_t tokens, uint32_t n,
                                    uint32_t size[2])
{
    uint32_t best = UINT32_MAX;

    for (uint32_t i = 0; i < r->n_candidates; i++) {
        const uint32_t *c = r->candidates[i];
        struct ek_visual v;
        EK_TRY(ek_vl_measure(r, c[0], c[1], 1, false, n, &v));
        if (apart(v.n_tokens, tokens) < best) {
            best = apart(v.n_tokens, tokens);
            size[0] = c[0];
            size[1] = c[1];
        }
    }
    return EK_OK;
}

static enum ek_status find_size(const struct ek_vl_rules *r, uint32_t n, uint32_t tokens,
                                uint32_t size[2])
{
    if (size[0] == 0 && r->n_candidates == 0)
        size_of_cells(r, tokens, size);
    else if (size[0] == 0)
        EK_TRY(size_of_tiles(r, tokens, n, size));
    if ((uint64_t)size[0] * size[1] > EK_IMAGE_PIXELS_MAX)
        return ek_error(EK_EUSAGE, "bench: pictures of %u x %u pixels, at most %llu", size[0],
                        size[1], (unsigned long long)EK_IMAGE_PIXELS_MAX);
    return EK_OK;
}

enum ek_status ek_bench_picture_size(const struct ek_model *m, uint32_t n, uint32_t tokens,
                                     uint32_t size[2], uint32_t *image_tokens)
{
    struct ek_vl_rules r;
    struct ek_visual v;

    EK_TRY(ek_vl_rules_open(m, &r));
    EK_TRY(find_size(&r, n, tokens, size));
    EK_TRY(ek_vl_measure(&r, size[0], size[1], 1, false, n, &v));
    *image_tokens = v.n_tokens;
    return EK_OK;
}

static enum ek_status make_image(const struct ek_vl_rules *r, uint32_t tokens, uint32_t n,
                                 uint64_t *seed, struct ek_image *image)
{
    uint32_t size[2] = {image->width, image->height};
    size_t bytes;

    EK_TRY(find_size(r, n, tokens, size));
    image->width = size[0];
    image->height = size[1];
    bytes = (size_t)size[0] * size[1] * 3;
    if ((image->rgb = ek_calloc(bytes, 1)) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < bytes; i++)
        image->rgb[i] = (uint8_t)(ek_random_u64(seed) >> 56);
    return EK_OK;
}

/* ---- prompts */
/* Placeholders, then random tokens that are none. */
static int32_t *make_ids(const struct ek_vl_rules *r, uint32_t vocab, uint32_t n, uint32_t n_text,
                         uint64_t *seed)
{
    int32_t *ids = ek_calloc((size_t)n + n_text, sizeof(*ids));

    for (uint32_t i = 0; ids && i < n + n_text; i++) {
        int32_t id = (int32_t)(ek_random_u64(seed) % vocab);
        while (i >= n && (id == r->image_id || id == r->video_id))
            id = (int32_t)(ek_random_u64(seed) % vocab);
        ids[i] = i < n ? r->image_id : id;
    }
    return ids;
}

static enum ek_status lay_out(struct ek_engine *e, struct bench_pictures *b, uint32_t n,
                              uint32_t n_text, uint64_t *seed)
{
    uint32_t vocab = ek_engine_model(e)->config.vocab;
    struct ek_vl_item *items = ek_calloc(n, sizeof(*items));
    int32_t *ids = make_ids(&b->rules, vocab, n, n_text, seed);
    uint64_t begin = ek_now_ns();
    enum ek_status st = EK_ENOMEM;

    for (uint32_t i = 0; items && i < n; i++)
        items[i] = (struct ek_vl_item){.frames = &b->image, .n_frames = 1};
    if (items != NULL && ids != NULL)
        st = ek_vl_prompt(&b->rules, ids, (size_t)n + n_text, items, n, ek_engine_max_context(e),
                          &b->vl);
    b->prepare_s = (double)(ek_now_ns() - begin) * 1e-9 / n;
    free(items);
    free(ids);
    return st;
}

enum ek_status bench_pictures_open(struct ek_engine *e, uint32_t n, uint32_t tokens, uint32_t width,
                                   uint32_t height, uint32_t n_text, uint64_t seed,
                                   struct bench_pictures *out)
{
    struct bench_pictures b = {.image = {.width = width, .height = height}};
    enum ek_status st;

    EK_GOTO(ek_vl_rules_open(ek_engine_model(e), &b.rules), st, done);
    if (b.rules.image_id < 0) /* a configuration without a tokenizer: any token will do */
        b.rules.image_id = (int32_t)ek_engine_model(e)->config.vocab - 1;
    EK_GOTO(make_image(&b.rules, tokens, n, &seed, &b.image), st, done);
    EK_GOTO(lay_out(e, &b, n, n_text, &seed), st, done);
    *out = b;
    return EK_OK;
done:
    bench_pictures_close(&b);
    return st;
}

void bench_pictures_close(struct bench_pictures *b)
{
    ek_embeds_free(&b->embeds);
    ek_vl_prompt_free(&b->vl);
    ek_image_free(&b->image);
    *b = (struct bench_pictures){0};
}

enum ek_status bench_pictures_encode(struct ek_engine *e, struct bench_pictures *b)
{
    ek_embeds_free(&b->embeds);
    return ek_engine_encode(e, &b->rules, &b->vl, &b->embeds);
}
