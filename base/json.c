/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 64
#define INDENT    2

/* jansson limits the depth itself (2048): too deep for recursive readers, so held lower here. */
static bool too_deep(const json_t *v, int left)
{
    const char *key;
    json_t *item;
    size_t i;

    if (left == 0)
        return true;
    if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, item) if (too_deep(item, left - 1)) return true;
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, item) if (too_deep(item, left - 1)) return true;
    }
    return false;
}

enum ek_status ek_json_parse(const char *text, size_t n, const char *where, json_t **out)
{
    json_error_t e;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);

    if (v == NULL)
        return ek_error(EK_EFORMAT, "%s: not valid JSON at line %d, column %d: %s", where, e.line,
                        e.column, e.text);
    if (too_deep(v, MAX_DEPTH)) {
        json_decref(v);
        return ek_error(EK_EFORMAT, "%s: JSON nested deeper than %d", where, MAX_DEPTH);
    }
    *out = v;
    return EK_OK;
}

enum ek_status ek_json_read(const char *path, size_t max, json_t **out)
{
    char *text;
    size_t n;
    enum ek_status st;

    EK_TRY(ek_file_read(path, max, &text, &n));
    st = ek_json_parse(text, n, path, out);
    free(text);
    return st;
}

static const char *type_name(const json_t *v)
{
    static const char *const names[] = {"an object",     "an array", "a string", "an integer",
                                        "a real number", "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "nothing";
}

static enum ek_status wrong(struct ek_json_at at, const char *key, const char *want,
                            const json_t *v)
{
    return ek_error(EK_EFORMAT, "%s: %s%s must be %s, got %s", at.file, at.prefix, key, want,
                    type_name(v));
}

enum ek_status ek_json_u64(const json_t *obj, struct ek_json_at at, const char *key, uint64_t min,
                           uint64_t max, uint64_t *out)
{
    const json_t *v = json_object_get(obj, key);
    json_int_t i;

    if (!json_is_integer(v))
        return wrong(at, key, "a whole number", v);
    i = json_integer_value(v);
    if (i < 0 || (uint64_t)i < min || (uint64_t)i > max)
        return ek_error(EK_EFORMAT, "%s: %s%s must be from %llu to %llu, got %lld", at.file,
                        at.prefix, key, (unsigned long long)min, (unsigned long long)max,
                        (long long)i);
    *out = (uint64_t)i;
    return EK_OK;
}

enum ek_status ek_json_real(const json_t *obj, struct ek_json_at at, const char *key, double min,
                            double max, double *out)
{
    const json_t *v = json_object_get(obj, key);
    double d;

    if (!json_is_number(v))
        return wrong(at, key, "a number", v);
    d = json_number_value(v);
    if (!isfinite(d) || d < min || d > max)
        return ek_error(EK_EFORMAT, "%s: %s%s must be from %g to %g, got %g", at.file, at.prefix,
                        key, min, max, d);
    *out = d;
    return EK_OK;
}

enum ek_status ek_json_string(const json_t *obj, struct ek_json_at at, const char *key,
                              const char **out)
{
    const json_t *v = json_object_get(obj, key);

    if (!json_is_string(v))
        return wrong(at, key, "a string", v);
    *out = json_string_value(v);
    return EK_OK;
}

enum ek_status ek_json_array(const json_t *obj, struct ek_json_at at, const char *key,
                             const json_t **out)
{
    const json_t *v = json_object_get(obj, key);

    if (!json_is_array(v))
        return wrong(at, key, "an array", v);
    *out = v;
    return EK_OK;
}

enum ek_status ek_json_object(const json_t *obj, struct ek_json_at at, const char *key,
                              const json_t **out)
{
    const json_t *v = json_object_get(obj, key);

    if (!json_is_object(v))
        return wrong(at, key, "an object", v);
    *out = v;
    return EK_OK;
}

static bool absent(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);

    return v == NULL || json_is_null(v);
}

enum ek_status ek_json_opt_u64(const json_t *obj, struct ek_json_at at, const char *key,
                               uint64_t min, uint64_t max, uint64_t *out)
{
    return absent(obj, key) ? EK_OK : ek_json_u64(obj, at, key, min, max, out);
}

enum ek_status ek_json_opt_real(const json_t *obj, struct ek_json_at at, const char *key,
                                double min, double max, double *out)
{
    return absent(obj, key) ? EK_OK : ek_json_real(obj, at, key, min, max, out);
}

enum ek_status ek_json_opt_string(const json_t *obj, struct ek_json_at at, const char *key,
                                  const char **out)
{
    return absent(obj, key) ? EK_OK : ek_json_string(obj, at, key, out);
}

enum ek_status ek_json_opt_bool(const json_t *obj, struct ek_json_at at, const char *key, bool *out)
{
    const json_t *v = json_object_get(obj, key);

    if (absent(obj, key))
        return EK_OK;
    if (!json_is_boolean(v))
        return wrong(at, key, "true or false", v);
    *out = json_is_true(v);
    return EK_OK;
}

char *ek_json_text(const json_t *value)
{
    char *body = json_dumps(value, JSON_INDENT(INDENT) | JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY);
    char *text = body ? ek_asprintf("%s\n", body) : NULL;

    free(body);
    return text;
}

enum ek_status ek_json_write(const char *path, const json_t *value, bool force)
{
    char *text = ek_json_text(value);
    enum ek_status st;

    if (text == NULL)
        return ek_error(EK_ENOMEM, "%s: out of host memory", path);
    st = ek_file_write(path, text, strlen(text), force);
    free(text);
    return st;
}

enum ek_status ek_json_print(json_t *value)
{
    enum ek_status st =
        value ? ek_json_write("-", value, true) : ek_error(EK_ENOMEM, "out of host memory");

    json_decref(value);
    return st;
}
