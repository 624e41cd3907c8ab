/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints what a model is made of, for comparisons with other implementations.
 *
 *   tensors PATH           name, dtype, shape of every tensor, and the totals
 *   tensors --bytes PATH   the same with the XXH3-128 of each tensor's bytes as ek_model_read gives
 *   tensors --rope PATH    amplitude, softmax scale and rotary frequencies, as hexadecimal floats
 */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

static enum ek_status print_tensor(const struct ek_model *m, const struct ek_tensor *t, bool bytes)
{
    char hash[33] = "-";
    void *data = NULL;
    enum ek_status st = EK_OK;

    if (bytes) {
        if ((data = ek_calloc(t->bytes, 1)) == NULL)
            return EK_ENOMEM;
        if ((st = ek_model_read(m, t, 0, t->bytes, data)) == EK_OK)
            ek_hash_hex(data, t->bytes, hash);
    }
    printf("tensor %s %s %s ", t->name, ek_dtype_name(t->dtype), hash);
    for (uint32_t i = 0; i < t->n_dims; i++)
        printf(i ? ",%llu" : "%llu", (unsigned long long)t->shape[i]);
    printf("\n");
    free(data);
    return st;
}

static enum ek_status print_tensors(const struct ek_model *m, bool bytes)
{
    for (size_t i = 0; i < m->n_modules; i++)
        for (size_t j = 0; m->modules[i].tied_to < 0 && j < m->modules[i].n_tensors; j++)
            EK_TRY(print_tensor(m, &m->modules[i].tensors[j], bytes));
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
    bool bytes = argc == 3 && strcmp(argv[1], "--bytes") == 0;
    bool rope = argc == 3 && strcmp(argv[1], "--rope") == 0;
    struct ek_model *m = NULL;
    enum ek_status st;

    if (argc != 2 && !bytes && !rope) {
        fprintf(stderr, "usage: tensors [--bytes | --rope] PATH\n");
        return ek_exit_code(EK_EUSAGE);
    }
    st = ek_model_open(argv[argc - 1], NULL, &m);
    if (st == EK_OK)
        st = rope ? print_rope(m) : print_tensors(m, bytes);
    ek_model_close(m);
    if (st != EK_OK)
        fprintf(stderr, "tensors: %s\n", ek_last_error());
    return ek_exit_code(st);
}
