/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML by dlopen. A MIG instance is a device of its own here and to CUDA, with a UUID and memory of
 * its own; clocks are asked of the GPU that it is a part of.
 */
#include "kernels/cuda/nvml.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { CLOCK_SM = 1, CLOCK_MEMORY = 2, SENSOR_GPU = 0 };
enum { P2P_NVLINK = 2, P2P_OK = 0 };
#define REASON_IDLE 1ull /* no lower clock under load */

static struct ek_nvml_api nvml;
static bool loaded;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void *symbol(void *lib, const char *name, const char *old)
{
    void *p = dlsym(lib, name);

    return p || !old ? p : dlsym(lib, old);
}

static void load(void)
{
    void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL); /* kept until the end */
    int (*init)(void);

    if (lib == NULL)
        return;
    *(void **)&init = dlsym(lib, "nvmlInit_v2");
    *(void **)&nvml.driver_version = dlsym(lib, "nvmlSystemGetDriverVersion");
    *(void **)&nvml.by_uuid = dlsym(lib, "nvmlDeviceGetHandleByUUID");
    *(void **)&nvml.by_pci = dlsym(lib, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&nvml.memory = dlsym(lib, "nvmlDeviceGetMemoryInfo");
    *(void **)&nvml.parent = dlsym(lib, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle");
    *(void **)&nvml.clock = dlsym(lib, "nvmlDeviceGetClockInfo");
    *(void **)&nvml.reasons = symbol(lib, "nvmlDeviceGetCurrentClocksEventReasons",
                                     "nvmlDeviceGetCurrentClocksThrottleReasons");
    *(void **)&nvml.temperature = dlsym(lib, "nvmlDeviceGetTemperature");
    *(void **)&nvml.p2p = dlsym(lib, "nvmlDeviceGetP2PStatus");
    *(void **)&nvml.ancestor = dlsym(lib, "nvmlDeviceGetTopologyCommonAncestor");
    loaded =
        init && nvml.driver_version && nvml.by_uuid && nvml.by_pci && nvml.memory && init() == 0;
}

static void keep(void)
{
}

void ek_nvml_use(const struct ek_nvml_api *api)
{
    pthread_once(&once, keep);
    nvml = *api;
    loaded = true;
}

static bool find(const char *uuid, const char *pci, ek_nvml_device *out, bool *mig)
{
    static const char *const kinds[] = {"GPU", "MIG"};
    char name[64];

    pthread_once(&once, load);
    *mig = false;
    if (!loaded)
        return false;
    for (size_t i = 0; i < EK_ARRAY_LEN(kinds); i++) {
        snprintf(name, sizeof(name), "%s-%s", kinds[i], uuid);
        *mig = i > 0;
        if (nvml.by_uuid(name, out) == 0)
            return true;
    }
    *mig = false;
    return nvml.by_pci(pci, out) == 0;
}

bool ek_nvml_facts(const char *uuid, const char *pci, struct ek_nvml_facts *out)
{
    struct ek_nvml_facts f = {.total = 0};
    struct ek_nvml_memory m;
    ek_nvml_device d;

    if (!find(uuid, pci, &d, &f.mig) || nvml.memory(d, &m) != 0 ||
        nvml.driver_version(f.driver, sizeof(f.driver)) != 0)
        return false;
    f.total = m.total;
    f.free = m.free;
    *out = f;
    return true;
}

static ek_nvml_device whole_of(ek_nvml_device d, bool mig)
{
    ek_nvml_device whole;

    return mig && nvml.parent && nvml.parent(d, &whole) == 0 ? whole : d;
}

const char *ek_nvml_joined(const char *uuid[2], const char *pci[2])
{
    static const struct {
        int level;
        const char *name;
    } levels[] = {{0, "same board"},   {10, "PCIe switch"}, {20, "PCIe switches"},
                  {30, "host bridge"}, {40, "NUMA node"},   {50, "between sockets"}};
    ek_nvml_device d[2];
    int status, level;
    bool mig;

    for (int i = 0; i < 2; i++) {
        if (!find(uuid[i], pci[i], &d[i], &mig))
            return "";
        d[i] = whole_of(d[i], mig);
    }
    if (d[0] == d[1])
        return "same GPU";
    if (nvml.p2p && nvml.p2p(d[0], d[1], P2P_NVLINK, &status) == 0 && status == P2P_OK)
        return "NVLink";
    if (nvml.ancestor && nvml.ancestor(d[0], d[1], &level) == 0)
        for (size_t i = 0; i < EK_ARRAY_LEN(levels); i++)
            if (levels[i].level == level)
                return levels[i].name;
    return "";
}

static uint32_t clock_of(ek_nvml_device d, int which)
{
    unsigned mhz = 0;

    return nvml.clock && nvml.clock(d, which, &mhz) == 0 ? mhz : 0;
}

bool ek_nvml_state(const char *uuid, const char *pci, struct ek_device_state *out)
{
    struct ek_device_state s = {.clock_mhz = 0};
    unsigned long long reasons = 0;
    struct ek_nvml_memory m;
    ek_nvml_device d, whole;
    bool mig;

    if (!find(uuid, pci, &d, &mig))
        return false;
    if (nvml.memory(d, &m) == 0)
        s.memory_used = m.total - m.free;
    whole = whole_of(d, mig);
    s.clock_mhz = clock_of(whole, CLOCK_SM);
    s.memory_mhz = clock_of(whole, CLOCK_MEMORY);
    if (nvml.reasons && nvml.reasons(whole, &reasons) == 0)
        s.throttle = (uint32_t)(reasons & ~REASON_IDLE);
    if (nvml.temperature && nvml.temperature(whole, SENSOR_GPU, &s.celsius) != 0)
        s.celsius = 0;
    *out = s;
    return true;
}
