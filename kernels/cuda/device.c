/* SPDX-License-Identifier: Apache-2.0
 *
 * GPUs: what they are, opening and closing a device on one, and errors of the CUDA runtime.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/hash.h"
#include "kernels/cuda/lt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_GPUS 64

/* ---- errors ------------------------------------------------------------------------------------
 */
enum ek_status ek_cuda_failed(const struct ek_cuda *d, cudaError_t e, const char *what)
{
    size_t avail = 0, total = 0;
    char a[EK_UNIT_LEN], t[EK_UNIT_LEN];

    cudaGetLastError(); /* an out of memory is not sticky: cleared */
    if (e != cudaErrorMemoryAllocation)
        return ek_error(EK_EDEVICE, "%s: %s: %s (%s)", d->base.spec.name, what,
                        cudaGetErrorString(e), cudaGetErrorName(e));
    cudaMemGetInfo(&avail, &total);
    return ek_error(EK_ENOMEM, "%s: %s: out of memory (%s of %s are free)", d->base.spec.name, what,
                    ek_format_bytes(a, avail), ek_format_bytes(t, total));
}

enum ek_status ek_cuda_issued(const struct ek_cuda *d, cudaError_t e, const char *op)
{
    if (e == cudaSuccess)
        return EK_OK;
    if (e == cudaErrorNotSupported)
        return ek_error(EK_EUNSUPPORTED, "%s: %s: no kernel for these types", d->base.spec.name,
                        op);
    return ek_cuda_failed(d, e, op);
}

void ek_cuda_use(const struct ek_cuda *d)
{
    static _Thread_local int current = -1;

    if (current != d->gpu && cudaSetDevice(d->gpu) == cudaSuccess)
        current = d->gpu;
}

/* ---- capabilities ------------------------------------------------------------------------------
 */
static const struct capability {
    uint32_t major, minor, shared; /* bytes of shared memory that a block may have */
} capabilities[] = {{7, 5, 64 << 10},  {8, 0, 163 << 10},  {8, 6, 99 << 10}, {8, 9, 99 << 10},
                    {9, 0, 227 << 10}, {10, 0, 227 << 10}, {12, 0, 99 << 10}};

/* Tests run what other GPUs are given on the one at hand: EK_CUDA_CAPABILITY=8.6 has kernels chosen
 * as for a GPU of that kind. *out: NULL as it is. */
static enum ek_status declared(const struct capability **out)
{
    const char *text = getenv("EK_CUDA_CAPABILITY");
    char name[24];

    *out = NULL;
    for (size_t i = 0; text && i < EK_ARRAY_LEN(capabilities); i++) {
        snprintf(name, sizeof(name), "%u.%u", capabilities[i].major, capabilities[i].minor);
        if (strcmp(name, text) == 0)
            *out = &capabilities[i];
    }
    if (text && *out == NULL)
        return ek_error(EK_EUSAGE, "EK_CUDA_CAPABILITY=%.16s: 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0",
                        text);
    return EK_OK;
}

/* ---- what is there -----------------------------------------------------------------------------
 */
static void format_uuid(const cudaUUID_t *u, char out[40])
{
    const unsigned char *b = (const unsigned char *)u->bytes;

    snprintf(out, 40, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
             b[14], b[15]);
}

/* Driver and library versions: a measurement made with others is another measurement. */
static void format_driver(const struct ek_nvml_facts *f, bool known, char *out, size_t n)
{
    char text[160];
    int runtime = 0;

    cudaRuntimeGetVersion(&runtime);
    snprintf(text, sizeof(text), "%s CUDA %d.%d cuBLASLt %zu", known ? f->driver : "unknown",
             runtime / 1000, runtime % 1000 / 10, ek_lt_missing() ? 0 : ek_lt.GetVersion());
    snprintf(out, n, "%.63s", text);
}

static enum ek_status gpu_info(int gpu, struct ek_device_info *out)
{
    const struct capability *as;
    struct cudaDeviceProp p;
    struct ek_nvml_facts f = {0};
    struct ek_device_info info = {0};
    cudaError_t e = cudaGetDeviceProperties(&p, gpu);
    char uuid[40];
    bool known;

    if (e != cudaSuccess)
        return ek_error(EK_EENV, "GPU %d: %s", gpu, cudaGetErrorString(e));
    EK_TRY(declared(&as));
    snprintf(info.model, sizeof(info.model), "%.95s", p.name);
    snprintf(info.pci, sizeof(info.pci), "%08x:%02x:%02x.0", (unsigned)p.pciDomainID,
             (unsigned)p.pciBusID, (unsigned)p.pciDeviceID);
    format_uuid(&p.uuid, uuid);
    known = ek_nvml_facts(uuid, info.pci, &f);
    snprintf(info.uuid, sizeof(info.uuid), "%s-%s", f.mig ? "MIG" : "GPU", uuid);
    format_driver(&f, known, info.driver, sizeof(info.driver));
    snprintf(info.kernels, sizeof(info.kernels), "%s", CUDA_KERNELS_HASH);
    snprintf(info.memory_group, sizeof(info.memory_group), "%s", p.integrated ? "host" : info.uuid);
    info.memory_total = p.totalGlobalMem;
    info.memory_free = known ? f.free : p.totalGlobalMem;
    info.compute_major = as ? as->major : (uint32_t)p.major;
    info.compute_minor = as ? as->minor : (uint32_t)p.minor;
    info.n_units = (uint32_t)p.multiProcessorCount;
    info.cache_bytes = (uint64_t)p.l2CacheSize;
    *out = info;
    return EK_OK;
}

/* No driver and no GPU are no error: there are no such devices. */
static int gpu_count(void)
{
    int n = 0;

    ek_lt_begin();
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return n < MAX_GPUS ? n : MAX_GPUS;
}

static enum ek_status list_gpus(struct ek_device_info **infos, size_t *n)
{
    int count = gpu_count();
    struct ek_device_info *list = ek_calloc(count ? (size_t)count : 1, sizeof(*list));

    if (list == NULL)
        return EK_ENOMEM;
    for (int i = 0; i < count; i++) {
        enum ek_status st = gpu_info(i, &list[i]);

        if (st != EK_OK) {
            free(list);
            return st;
        }
    }
    *infos = list;
    *n = (size_t)count;
    return EK_OK;
}

/* ---- opening -----------------------------------------------------------------------------------
 */
static enum ek_status enable_peer(const struct ek_cuda *d, int gpu, int peer)
{
    int can = 0;
    cudaError_t e;

    if (cudaDeviceCanAccessPeer(&can, gpu, peer) != cudaSuccess || !can)
        return EK_OK;
    EK_CU_TRY(d, cudaSetDevice(gpu));
    e = cudaDeviceEnablePeerAccess(peer, 0);
    if (e == cudaErrorPeerAccessAlreadyEnabled)
        cudaGetLastError();
    else if (e != cudaSuccess)
        return ek_cuda_failed(d, e, "cudaDeviceEnablePeerAccess");
    return EK_OK;
}

/* Copies between GPUs go over NVLink or PCIe directly where the machine allows it, among those that
 * this process has devices on: it takes a context at both ends, of 0.15 s and 0.5 GB. *first: no
 * device was opened on this GPU before. */
static enum ek_status join_peers(const struct ek_cuda *d, bool *first)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint64_t joined; /* bit: GPU */
    enum ek_status st = EK_OK;

    pthread_mutex_lock(&lock);
    *first = !(joined >> d->gpu & 1);
    for (int peer = 0; *first && st == EK_OK && peer < MAX_GPUS; peer++)
        if (joined >> peer & 1) {
            st = enable_peer(d, d->gpu, peer);
            if (st == EK_OK)
                st = enable_peer(d, peer, d->gpu);
        }
    if (st == EK_OK)
        joined |= (uint64_t)1 << d->gpu;
    (void)cudaSetDevice(d->gpu); /* as ek_cuda_use left it */
    pthread_mutex_unlock(&lock);
    return st;
}

static enum ek_status check_type(const struct ek_cuda *d, enum ek_dtype act)
{
    if (act != EK_F32 && act != EK_BF16 && act != EK_F16)
        return ek_error(EK_EUNSUPPORTED, "%s: activations of type %s: only F32, BF16 and F16",
                        d->base.spec.name, ek_dtype_name(act));
    if (act == EK_BF16 && d->base.info.compute_major < 8)
        return ek_error(EK_EUNSUPPORTED, "%s: %s has no BF16 (compute capability %u.%u)",
                        d->base.spec.name, d->base.info.model, d->base.info.compute_major,
                        d->base.info.compute_minor);
    return EK_OK;
}

static uint64_t budget_of(const struct ek_device_spec *spec, const struct ek_device_info *info)
{
    if (spec->memory)
        return spec->memory;
    return (uint64_t)(spec->memory_fraction * (double)info->memory_total);
}

static void device_close(struct ek_device *dev)
{
    struct ek_cuda *d = ek_cuda(dev);

    if (d == NULL)
        return;
    ek_cuda_use(d);
    ek_cuda_queue_close(d);
    ek_cuda_kept_end(d);
    ek_cuda_gemm_close(d);
    ek_cuda_memory_close(d);
    free(d);
}

/* What kernels are chosen by. */
static enum ek_status set_queue(struct ek_cuda *d)
{
    const struct ek_device_info *info = &d->base.info;
    const struct capability *as;
    struct ek_cu_queue *q = &d->queue;
    bool hopper = false;
    int shared = 0;
    cudaError_t e;

    EK_CU_TRY(d, cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->gpu));
    EK_TRY(declared(&as));
    q->less = as && as->shared < (uint32_t)shared;
    q->shared = q->less ? as->shared : (uint32_t)shared;
    e = ek_cu_built_for_hopper(&hopper);
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction) {
        cudaGetLastError();
        return ek_error(EK_EENV, "%s: this build has no code for %s of compute capability %u.%u",
                        d->base.spec.name, info->model, info->compute_major, info->compute_minor);
    }
    EK_CU_TRY(d, e);
    q->n_sm = info->n_units;
    q->pdl = info->compute_major >= 9;
    q->wgmma = hopper && info->compute_major == 9;
    return EK_OK;
}

static enum ek_status device_open(const struct ek_device_spec *spec, enum ek_dtype act,
                                  struct ek_device **out)
{
    struct ek_cuda *d;
    enum ek_status st;
    bool first;

    if ((int)spec->index >= gpu_count())
        return ek_error(EK_EENV, "%s: there is no such GPU (%d found)", spec->name, gpu_count());
    if ((d = ek_calloc(1, sizeof(*d))) == NULL)
        return EK_ENOMEM;
    d->base.ops = &ek_ops_cuda;
    d->base.spec = *spec;
    d->base.act = act;
    d->gpu = (int)spec->index;
    pthread_mutex_init(&d->kept.lock, NULL);
    EK_GOTO(gpu_info(d->gpu, &d->base.info), st, fail);
    EK_GOTO(check_type(d, act), st, fail);
    d->memory.budget = budget_of(spec, &d->base.info);
    ek_cuda_use(d);
    EK_GOTO(join_peers(d, &first), st, fail);
    if (first)
        ek_cuda_kept_begin(d);
    EK_GOTO(set_queue(d), st, fail);
    EK_GOTO(ek_cuda_queue_open(d), st, fail);
    EK_GOTO(ek_cuda_small_scratch(d), st, fail);
    EK_GOTO(ek_cuda_gemm_open(d), st, fail);
    *out = &d->base;
    return EK_OK;

fail:
    device_close(&d->base);
    return st;
}

static bool device_state(struct ek_device *dev, struct ek_device_state *out)
{
    return ek_nvml_state(dev->info.uuid + strlen("GPU-"), dev->info.pci, out);
}

static const char *joined(const struct ek_device *dev, const struct ek_device *to)
{
    const char *uuid[2] = {dev->info.uuid + strlen("GPU-"), to->info.uuid + strlen("GPU-")};
    const char *pci[2] = {dev->info.pci, to->info.pci};

    return dev->ops == to->ops ? ek_nvml_joined(uuid, pci) : "";
}

static enum ek_status read_bytes(struct ek_device *dev, const void *p, size_t n)
{
    struct ek_cuda *d = ek_cuda(dev);
    void *sink;

    ek_cuda_use(d);
    EK_TRY(ek_cuda_scratch(d, EK_CU_SINK, sizeof(uint32_t), &sink));
    return ek_cuda_issued(d, ek_cu_read(&d->queue, p, n, sink), "read_bytes");
}

const struct ek_ops ek_ops_cuda = {
    .name = "cuda",
    .open = device_open,
    .close = device_close,
    .list = list_gpus,
    .alloc = ek_cuda_alloc,
    .release = ek_cuda_release,
    .usage = ek_cuda_usage,
    .reset_peaks = ek_cuda_reset_peaks,
    .memory_free = ek_cuda_memory_free,
    .state = device_state,
    .joined = joined,
    .host_alloc = ek_cuda_host_alloc,
    .host_free = ek_cuda_host_free,
    .upload = ek_cuda_upload,
    .download = ek_cuda_download,
    .copy = ek_cuda_copy,
    .copy_from = ek_cuda_copy_from,
    .zero = ek_cuda_zero,
    .fetch = ek_cuda_fetch,
    .reaches = ek_cuda_reaches,
    .store = ek_cuda_store,
    .flag_wait = ek_cuda_flag_wait,
    .stamp = ek_cuda_stamp,
    .channel_lacks = ek_cuda_channel_lacks,
    .channel_bytes = ek_cuda_channel_bytes,
    .channel_open = ek_cuda_channel_open,
    .channel_send = ek_cuda_channel_send,
    .channel_check = ek_cuda_channel_check,
    .channel_abort = ek_cuda_channel_abort,
    .channel_close = ek_cuda_channel_close,
    .event_new = ek_cuda_event_new,
    .event_order = ek_cuda_event_order,
    .event_free = ek_cuda_event_free,
    .event_record = ek_cuda_event_record,
    .event_wait = ek_cuda_event_wait,
    .event_sync = ek_cuda_event_sync,
    .event_passed = ek_cuda_event_passed,
    .idle = ek_cuda_idle,
    .event_seconds = ek_cuda_event_seconds,
    .sync = ek_cuda_sync,
    .graph_begin = ek_cuda_graph_begin,
    .graph_end = ek_cuda_graph_end,
    .graph_launch = ek_cuda_graph_launch,
    .graph_free = ek_cuda_graph_free,
    .mat_new = ek_cuda_mat_new,
    .mat_ready = ek_cuda_mat_ready,
    .mat_free = ek_cuda_mat_free,
    .alloc_bytes = ek_cuda_alloc_bytes,
    .mat_bytes = ek_cuda_mat_bytes,
    .embed = ek_cuda_embed,
    .rms_norm = ek_cuda_rms_norm,
    .layer_norm = ek_cuda_layer_norm,
    .linear = ek_cuda_linear,
    .rope_append = ek_cuda_rope_append,
    .attention = ek_cuda_attention,
    .swiglu = ek_cuda_swiglu,
    .gather = ek_cuda_gather,
    .permute = ek_cuda_permute,
    .argmax = ek_cuda_argmax,
    .sample = ek_cuda_sample,
    .take = ek_cuda_take,
    .convert = ek_cuda_convert,
    .norm_linear = ek_cuda_norm_linear,
    .norm_gate_up = ek_cuda_norm_gate_up,
    .norm_qkv_rope = ek_cuda_norm_qkv_rope,
    .layer_tail = ek_cuda_layer_tail,
    .latent_append = ek_cuda_latent_append,
    .latent_query = ek_cuda_latent_query,
    .latent_value = ek_cuda_latent_value,
    .route = ek_cuda_route,
    .experts = ek_cuda_experts,
    .scatter_rows = ek_cuda_scatter_rows,
    .rope_rows = ek_cuda_rope_rows,
    .attention_dense = ek_cuda_attention_dense,
    .latent_prefill = ek_cuda_latent_prefill,
    .latent_mix = ek_cuda_latent_mix,
    .mixture = ek_cuda_mixture,
    .reserve = ek_cuda_reserve,
    .read_bytes = read_bytes,
};
