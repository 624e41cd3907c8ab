/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML, which is part of the driver: what it knows of a GPU without making a context on it. Loaded
 * when it is first asked, with own prototypes, as toolkits may lack its header. Needs no CUDA.
 */
#ifndef EK_CUDA_NVML_H
#define EK_CUDA_NVML_H

#include "kernels/kernels.h"

typedef void *ek_nvml_device;
struct ek_nvml_memory {
    unsigned long long total, free, used;
};
/* The functions of NVML that are used; each returns 0 where it could answer. Those behind memory
 * may be NULL. */
struct ek_nvml_api {
    int (*driver_version)(char *text, unsigned n);
    int (*by_uuid)(const char *uuid, ek_nvml_device *out);
    int (*by_pci)(const char *pci, ek_nvml_device *out);
    int (*memory)(ek_nvml_device d, struct ek_nvml_memory *out);
    int (*parent)(ek_nvml_device mig, ek_nvml_device *out); /* the GPU of a MIG instance */
    int (*clock)(ek_nvml_device d, int which, unsigned *mhz);
    int (*reasons)(ek_nvml_device d, unsigned long long *mask);
    int (*temperature)(ek_nvml_device d, int sensor, unsigned *celsius);
    int (*p2p)(ek_nvml_device a, ek_nvml_device b, int what, int *status);
    int (*ancestor)(ek_nvml_device a, ek_nvml_device b, int *level); /* of the tree of PCIe */
};
/* Takes these instead of the driver's; for tests, before anything else here is called. */
void ek_nvml_use(const struct ek_nvml_api *api);

struct ek_nvml_facts {
    char driver[40];
    uint64_t total, free; /* of the MIG instance, where it is one */
    bool mig;
};
/* uuid: 16 bytes in hexadecimal with dashes, without "GPU-" or "MIG-", as both kinds of devices
 * have them; pci is looked for when no device has it. False where NVML is not there. */
bool ek_nvml_facts(const char *uuid, const char *pci, struct ek_nvml_facts *out);
/* What lies between two whole GPUs, by uuid and pci of each: "NVLink", else how far up the tree of
 * PCIe they meet; "same GPU" of two instances; "" where that is not known. */
const char *ek_nvml_joined(const char *uuid[2], const char *pci[2]);
/* Clocks and their reasons are those of the whole GPU. */
bool ek_nvml_state(const char *uuid, const char *pci, struct ek_device_state *out);

#endif
