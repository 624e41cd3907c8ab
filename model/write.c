/* SPDX-License-Identifier: Apache-2.0
 *
 * A model's tensors into one safetensors file.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

struct writing {
    const struct ek_model *m;
    const struct ek_tensor **tensors;
    const atomic_bool *stop;
};

static enum ek_status read_piece(void *ctx, size_t entry, uint64_t at, uint64_t n, void *dst)
{
    const struct writing *w = ctx;

    if (w->stop && *w->stop)
        return ek_error(EK_EINTR, "interrupted");
    return ek_model_read(w->m, w->tensors[entry], at, n, dst);
}

/* A tied head's matrix is the embedding's. */
static size_t tensors_of(const struct ek_module *mod)
{
    return mod->tied_to < 0 ? mod->n_tensors : 0;
}

static enum ek_status describe(const struct ek_model *m, const struct ek_tensor *t,
                               struct ek_safetensors_entry *e)
{
    if (t->quant || t->dtype >= EK_Q4_0)
        return ek_error(EK_EUNSUPPORTED, "%s: tensor '%s' is %s: only plain weights are written",
                        m->path, t->name, ek_dtype_name(t->dtype));
    *e = (struct ek_safetensors_entry){
        .name = t->name, .dtype = t->dtype, .n_dims = t->n_dims, .bytes = t->bytes};
    memcpy(e->shape, t->shape,
           sizeof(t->shape) < sizeof(e->shape) ? sizeof(t->shape) : sizeof(e->shape));
    return EK_OK;
}

enum ek_status ek_model_write(const struct ek_model *m, const char *path, bool force,
                              const atomic_bool *stop)
{
    struct ek_safetensors_entry *entries;
    struct writing w = {.m = m, .stop = stop};
    enum ek_status st = EK_OK;
    size_t n = 0, k = 0;

    for (size_t i = 0; i < m->n_modules; i++)
        n += tensors_of(&m->modules[i]);
    entries = ek_calloc(n, sizeof(*entries));
    w.tensors = ek_calloc(n, sizeof(struct ek_tensor *));
    if (!entries || !w.tensors)
        st = EK_ENOMEM;
    for (size_t i = 0; i < m->n_modules && st == EK_OK; i++)
        for (size_t j = 0; j < tensors_of(&m->modules[i]) && st == EK_OK; j++, k++) {
            w.tensors[k] = &m->modules[i].tensors[j];
            st = describe(m, w.tensors[k], &entries[k]);
        }
    if (st == EK_OK)
        st = ek_safetensors_stream(path, entries, n, NULL, read_piece, &w, force);
    free(entries);
    free(w.tensors);
    return st;
}
