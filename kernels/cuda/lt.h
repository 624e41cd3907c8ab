/* SPDX-License-Identifier: Apache-2.0
 *
 * cuBLASLt, loaded beside the driver's start: its 370 000 relocations take 60 ms, for which a
 * command that opens no GPU need not wait at all.
 */
#ifndef EK_CUDA_LT_H
#define EK_CUDA_LT_H

#include <cublasLt.h>

#define EK_LT_EACH(f)                                                                              \
    f(Create);                                                                                     \
    f(Destroy);                                                                                    \
    f(GetStatusString);                                                                            \
    f(GetVersion);                                                                                 \
    f(Matmul);                                                                                     \
    f(MatmulAlgoGetHeuristic);                                                                     \
    f(MatmulDescCreate);                                                                           \
    f(MatmulDescDestroy);                                                                          \
    f(MatmulDescSetAttribute);                                                                     \
    f(MatmulPreferenceCreate);                                                                     \
    f(MatmulPreferenceDestroy);                                                                    \
    f(MatmulPreferenceSetAttribute);                                                               \
    f(MatrixLayoutCreate);                                                                         \
    f(MatrixLayoutDestroy);                                                                        \
    f(MatrixLayoutSetAttribute)

struct ek_lt {
#define EK_LT_MEMBER(name) __typeof__(&cublasLt##name) name
    EK_LT_EACH(EK_LT_MEMBER);
#undef EK_LT_MEMBER
};
extern struct ek_lt ek_lt; /* of use once ek_lt_missing has returned NULL */

/* Begins to load it in another thread, where there is a driver. */
void ek_lt_begin(void);
/* Waits until it is loaded. NULL: it is; else why not. */
const char *ek_lt_missing(void);

#endif
