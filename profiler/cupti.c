/* SPDX-License-Identifier: Apache-2.0
 *
 * CUPTI's activity records of kernels, copies and allocations. CUPTI fills buffers that it asks for
 * and hands them back, from a thread of its own or from within its flush: so its functions are
 * never called with our lock held. Kernels of a replayed graph are recorded one by one.
 */
#include "profiler/tracer.h"

#include <cupti.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BUFFER_BYTES ((size_t)4 << 20)
#define MAX_INDEX    64

#if CUPTI_API_VERSION >= 130000
typedef CUpti_ActivityKernel10 kernel_record;
typedef CUpti_ActivityMemory4 memory_record;
typedef CUpti_ActivityOverhead3 overhead_record;
#else
typedef CUpti_ActivityKernel9 kernel_record;
typedef CUpti_ActivityMemory3 memory_record;
typedef CUpti_ActivityOverhead overhead_record;
#endif
typedef CUpti_ActivityMemcpy5 copy_record; /* the fields that are read stand first in every one */

extern char *__cxa_demangle(const char *mangled, char *out, size_t *n, int *status);

static const CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                                           CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET,
                                           CUPTI_ACTIVITY_KIND_OVERHEAD};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { /* under the lock */
    struct trace trace;
    enum ek_status status;
    int64_t bytes[MAX_INDEX];
} seen;

static enum ek_status failed(CUptiResult r, const char *what)
{
    const char *text = "unknown error";

    cuptiGetResultString(r, &text);
    return ek_error(EK_EENV, "CUPTI: %s: %s", what, text);
}

#define CUPTI_TRY(call)                                                                            \
    do {                                                                                           \
        CUptiResult cupti_r_ = (call);                                                             \
        if (cupti_r_ != CUPTI_SUCCESS)                                                             \
            return failed(cupti_r_, #call);                                                        \
    } while (0)

/* ---- records ------------------------------------------------------------------------------------
 */
static enum ek_status take_kernel(const kernel_record *k)
{
    int status = -1;
    char *plain = k->name ? __cxa_demangle(k->name, NULL, NULL, &status) : NULL;
    char name[EK_STORE_MAX_NAME];
    enum ek_status st;

    attribution_name(plain ? plain : k->name ? k->name : "?", name);
    st = trace_add(&seen.trace, name, k->start, k->end);
    free(plain);
    return st;
}

static const char *copy_name(unsigned kind)
{
    switch (kind) {
    case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD:
        return "copy to the device";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH:
        return "copy to the host";
    case CUPTI_ACTIVITY_MEMCPY_KIND_PTOP:
        return "copy between devices";
    default:
        return "copy";
    }
}

static void take_memory(const memory_record *m)
{
    int64_t bytes = (int64_t)m->bytes;

    if (m->memoryKind != CUPTI_ACTIVITY_MEMORY_KIND_DEVICE || m->deviceId >= MAX_INDEX)
        return;
    if (m->memoryOperationType == CUPTI_ACTIVITY_MEMORY_OPERATION_TYPE_ALLOCATION)
        seen.bytes[m->deviceId] += bytes;
    else if (m->memoryOperationType == CUPTI_ACTIVITY_MEMORY_OPERATION_TYPE_RELEASE)
        seen.bytes[m->deviceId] -= bytes;
}

static enum ek_status take(const CUpti_Activity *r)
{
    const CUpti_ActivityMemset4 *fill = (const void *)r;
    const overhead_record *own = (const void *)r;
    const copy_record *copy = (const void *)r;

    switch (r->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
        return take_kernel((const void *)r);
    case CUPTI_ACTIVITY_KIND_MEMCPY:
        return trace_add(&seen.trace, copy_name(copy->copyKind), copy->start, copy->end);
    case CUPTI_ACTIVITY_KIND_MEMSET:
        return trace_add(&seen.trace, "fill", fill->start, fill->end);
    case CUPTI_ACTIVITY_KIND_OVERHEAD:
        seen.trace.overhead_ns += own->end - own->start;
#if CUPTI_API_VERSION >= 130000
        free(own->overheadData); /* ours from here on */
#endif
        return EK_OK;
    case CUPTI_ACTIVITY_KIND_MEMORY2:
        take_memory((const void *)r);
        return EK_OK;
    default:
        return EK_OK;
    }
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *most_records)
{
    *buffer = aligned_alloc(64, BUFFER_BYTES);
    *size = *buffer ? BUFFER_BYTES : 0;
    *most_records = 0; /* as many as fit */
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size,
                                 size_t valid)
{
    CUpti_Activity *r = NULL;

    (void)context;
    (void)stream;
    (void)size;
    pthread_mutex_lock(&lock);
    while (valid > 0 && seen.status == EK_OK &&
           cuptiActivityGetNextRecord(buffer, valid, &r) == CUPTI_SUCCESS)
        seen.status = take(r);
    pthread_mutex_unlock(&lock);
    free(buffer);
}

/* ---- the table ----------------------------------------------------------------------------------
 */
static enum ek_status prepare(void)
{
    static bool registered;

    if (!registered)
        CUPTI_TRY(cuptiActivityRegisterCallbacks(give_buffer, take_buffer));
    registered = true;
    return EK_OK;
}

static void end(void)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(kinds); i++)
        cuptiActivityDisable(kinds[i]);
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    pthread_mutex_lock(&lock);
    trace_clear(&seen.trace);
    pthread_mutex_unlock(&lock);
}

static enum ek_status begin(void)
{
    EK_TRY(prepare());
    for (size_t i = 0; i < EK_ARRAY_LEN(kinds); i++) {
        CUptiResult r = cuptiActivityEnable(kinds[i]);
        if (r != CUPTI_SUCCESS) {
            end();
            return failed(r, "cuptiActivityEnable");
        }
    }
    return EK_OK;
}

static enum ek_status add_all(struct trace *out)
{
    for (size_t i = 0; i < seen.trace.n; i++) {
        const struct trace_record *r = &seen.trace.records[i];
        EK_TRY(trace_add(out, r->name, r->begin, r->end));
    }
    out->overhead_ns += seen.trace.overhead_ns;
    return EK_OK;
}

static enum ek_status collect(struct trace *out)
{
    size_t dropped = 0;
    enum ek_status st;

    CUPTI_TRY(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
    CUPTI_TRY(cuptiActivityGetNumDroppedRecords(NULL, 0, &dropped));
    pthread_mutex_lock(&lock);
    st = seen.status == EK_OK && out ? add_all(out) : seen.status;
    seen.trace.n = 0;
    seen.trace.overhead_ns = 0;
    pthread_mutex_unlock(&lock);
    if (st == EK_OK && dropped > 0)
        ek_note("CUPTI dropped %zu records", dropped);
    return st;
}

static enum ek_status memory_begin(void)
{
    EK_TRY(prepare());
    CUPTI_TRY(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMORY2));
    return EK_OK;
}

static enum ek_status memory_now(uint32_t index, uint64_t *bytes)
{
    CUPTI_TRY(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
    pthread_mutex_lock(&lock);
    *bytes = index < MAX_INDEX && seen.bytes[index] > 0 ? (uint64_t)seen.bytes[index] : 0;
    pthread_mutex_unlock(&lock);
    return EK_OK;
}

const struct tracer tracer_cupti = {.backend = "cuda",
                                    .name = "CUPTI",
                                    .begin = begin,
                                    .end = end,
                                    .collect = collect,
                                    .memory_begin = memory_begin,
                                    .memory_now = memory_now};
