/* SPDX-License-Identifier: Apache-2.0
 *
 * Recording a trusted run of ours as a reference file: ids and pictures in, logits out, as `check`
 * will run them again.
 */
#include "runtime/prompt.h"

#include <stdlib.h>
#include <string.h>

#define FIXED_ENTRIES 3 /* ids, logits, positions */
#define NAME_LEN      32

struct recorder {
    const struct ek_reference *in; /* ids and pictures */
    uint32_t vocab;
    int64_t *ids, *positions; /* [n_ids]; [3][n_ids] or NULL */
    float *logits;            /* [n_ids][vocab] */
    uint8_t **videos;         /* [n_items] frames one behind the other; NULL: one picture */
    struct ek_safetensors_entry *entries;
    const void **data;
    char (*names)[NAME_LEN];
    size_t n_entries;
};

static void recorder_free(struct recorder *w)
{
    for (size_t i = 0; w->videos && i < w->in->n_items; i++)
        free(w->videos[i]);
    free(w->videos);
    free(w->ids);
    free(w->positions);
    free(w->logits);
    free(w->entries);
    free(w->data);
    free(w->names);
}

static enum ek_status recorder_open(struct recorder *w)
{
    size_t n = w->in->n_ids, items = w->in->n_items, values;

    if (n == 0 || !ek_mul_size(n, w->vocab, &values))
        return ek_error(EK_EUSAGE, "recording %zu rows of logits", n);
    if ((w->ids = ek_calloc(n, sizeof(*w->ids))) == NULL ||
        (w->logits = ek_calloc(values, sizeof(*w->logits))) == NULL ||
        (w->videos = ek_calloc(items + 1, sizeof(*w->videos))) == NULL ||
        (w->entries = ek_calloc(items + FIXED_ENTRIES, sizeof(*w->entries))) == NULL ||
        (w->data = ek_calloc(items + FIXED_ENTRIES, sizeof(*w->data))) == NULL ||
        (w->names = ek_calloc(items + FIXED_ENTRIES, sizeof(*w->names))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n; i++)
        w->ids[i] = w->in->ids[i];
    return EK_OK;
}

static enum ek_status run(struct recorder *w, struct ek_engine *e)
{
    struct ek_vision_prompt v = {0};
    uint32_t seq;
    enum ek_status st;

    EK_TRY(ek_engine_seq_open(e, &seq));
    EK_GOTO(prompt_of_reference(e, w->in, &v), st, done);
    EK_GOTO(prompt_prefill(e, seq, &v.prompt, EK_LOGITS_ALL, w->logits, NULL), st, done);
    if (v.prompt.positions == NULL)
        goto done;
    if ((w->positions = ek_calloc(3 * w->in->n_ids, sizeof(*w->positions))) == NULL)
        st = EK_ENOMEM;
    for (size_t i = 0; st == EK_OK && i < 3 * w->in->n_ids; i++)
        w->positions[i] = v.prompt.positions[i];
done:
    ek_vision_prompt_close(&v);
    ek_engine_seq_close(e, seq);
    return st;
}

static void add(struct recorder *w, struct ek_safetensors_entry entry, const void *data)
{
    w->data[w->n_entries] = data;
    w->entries[w->n_entries++] = entry;
}

/* image.N or video.N: the N-th of its kind. */
static enum ek_status add_item(struct recorder *w, size_t i, size_t number)
{
    const struct ek_vl_item *item = &w->in->items[i];
    uint64_t height = item->frames->height, width = item->frames->width;
    size_t bytes = (size_t)3 * height * width;
    char *name = w->names[i];

    snprintf(name, NAME_LEN, "%s.%zu", item->video ? "video" : "image", number);
    if (!item->video) {
        add(w,
            (struct ek_safetensors_entry){.name = name,
                                          .dtype = EK_U8,
                                          .n_dims = 3,
                                          .shape = {height, width, 3},
                                          .bytes = bytes},
            item->frames->rgb);
        return EK_OK;
    }
    if ((w->videos[i] = ek_calloc(item->n_frames, bytes)) == NULL)
        return EK_ENOMEM;
    for (size_t f = 0; f < item->n_frames; f++)
        memcpy(w->videos[i] + f * bytes, item->frames[f].rgb, bytes);
    add(w,
        (struct ek_safetensors_entry){.name = name,
                                      .dtype = EK_U8,
                                      .n_dims = 4,
                                      .shape = {item->n_frames, height, width, 3},
                                      .bytes = item->n_frames * bytes},
        w->videos[i]);
    return EK_OK;
}

static enum ek_status add_all(struct recorder *w, json_t *meta)
{
    size_t n = w->in->n_ids, counts[2] = {0};
    char text[32];

    add(w,
        (struct ek_safetensors_entry){
            .name = "input_ids", .dtype = EK_I64, .n_dims = 1, .shape = {n}, .bytes = 8 * n},
        w->ids);
    add(w,
        (struct ek_safetensors_entry){.name = "logits",
                                      .dtype = EK_F32,
                                      .n_dims = 2,
                                      .shape = {n, w->vocab},
                                      .bytes = 4 * n * w->vocab},
        w->logits);
    if (w->positions != NULL)
        add(w,
            (struct ek_safetensors_entry){.name = "position_ids",
                                          .dtype = EK_I64,
                                          .n_dims = 2,
                                          .shape = {3, n},
                                          .bytes = 24 * n},
            w->positions);
    for (size_t i = 0; i < w->in->n_items; i++) {
        const struct ek_vl_item *item = &w->in->items[i];
        EK_TRY(add_item(w, i, counts[item->video]++));
        if (!item->video)
            continue;
        snprintf(text, sizeof(text), "%.17g", 2 * item->seconds_per_frame);
        json_object_set_new(meta, "seconds_per_grid", json_string(text));
    }
    return EK_OK;
}

enum ek_status ek_reference_record(struct ek_engine *e, const struct ek_reference *in,
                                   const char *path, bool force)
{
    const struct ek_model *m = ek_engine_model(e);
    struct recorder w = {.in = in, .vocab = m->config.vocab};
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model", m->name, "dtype",
                             ek_dtype_name(ek_engine_plan(e)->act), "versions", "evenkeel");
    enum ek_status st = EK_ENOMEM;

    if (meta == NULL)
        goto done;
    EK_GOTO(recorder_open(&w), st, done);
    EK_GOTO(run(&w, e), st, done);
    EK_GOTO(add_all(&w, meta), st, done);
    st = ek_safetensors_write(path, w.entries, w.data, w.n_entries, meta, force);
done:
    json_decref(meta);
    recorder_free(&w);
    return st;
}
