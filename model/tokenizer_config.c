/* SPDX-License-Identifier: Apache-2.0
 *
 * What stands beside a tokenizer.json: tokenizer_config.json (bos, eos, whether bos is put first,
 * chat template), chat_template.jinja and chat_template.json. Each is optional.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX   ((size_t)16 << 20)
#define TEMPLATE_MAX ((size_t)1 << 20)

/* "text" or {"content": "text"}; absent, null or unknown to the vocabulary: *id stays. */
static void read_token(const struct ek_tokenizer *t, const json_t *config, const char *key,
                       int32_t *id)
{
    const json_t *v = json_object_get(config, key);
    const char *text = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
    int32_t found = text ? ek_tokenizer_id(t, text) : -1;

    if (found >= 0)
        *id = found;
}

static enum ek_status set_template(struct ek_tokenizer *t, const char *text)
{
    char *copy = ek_strdup(text);

    if (copy == NULL)
        return EK_ENOMEM;
    free(t->chat_template);
    t->chat_template = copy;
    return EK_OK;
}

/* A string, or a list of {"name", "template"} of which "default" counts. */
static enum ek_status read_template(struct ek_tokenizer *t, const json_t *v)
{
    const char *name;
    json_t *item;
    size_t i;

    if (json_is_string(v))
        return set_template(t, json_string_value(v));
    json_array_foreach((json_t *)v, i, item)
    {
        name = json_string_value(json_object_get(item, "name"));
        if (name != NULL && strcmp(name, "default") == 0 &&
            json_is_string(json_object_get(item, "template")))
            return set_template(t, json_string_value(json_object_get(item, "template")));
    }
    return EK_OK;
}

enum ek_status ek_tokenizer_apply_config(struct ek_tokenizer *t, const json_t *config,
                                         const char *where)
{
    if (!json_is_object(config))
        return ek_error(EK_EFORMAT, "%s: must be a JSON object", where);
    read_token(t, config, "bos_token", &t->bos);
    read_token(t, config, "eos_token", &t->eos);
    EK_TRY(ek_json_opt_bool(config, (struct ek_json_at){.file = where, .prefix = ""},
                            "add_bos_token", &t->adds_bos));
    return read_template(t, json_object_get(config, "chat_template"));
}

/* Whole numbers are read as reals: model_max_length is often 10^30, "no limit". */
static enum ek_status read_json(struct ek_tokenizer *t, const char *path)
{
    json_error_t e;
    json_t *config;
    char *text;
    size_t n;
    enum ek_status st;

    EK_TRY(ek_file_read(path, CONFIG_MAX, &text, &n));
    config = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &e);
    free(text);
    if (config == NULL)
        return ek_error(EK_EFORMAT, "%s: not valid JSON at line %d, column %d: %s", path, e.line,
                        e.column, e.text);
    st = ek_tokenizer_apply_config(t, config, path);
    json_decref(config);
    return st;
}

static enum ek_status read_jinja(struct ek_tokenizer *t, const char *path)
{
    char *text;
    size_t n;
    enum ek_status st;

    EK_TRY(ek_file_read(path, TEMPLATE_MAX, &text, &n));
    st = set_template(t, text);
    free(text);
    return st;
}

enum ek_status ek_tokenizer_read_config(struct ek_tokenizer *t, const char *dir)
{
    static const struct {
        const char *name;
        enum ek_status (*read)(struct ek_tokenizer *t, const char *path);
    } files[] = {{"special_tokens_map.json", read_json},
                 {"tokenizer_config.json", read_json},
                 {"chat_template.json", read_json},
                 {"chat_template.jinja", read_jinja}};
    enum ek_status st = EK_OK;

    for (size_t i = 0; i < EK_ARRAY_LEN(files) && st == EK_OK; i++) {
        char *path = ek_path_join(dir, files[i].name);
        if (path == NULL)
            return EK_ENOMEM;
        if (ek_file_exists(path))
            st = files[i].read(t, path);
        free(path);
    }
    return st;
}
