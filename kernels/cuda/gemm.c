/* SPDX-License-Identifier: Apache-2.0
 *
 * Large products by cuBLASLt: out[n, rows] = x[n, cols] w[rows, cols]^T, accumulated in fp32 (fp32
 * operands stay fp32: no TF32). Row-major operands are the transposes of what cuBLASLt sees. The
 * algorithm is chosen once a shape and remembered; those that add through atomics are left out, so
 * that the same input gives the same bits.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/lt.h"

#include <stdlib.h>
#include <string.h>

struct descriptors {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, out;
};

static enum ek_status lt_failed(const struct ek_cuda *d, cublasStatus_t s, const char *what)
{
    return ek_error(EK_EDEVICE, "%s: %s: %s", d->base.spec.name, what, ek_lt.GetStatusString(s));
}
#define LT_TRY(d, call)                                                                            \
    do {                                                                                           \
        cublasStatus_t lt_s_ = (call);                                                             \
        if (lt_s_ != CUBLAS_STATUS_SUCCESS)                                                        \
            return lt_failed((d), lt_s_, #call);                                                   \
    } while (0)

enum ek_status ek_cuda_gemm_open(struct ek_cuda *d)
{
    if (ek_lt_missing() != NULL)
        return ek_error(EK_EENV, "%s: %s", d->base.spec.name, ek_lt_missing());
    if ((d->plans = ek_calloc(EK_CU_N_PLANS, sizeof(*d->plans))) == NULL)
        return EK_ENOMEM;
    LT_TRY(d, ek_lt.Create(&d->lt));
    return EK_OK;
}

void ek_cuda_gemm_close(struct ek_cuda *d)
{
    if (d->lt)
        ek_lt.Destroy(d->lt);
    free(d->plans);
}

static cudaDataType_t cuda_type(enum ek_dtype t)
{
    return t == EK_F32 ? CUDA_R_32F : t == EK_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static void descriptors_free(struct descriptors *m)
{
    if (m->op)
        ek_lt.MatmulDescDestroy(m->op);
    if (m->w)
        ek_lt.MatrixLayoutDestroy(m->w);
    if (m->x)
        ek_lt.MatrixLayoutDestroy(m->x);
    if (m->out)
        ek_lt.MatrixLayoutDestroy(m->out);
}

/* One of a batch of matrices that begin step elements apart. */
static enum ek_status in_batch(struct ek_cuda *d, cublasLtMatrixLayout_t layout, uint32_t batch,
                               size_t step)
{
    int32_t count = (int32_t)batch;
    int64_t offset = (int64_t)step;

    LT_TRY(d, ek_lt.MatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                             sizeof(count)));
    LT_TRY(d, ek_lt.MatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                             &offset, sizeof(offset)));
    return EK_OK;
}

static cublasLtEpilogue_t epilogue(const struct ek_cu_gemm *g)
{
    if (g->gelu) /* cuBLASLt's is the tanh form */
        return g->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    return g->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

static enum ek_status describe(struct ek_cuda *d, const struct ek_cu_gemm *g, struct descriptors *m)
{
    cublasOperation_t t = g->turned ? CUBLAS_OP_N : CUBLAS_OP_T;
    uint64_t wide = g->turned ? g->rows : g->cols, tall = g->turned ? g->cols : g->rows;
    cublasLtEpilogue_t after = epilogue(g);

    LT_TRY(d, ek_lt.MatmulDescCreate(&m->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_TRY(d, ek_lt.MatmulDescSetAttribute(m->op, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof(t)));
    LT_TRY(d, ek_lt.MatmulDescSetAttribute(m->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &after,
                                           sizeof(after)));
    if (g->bias)
        LT_TRY(d, ek_lt.MatmulDescSetAttribute(m->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias,
                                               sizeof(g->bias)));
    LT_TRY(d, ek_lt.MatrixLayoutCreate(&m->w, cuda_type(g->in), wide, tall, (int64_t)wide));
    LT_TRY(d, ek_lt.MatrixLayoutCreate(&m->x, cuda_type(g->in), g->cols, g->n, (int64_t)g->ldx));
    LT_TRY(d, ek_lt.MatrixLayoutCreate(&m->out, cuda_type(g->out_type), g->rows, g->n,
                                       (int64_t)g->ldo));
    if (g->batch == 0)
        return EK_OK;
    EK_TRY(in_batch(d, m->w, g->batch, g->w_step));
    EK_TRY(in_batch(d, m->x, g->batch, g->x_step));
    return in_batch(d, m->out, g->batch, g->out_step);
}

/* Largest power of two up to 256 that divides the address. */
static uint32_t alignment(const void *p)
{
    uintptr_t a = (uintptr_t)p | 256;

    return (uint32_t)(a & -a);
}

static uint32_t least_alignment(const struct ek_cu_gemm *g)
{
    const void *all[] = {g->w, g->x, g->out, g->bias};
    size_t in = g->in == EK_F32 ? 4 : 2, out = g->out_type == EK_F32 ? 4 : 2;
    const size_t steps[] = {g->w_step * in, g->x_step * in, g->out_step * out};
    uint32_t least = 256;

    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++)
        if (all[i] && alignment(all[i]) < least)
            least = alignment(all[i]);
    for (size_t i = 0; g->batch && i < EK_ARRAY_LEN(steps); i++)
        if (alignment((const void *)(uintptr_t)steps[i]) < least)
            least = alignment((const void *)(uintptr_t)steps[i]);
    return least;
}

static enum ek_status prefer(struct ek_cuda *d, uint32_t align, cublasLtMatmulPreference_t pref)
{
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    size_t work = EK_CU_GEMM_WORK;
    static const cublasLtMatmulPreferenceAttributes_t sides[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};

    LT_TRY(d, ek_lt.MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &work, sizeof(work)));
    LT_TRY(d, ek_lt.MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                 &schemes, sizeof(schemes)));
    for (size_t i = 0; i < EK_ARRAY_LEN(sides); i++)
        LT_TRY(d, ek_lt.MatmulPreferenceSetAttribute(pref, sides[i], &align, sizeof(align)));
    return EK_OK;
}

static enum ek_status choose(struct ek_cuda *d, const struct ek_cu_gemm *g,
                             const struct descriptors *m, struct ek_cu_plan *plan)
{
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t best;
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    enum ek_status st;
    int found = 0;

    LT_TRY(d, ek_lt.MatmulPreferenceCreate(&pref));
    st = prefer(d, plan->key.align, pref);
    if (st == EK_OK)
        s = ek_lt.MatmulAlgoGetHeuristic(d->lt, m->op, m->w, m->x, m->out, m->out, pref, 1, &best,
                                         &found);
    ek_lt.MatmulPreferenceDestroy(pref);
    EK_TRY(st);
    if (s != CUBLAS_STATUS_SUCCESS || found == 0)
        return ek_error(EK_EUNSUPPORTED, "%s: no cuBLASLt product of %ux%u by %u in %s (%s)",
                        d->base.spec.name, g->rows, g->cols, g->n, ek_dtype_name(g->in),
                        ek_lt.GetStatusString(s));
    plan->algo = best.algo;
    plan->work = best.workspaceSize;
    plan->used = true;
    return EK_OK;
}

/* The plan's place, by open addressing; a full neighbourhood gives up its first. */
static struct ek_cu_plan *plan_at(struct ek_cuda *d, const struct ek_cu_key *key)
{
    uint32_t h = key->rows * 2654435761u ^ key->cols * 2246822519u ^ key->n * 3266489917u;
    struct ek_cu_plan *p = NULL;

    for (uint32_t i = 0; i < 16; i++) {
        p = &d->plans[(h + i) % EK_CU_N_PLANS];
        if (!p->used || memcmp(&p->key, key, sizeof(*key)) == 0)
            return p;
    }
    p = &d->plans[h % EK_CU_N_PLANS];
    p->used = false;
    return p;
}

static void key_of(const struct ek_cu_gemm *g, struct ek_cu_key *key)
{
    memset(key, 0, sizeof(*key)); /* compared as bytes */
    key->in = g->in;
    key->out = g->out_type;
    key->rows = g->rows;
    key->cols = g->cols;
    key->n = g->n;
    key->align = least_alignment(g);
    key->ldx = g->ldx;
    key->ldo = g->ldo;
    key->steps[0] = g->w_step;
    key->steps[1] = g->x_step;
    key->steps[2] = g->out_step;
    key->batch = g->batch;
    key->turned = g->turned;
    key->add = g->add;
    key->bias = g->bias != NULL;
    key->gelu = g->gelu;
}

enum ek_status ek_cuda_gemm(struct ek_cuda *d, const struct ek_cu_gemm *g)
{
    const float one = 1, beta = g->add ? 1 : 0;
    struct descriptors m = {0};
    struct ek_cu_key key;
    struct ek_cu_plan *plan;
    cublasStatus_t s;
    enum ek_status st;
    void *work = NULL;

    key_of(g, &key);
    plan = plan_at(d, &key);
    EK_GOTO(describe(d, g, &m), st, done);
    if (!plan->used) {
        plan->key = key;
        EK_GOTO(choose(d, g, &m, plan), st, done);
    }
    EK_GOTO(ek_cuda_scratch(d, EK_CU_LT, EK_CU_GEMM_WORK, &work), st, done);
    s = ek_lt.Matmul(d->lt, m.op, &one, g->w, m.w, g->x, m.x, &beta, g->out, m.out, g->out, m.out,
                     &plan->algo, work, plan->work, d->queue.stream);
    if (s != CUBLAS_STATUS_SUCCESS)
        st = lt_failed(d, s, "cublasLtMatmul");

done:
    descriptors_free(&m);
    return st;
}
