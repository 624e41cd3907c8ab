/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints what a model is made of, for comparisons with other implementations.
 *
 *   tensors PATH           name, dtype, shape of every tensor, and the totals
 *   tensors --bytes PATH   the same with the XXH3-128 of each tensor's bytes as ek_model_read gives
 *   tensors --values PATH  the same of each tensor's values in F32
 *   tensors --rope PATH    amplitude, softmax scale and rotary frequencies, as hexadecimal floats
 */
#include "kernels/kernels.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

/* Columns of values to the places of their inputs. */
static enum ek_status restore_order(const struct ek_tensor *t, float *values)
{
    uint64_t cols = t->shape[1];
    float *row = ek_calloc(cols, sizeof(*row));

    if (row == NULL)
        return EK_ENOMEM;
    for (uint64_t r = 0; r < t->shape[0]; r++, values += cols) {
        memcpy(row, values, cols * sizeof(*row));
        for (uint64_t c = 0; c < cols; c++)
            values[t->order[c]] = row[c];
    }
    free(row);
    return EK_OK;
}

static enum ek_status hash_values(const struct ek_tensor *t, const void *data, char hash[33])
{
    size_t n = t->bytes / ek_dtype_block_bytes(t->dtype) * ek_dtype_block(t->dtype);
    float *values = ek_calloc(n, sizeof(*values));
    enum ek_status st = values ? ek_dequantize(t->dtype, data, values, n) : EK_ENOMEM;

    if (st == EK_OK && t->order)
        st = restore_order(t, values);
    if (st == EK_OK)
        ek_hash_hex(values, n * sizeof(*values), hash);
    free(values);
    return st;
}

static enum ek_status print_tensor(const struct ek_model *m, const struct ek_tensor *t, bool bytes,
                                   bool values)
{
    char hash[33] = "-";
    void *data = NULL;
    enum ek_status st = EK_OK;

    if (bytes) {
        if ((data = ek_calloc(t->bytes, 1)) == NULL)
            return EK_ENOMEM;
        if ((st = ek_model_read(m, t, 0, t->bytes, data)) == EK_OK)
            ek_hash_hex(data, t->bytes, hash);
        if (st == EK_OK && values)
            st = hash_values(t, data, hash);
    }
    printf("tensor %s %s %s ", t->name, ek_dtype_name(t->dtype), hash);
    for (uint32_t i = 0; i < t->n_dims; i++)
        printf(i ? ",%llu" : "%llu", (unsigned long long)t->shape[i]);
    printf("\n");
    free(data);
    return st;
}

static enum ek_status print_tensors(const struct ek_model *m, bool bytes, bool values)
{
    for (size_t i = 0; i < m->n_modules; i++)
        for (size_t j = 0; m->modules[i].tied_to < 0 && j < m->modules[i].n_tensors; j++)
            EK_TRY(print_tensor(m, &m->modules[i].tensors[j], bytes, values));
    printf("total %llu %s\n", (unsigned long long)m->n_params, m->hash);
    return EK_OK;
}

static enum ek_status print_rope(const struct ek_model *m)
{
    const struct ek_config *c = &m->config;
    uint32_t n = (c->attention == EK_ATTENTION_MLA ? c->qk_rope : c->head_dim) / 2;
    float *f = ek_calloc(n, sizeof(*f)), amplitude, scale;

    if (f == NULL)
        return EK_ENOMEM;
    ek_config_rope(c, f, &amplitude, &scale);
    printf("%a %a", (double)amplitude, (double)scale);
    for (uint32_t i = 0; i < n; i++)
        printf(" %a", (double)f[i]);
    printf("\n");
    free(f);
    return EK_OK;
}

int main(int argc, char **argv)
{
    bool values = argc == 3 && strcmp(argv[1], "--values") == 0;
    bool bytes = values || (argc == 3 && strcmp(argv[1], "--bytes") == 0);
    bool rope = argc == 3 && strcmp(argv[1], "--rope") == 0;
    struct ek_model *m = NULL;
    enum ek_status st;

    if (argc != 2 && !bytes && !rope) {
        fprintf(stderr, "usage: tensors [--bytes | --values | --rope] PATH\n");
        return ek_exit_code(EK_EUSAGE);
    }
    st = ek_model_open(argv[argc - 1], NULL, &m);
    if (st == EK_OK)
        st = rope ? print_rope(m) : print_tensors(m, bytes, values);
    ek_model_close(m);
    if (st != EK_OK)
        fprintf(stderr, "tensors: %s\n", ek_last_error());
    return ek_exit_code(st);
}
