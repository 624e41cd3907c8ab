/* SPDX-License-Identifier: Apache-2.0
 *
 * The host's processor: which cores the process may use, its name, caches and memory.
 */
#include "kernels/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The process's cores before any of its threads was bound. */
static cpu_set_t process_cores;
static pthread_once_t process_cores_once = PTHREAD_ONCE_INIT;

static void read_process_cores(void)
{
    CPU_ZERO(&process_cores);
    if (sched_getaffinity(0, sizeof(process_cores), &process_cores) != 0 ||
        !CPU_COUNT(&process_cores))
        CPU_SET(0, &process_cores);
}

void cpu_bind_thread(int core)
{
    cpu_set_t set;

    pthread_once(&process_cores_once, read_process_cores);
    CPU_ZERO(&set);
    if (core < 0)
        set = process_cores;
    else
        CPU_SET((unsigned)core, &set);
    /* a refusal (a container that took the core away) costs speed, not correctness */
    (void)sched_setaffinity(0, sizeof(set), &set);
}

static enum ek_status add_range(const char *name, unsigned long from, unsigned long to,
                                struct cpu_cores *out)
{
    for (unsigned long c = from; c <= to; c++) {
        if (c >= CPU_SETSIZE || !CPU_ISSET(c, &process_cores))
            return ek_error(EK_EENV, "device %s: core %lu is not one of the %d of this process",
                            name, c, CPU_COUNT(&process_cores));
        for (uint32_t i = 0; i < out->n; i++)
            if (out->id[i] == c)
                return ek_error(EK_EUSAGE, "device %s: core %lu is listed twice", name, c);
        out->id[out->n++] = (uint16_t)c;
    }
    return EK_OK;
}

enum ek_status cpu_cores_parse(const char *name, const char *list, struct cpu_cores *out)
{
    const char *p = list;
    char *end;

    pthread_once(&process_cores_once, read_process_cores);
    out->n = 0;
    for (unsigned c = 0; !*list && c < CPU_SETSIZE; c++)
        if (CPU_ISSET(c, &process_cores))
            out->id[out->n++] = (uint16_t)c;
    while (*p) {
        unsigned long from = strtoul(p, &end, 10), to = from;
        bool bad = end == p || *p == '-';
        if (!bad && *end == '-') {
            p = end + 1;
            to = strtoul(p, &end, 10);
            bad = end == p || to < from;
        }
        if (bad || (*end && (*end != ',' || !end[1])))
            return ek_error(EK_EUSAGE, "device %s: threads=%s: bad list of cores at position %zu",
                            name, list, (size_t)(p - list) + 1);
        EK_TRY(add_range(name, from, to, out));
        p = *end ? end + 1 : end;
    }
    return EK_OK;
}

/* Value of "key : value" in a file of /proc, without its newline; false when there is none. */
static bool proc_value(const char *path, const char *key, char *out, size_t cap)
{
    char line[256], *value;
    FILE *f = fopen(path, "r");
    bool found = false;

    while (f && !found && fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, strlen(key)) != 0 || !(value = strchr(line, ':')))
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\n")] = 0;
        snprintf(out, cap, "%s", value);
        found = true;
    }
    if (f)
        fclose(f);
    return found;
}

/* A number in a file of its own; 0 when there is none ("max"). */
static uint64_t file_number(const char *path)
{
    char text[64] = "";
    FILE *f = fopen(path, "r");
    char *ok = f ? fgets(text, sizeof(text), f) : NULL;

    if (f)
        fclose(f);
    return ok ? strtoull(text, NULL, 10) : 0;
}

uint64_t cpu_host_memory_free(void)
{
    uint64_t limit = file_number("/sys/fs/cgroup/memory.max");
    uint64_t used = file_number("/sys/fs/cgroup/memory.current"), free_bytes = 0;
    char text[64];

    if (proc_value("/proc/meminfo", "MemAvailable", text, sizeof(text)))
        free_bytes = strtoull(text, NULL, 10) * 1024;
    if (limit && limit - (used < limit ? used : limit) < free_bytes)
        free_bytes = limit - (used < limit ? used : limit);
    return free_bytes;
}

static uint64_t cache_bytes(void)
{
    long last = sysconf(_SC_LEVEL3_CACHE_SIZE);

    if (last <= 0)
        last = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return last > 0 ? (uint64_t)last : 0;
}

void cpu_host_info(struct ek_device_info *info)
{
    uint64_t limit = file_number("/sys/fs/cgroup/memory.max");
    uint64_t total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

    if (!proc_value("/proc/cpuinfo", "model name", info->model, sizeof(info->model)))
        snprintf(info->model, sizeof(info->model), "CPU");
    snprintf(info->memory_group, sizeof(info->memory_group), "host");
    info->memory_total = limit && limit < total ? limit : total;
    info->memory_free = cpu_host_memory_free();
    info->cache_bytes = cache_bytes();
}
