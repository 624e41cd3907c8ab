/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and closing a CPU device, and the backend's table of operations.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/hash.h" /* made at build: CPU_KERNELS_HASH */

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL_WORK = 32768 }; /* elements under which waking the helpers costs more than it saves */

static atomic_uint_fast64_t next_serial = 1;
static _Thread_local uint64_t bound_to; /* serial of the device that this thread is bound to */

/* ---- Running work ---------------------------------------------------------------------------- */

/* The issuing thread works too, so it stays on the device's first core. */
static void bind_issuer(const struct cpu_device *dev)
{
    if (bound_to == dev->serial)
        return;
    cpu_bind_thread(dev->cores.id[0]);
    bound_to = dev->serial;
}

void cpu_run(struct cpu_device *dev, uint32_t n_items, cpu_item_fn fn, void *arg)
{
    bind_issuer(dev);
    cpu_pool_run(dev->pool, n_items, fn, arg);
}

void cpu_run_rows(struct cpu_device *dev, uint32_t n, size_t work, cpu_item_fn fn, void *arg)
{
    bind_issuer(dev);
    if (n < 2 || n * work < SMALL_WORK)
        for (uint32_t i = 0; i < n; i++)
            fn(arg, i, 0);
    else
        cpu_pool_run(dev->pool, n, fn, arg);
}

/* ---- Life ------------------------------------------------------------------------------------ */

/* Identity of a CPU device: the processor's name and its cores. */
static void set_identity(struct cpu_device *dev)
{
    struct ek_device_info *info = &dev->base.info;
    struct ek_hash *h = ek_hash_new();
    char hex[33] = "";

    if (h) {
        ek_hash_add(h, info->model, strlen(info->model));
        ek_hash_add(h, dev->cores.id, dev->cores.n * sizeof(dev->cores.id[0]));
        ek_hash_end(h, hex);
    }
    snprintf(info->uuid, sizeof(info->uuid), "CPU-%s", hex);
    snprintf(info->driver, sizeof(info->driver), "%s", dev->simd->name);
    snprintf(info->kernels, sizeof(info->kernels), "%s", CPU_KERNELS_HASH);
    snprintf(info->simd, sizeof(info->simd), "%s", dev->simd->name);
    info->n_units = dev->cores.n;
}

static void cpu_close(struct ek_device *dev)
{
    struct cpu_device *cpu = cpu_of(dev);

    if (!dev)
        return;
    if (bound_to == cpu->serial) {
        cpu_bind_thread(-1);
        bound_to = 0;
    }
    cpu_pool_free(cpu->pool);
    cpu_release_all(cpu);
    pthread_mutex_destroy(&cpu->lock);
    free(cpu);
}

static enum ek_status describe(struct cpu_device *dev, const struct ek_device_spec *spec)
{
    EK_TRY(cpu_simd_find(&dev->simd));
    EK_TRY(cpu_cores_parse(spec->name, spec->threads, &dev->cores));
    cpu_host_info(&dev->base.info);
    set_identity(dev);
    if (!spec->memory && spec->memory_fraction > 0)
        dev->base.spec.memory =
            (uint64_t)(spec->memory_fraction * (double)dev->base.info.memory_total);
    return EK_OK;
}

static enum ek_status cpu_open(const struct ek_device_spec *spec, enum ek_dtype act,
                               struct ek_device **out)
{
    struct cpu_device *dev;
    enum ek_status st;

    if (act != EK_F32)
        return ek_error(EK_EUNSUPPORTED, "device %s: activations are F32 on a CPU, not %s",
                        spec->name, ek_dtype_name(act));
    dev = ek_calloc(1, sizeof(*dev));
    if (!dev)
        return EK_ENOMEM;
    dev->base.ops = &ek_ops_cpu;
    dev->base.spec = *spec;
    dev->base.act = act;
    dev->serial = atomic_fetch_add(&next_serial, 1);
    pthread_mutex_init(&dev->lock, NULL);
    EK_GOTO(describe(dev, spec), st, fail);
    EK_GOTO(cpu_pool_new(&dev->cores, &dev->pool), st, fail);
    *out = &dev->base;
    return EK_OK;
fail:
    cpu_close(&dev->base);
    return st;
}

static enum ek_status cpu_list(struct ek_device_info **infos, size_t *n)
{
    const struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu"};
    struct cpu_device *dev = ek_calloc(1, sizeof(*dev));
    struct ek_device_info *info = ek_calloc(1, sizeof(*info));
    enum ek_status st = dev && info ? describe(dev, &spec) : EK_ENOMEM;

    if (st == EK_OK) {
        *info = dev->base.info;
        *infos = info;
        *n = 1;
    } else {
        free(info);
    }
    free(dev);
    return st;
}

/* ---- The table ------------------------------------------------------------------------------- */

const struct ek_ops ek_ops_cpu = {
    .name = "cpu",
    .host = true,
    .open = cpu_open,
    .close = cpu_close,
    .list = cpu_list,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .usage = cpu_usage,
    .reset_peaks = cpu_reset_peaks,
    .memory_free = cpu_memory_free,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_host_free,
    .upload = cpu_upload,
    .download = cpu_upload,
    .fetch = cpu_upload,
    .copy = cpu_upload,
    .copy_from = cpu_copy_from,
    .zero = cpu_zero,
    .event_new = cpu_event_new,
    .event_order = cpu_event_new,
    .event_free = cpu_event_free,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .event_sync = cpu_event_sync,
    .event_passed = cpu_event_passed,
    .event_seconds = cpu_event_seconds,
    .stamp = cpu_stamp,
    .sync = cpu_sync,
    .idle = cpu_sync, /* an operation is done when it returns */
    .mat_new = cpu_mat_new,
    .mat_ready = cpu_mat_ready,
    .mat_free = cpu_mat_free,
    .alloc_bytes = cpu_alloc_bytes,
    .mat_bytes = cpu_mat_bytes,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .layer_norm = cpu_layer_norm,
    .linear = cpu_linear,
    .rope_append = cpu_rope_append,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .gather = cpu_gather,
    .permute = cpu_permute,
    .argmax = cpu_argmax,
    .sample = cpu_sample,
    .take = cpu_take,
    .convert = cpu_convert,
    .norm_linear = cpu_norm_linear,
    .latent_append = cpu_latent_append,
    .latent_query = cpu_latent_query,
    .latent_value = cpu_latent_value,
    .route = cpu_route,
    .experts = cpu_experts,
    .scatter_rows = cpu_scatter_rows,
    .rope_rows = cpu_rope_rows,
    .attention_dense = cpu_attention_dense,
    .norm_gate_up = cpu_norm_gate_up,
    .read_bytes = cpu_read_bytes,
};
