/* SPDX-License-Identifier: Apache-2.0
 *
 * Hand-overs between GPUs that no host thread takes part in: the sender's kernel stores into the
 * receiver's memory and raises a flag there, which a kernel on the receiver's queue waits for.
 */
#include "kernels/cuda/cuda.h"

bool ek_cuda_reaches(const struct ek_device *dev, const struct ek_device *to)
{
    int gpu = (int)dev->spec.index, other = (int)to->spec.index, can = 0;

    if (dev->ops != to->ops)
        return false;
    return gpu == other || (cudaDeviceCanAccessPeer(&can, gpu, other) == cudaSuccess && can);
}

enum ek_status ek_cuda_store(struct ek_device *dev, void *dst, const void *src, size_t n,
                             uint32_t *flag, uint32_t value, uint64_t *when)
{
    struct ek_cuda *d = ek_cuda(dev);
    void *arrived;

    ek_cuda_use(d);
    EK_TRY(ek_cuda_scratch(d, EK_CU_STORED, sizeof(uint32_t), &arrived));
    return ek_cuda_issued(d, ek_cu_store(&d->queue, dst, src, n, flag, value, arrived, when),
                          "store");
}

enum ek_status ek_cuda_flag_wait(struct ek_device *dev, const uint32_t *flag, uint32_t value,
                                 const uint32_t *stop, uint64_t *when)
{
    ek_cuda_use(ek_cuda(dev));
    return ek_cuda_issued(ek_cuda(dev), ek_cu_await(&ek_cuda(dev)->queue, flag, value, stop, when),
                          "flag_wait");
}

enum ek_status ek_cuda_stamp(struct ek_device *dev, uint64_t *when)
{
    ek_cuda_use(ek_cuda(dev));
    return ek_cuda_issued(ek_cuda(dev), ek_cu_stamp(&ek_cuda(dev)->queue, when), "stamp");
}
