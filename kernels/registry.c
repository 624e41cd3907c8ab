/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry of backends: device specs, opening and listing. The only place of kernels/ that
 * knows which backends were built.
 */
#include "config.h"

#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

extern const struct ek_ops ek_ops_cpu;
#ifdef HAVE_CUDA
extern const struct ek_ops ek_ops_cuda;
#endif

/* In the order of listing: accelerators first. */
static const struct ek_ops *const backends[] = {
#ifdef HAVE_CUDA
    &ek_ops_cuda,
#endif
    &ek_ops_cpu,
};

const char *const ek_tag_names[EK_N_TAGS] = {"weights", "kv", "activations", "workspace", "comm"};

static const struct ek_ops *backend_find(const char *name)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(backends); i++)
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    return NULL;
}

/* ---- Specs ----------------------------------------------------------------------------------- */

/* "cpu:1" or "cuda:0.1" (len characters) into name, backend and index. */
static enum ek_status parse_name(const char *text, size_t len, struct ek_device_spec *out)
{
    const char *colon = memchr(text, ':', len);
    const char *p, *end = text + len;
    uint64_t index = 0, sub = 0, *number = &index;
    int digits = 0;

    if (len >= sizeof(out->name))
        return ek_error(EK_EUSAGE, "device \"%.40s...\": a name has at most %zu characters", text,
                        sizeof(out->name) - 1);
    if (!colon || (size_t)(colon - text) >= sizeof(out->backend) || colon == text)
        goto bad;
    for (p = colon + 1; p < end; p++) {
        if (*p == '.' && digits && number == &index) {
            number = &sub;
            digits = 0;
        } else if (*p >= '0' && *p <= '9' && ++digits <= 4) {
            *number = *number * 10 + (uint64_t)(*p - '0');
        } else {
            goto bad;
        }
    }
    if (!digits)
        goto bad;
    memcpy(out->name, text, len);
    memcpy(out->backend, text, (size_t)(colon - text));
    out->index = (uint32_t)index;
    return EK_OK;
bad:
    return ek_error(EK_EUSAGE, "device \"%.*s\": must be cpu:N, cuda:N or cuda:N.M", (int)len,
                    text);
}

static enum ek_status parse_memory(struct ek_device_spec *spec, const char *value)
{
    struct ek_size_item *items;
    size_t n;
    enum ek_status st = ek_parse_size_list(value, &items, &n);

    if (st != EK_OK)
        return st;
    if (n == 1 && !items[0].name[0]) {
        spec->memory = items[0].bytes;
        spec->memory_fraction = items[0].fraction;
    } else {
        st = ek_error(EK_EUSAGE, "device %s: mem=%s must be one size", spec->name, value);
    }
    free(items);
    return st;
}

static enum ek_status add_cores(struct ek_device_spec *spec, const char *value)
{
    size_t used = strlen(spec->threads), len = strlen(value);

    if (!len || strspn(value, "0123456789-") != len)
        return ek_error(EK_EUSAGE, "device %s: threads=%s must be a list of cores such as 0-3,8",
                        spec->name, value);
    if (used + len + 2 > sizeof(spec->threads))
        return ek_error(EK_EUSAGE, "device %s: the list of cores is over %zu characters",
                        spec->name, sizeof(spec->threads) - 1);
    if (used)
        spec->threads[used++] = ',';
    memcpy(spec->threads + used, value, len + 1);
    return EK_OK;
}

/* "threads=0-3,8,mem=512MiB" (modified): an item without '=' goes on with the list of cores. */
static enum ek_status parse_options(char *text, struct ek_device_spec *spec)
{
    bool in_cores = false;
    char *save = NULL;

    for (char *item = strtok_r(text, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
        if (strncmp(item, "threads=", 8) == 0 && strcmp(spec->backend, "cpu") == 0) {
            in_cores = true;
            EK_TRY(add_cores(spec, item + 8));
        } else if (strncmp(item, "mem=", 4) == 0) {
            in_cores = false;
            EK_TRY(parse_memory(spec, item + 4));
        } else if (in_cores && !strchr(item, '=')) {
            EK_TRY(add_cores(spec, item));
        } else {
            return ek_error(EK_EUSAGE, "device %s: unknown option \"%s\" (%smem=SIZE)", spec->name,
                            item, strcmp(spec->backend, "cpu") ? "" : "threads=CORES, ");
        }
    }
    return EK_OK;
}

static enum ek_status parse_spec(char *text, struct ek_device_spec *out)
{
    char *slash = strchr(text, '/');

    EK_TRY(parse_name(text, slash ? (size_t)(slash - text) : strlen(text), out));
    if (strcmp(out->backend, "cpu") && strcmp(out->backend, "cuda"))
        return ek_error(EK_EUSAGE, "device %s: unknown backend \"%s\" (cpu, cuda)", out->name,
                        out->backend);
    return slash ? parse_options(slash + 1, out) : EK_OK;
}

static enum ek_status check_unique(const struct ek_device_spec *specs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(specs[i].name, specs[j].name) == 0)
                return ek_error(EK_EUSAGE, "device %s is declared twice", specs[i].name);
    return EK_OK;
}

/* Without a declaration: every GPU, or one CPU device. */
static enum ek_status default_specs(struct ek_device_spec **out, size_t *n)
{
    struct ek_device_info *infos;
    size_t n_all;

    EK_TRY(ek_devices_list(out, &infos, &n_all));
    free(infos);
    *n = n_all > 1 ? n_all - 1 : 1;
    return EK_OK;
}

enum ek_status ek_device_specs_parse(const char *text, struct ek_device_spec **out, size_t *n)
{
    struct ek_device_spec *specs;
    char *copy, *save = NULL;
    size_t count = 0;
    enum ek_status st = EK_OK;

    if (!text || !text[strspn(text, " ;\t\n")])
        return default_specs(out, n);
    specs = ek_calloc(EK_MAX_DEVICES, sizeof(*specs));
    copy = ek_strdup(text);
    if (!specs || !copy)
        st = EK_ENOMEM;
    for (char *item = st == EK_OK ? strtok_r(copy, " ;\t\n", &save) : NULL; item && st == EK_OK;
         item = strtok_r(NULL, " ;\t\n", &save))
        st = count < EK_MAX_DEVICES
                 ? parse_spec(item, &specs[count++])
                 : ek_error(EK_EUSAGE, "over %d devices are declared", EK_MAX_DEVICES);
    if (st == EK_OK)
        st = check_unique(specs, count);
    free(copy);
    if (st != EK_OK) {
        free(specs);
        return st;
    }
    *out = specs;
    *n = count;
    return EK_OK;
}

/* ---- Devices --------------------------------------------------------------------------------- */

enum ek_status ek_device_open(const struct ek_device_spec *spec, enum ek_dtype act,
                              struct ek_device **out)
{
    const struct ek_ops *ops = backend_find(spec->backend);

    if (!ops)
        return ek_error(EK_EENV, "device %s: this build has no %s backend", spec->name,
                        spec->backend);
    return ops->open(spec, act, out);
}

void ek_device_close(struct ek_device *dev)
{
    if (dev)
        dev->ops->close(dev);
}

enum ek_status ek_devices_list(struct ek_device_spec **specs, struct ek_device_info **infos,
                               size_t *n)
{
    struct ek_device_spec *s = ek_calloc(EK_MAX_DEVICES, sizeof(*s));
    struct ek_device_info *all = ek_calloc(EK_MAX_DEVICES, sizeof(*all)), *some;
    size_t count = 0, n_some;
    enum ek_status st = s && all ? EK_OK : EK_ENOMEM;

    for (size_t b = 0; b < EK_ARRAY_LEN(backends) && st == EK_OK; b++) {
        st = backends[b]->list(&some, &n_some);
        if (st != EK_OK)
            break;
        for (size_t i = 0; i < n_some && count < EK_MAX_DEVICES; i++, count++) {
            all[count] = some[i];
            s[count].index = (uint32_t)i;
            snprintf(s[count].backend, sizeof(s[count].backend), "%s", backends[b]->name);
            snprintf(s[count].name, sizeof(s[count].name), "%s:%zu", backends[b]->name, i);
        }
        free(some);
    }
    if (st != EK_OK) {
        free(s);
        free(all);
        return st;
    }
    *specs = s;
    *infos = all;
    *n = count;
    return EK_OK;
}

const char *ek_throttle_text(uint32_t throttle, char out[64])
{
    static const struct {
        uint32_t bits;
        const char *text;
    } reasons[] = {{0x02, "clocks set by an application"},
                   {0x04 | 0x80, "power cap"},
                   {0x20 | 0x40, "thermal"},
                   {0x08, "hardware slowdown"},
                   {0x10, "sync boost"},
                   {0x100, "display"}};
    size_t n = 0;

    out[0] = '\0';
    for (size_t i = 0; i < EK_ARRAY_LEN(reasons) && n < 63; i++)
        if (throttle & reasons[i].bits)
            n += (size_t)snprintf(out + n, 64 - n, "%s%s", n ? ", " : "", reasons[i].text);
    return out;
}

uint64_t ek_usage_total(const struct ek_usage by_tag[EK_N_TAGS], bool peak)
{
    uint64_t sum = 0;

    for (int t = 0; t < EK_N_TAGS; t++)
        sum += peak ? by_tag[t].peak : by_tag[t].now;
    return sum;
}
