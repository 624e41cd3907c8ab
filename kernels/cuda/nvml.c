/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML by dlopen, with own prototypes: it is part of the driver, and toolkits may lack its header.
 * It tells the driver's version and the free memory of a GPU without making a context on it.
 */
#include "kernels/cuda/cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

typedef void *nvml_device;
struct nvml_memory {
    unsigned long long total, free, used;
};
static struct {
    int (*init)(void);
    int (*driver_version)(char *, unsigned);
    int (*by_pci)(const char *, nvml_device *);
    int (*memory)(nvml_device, struct nvml_memory *);
    bool ok;
} nvml;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void)
{
    void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL); /* kept until the end */

    if (lib == NULL)
        return;
    *(void **)&nvml.init = dlsym(lib, "nvmlInit_v2");
    *(void **)&nvml.driver_version = dlsym(lib, "nvmlSystemGetDriverVersion");
    *(void **)&nvml.by_pci = dlsym(lib, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&nvml.memory = dlsym(lib, "nvmlDeviceGetMemoryInfo");
    nvml.ok = nvml.init && nvml.driver_version && nvml.by_pci && nvml.memory && nvml.init() == 0;
}

bool ek_nvml_facts(const char *pci, struct ek_nvml_facts *out)
{
    struct nvml_memory m;
    nvml_device h;

    pthread_once(&once, load);
    if (!nvml.ok || nvml.by_pci(pci, &h) != 0 || nvml.memory(h, &m) != 0 ||
        nvml.driver_version(out->driver, sizeof(out->driver)) != 0)
        return false;
    out->total = m.total;
    out->free = m.free;
    return true;
}
