/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/lt.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#define TEXT_OF(x) #x
#define TEXT(x)    TEXT_OF(x)
#define FILE_NAME  "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

struct ek_lt ek_lt;
static char missing[256];
static pthread_once_t loaded = PTHREAD_ONCE_INIT, begun = PTHREAD_ONCE_INIT;

static void load(void)
{
    void *lib = dlopen(FILE_NAME, RTLD_NOW | RTLD_LOCAL); /* kept until the end */
    bool all = true;

    if (lib == NULL) {
        snprintf(missing, sizeof(missing), "%s", dlerror());
        return;
    }
#define LOAD(name)                                                                                 \
    *(void **)&ek_lt.name = dlsym(lib, "cublasLt" #name);                                          \
    all = all && ek_lt.name != NULL
    EK_LT_EACH(LOAD);
    if (!all)
        snprintf(missing, sizeof(missing), "%s: not cuBLASLt, or an old one", FILE_NAME);
}

static void *load_beside(void *unused)
{
    pthread_once(&loaded, load);
    return unused;
}

/* The driver's library first: both are loaded under one lock, and its start behind that is long. */
static void begin(void)
{
    pthread_t thread;
    int version = 0;

    if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0 &&
        pthread_create(&thread, NULL, load_beside, NULL) == 0)
        pthread_detach(thread);
}

void ek_lt_begin(void)
{
    pthread_once(&begun, begin);
}

const char *ek_lt_missing(void)
{
    pthread_once(&loaded, load);
    return missing[0] ? missing : NULL;
}
