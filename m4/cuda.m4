dnl SPDX-License-Identifier: Apache-2.0

dnl EK_CUDA: --with-cuda[=DIR], --without-cuda, --with-cuda-arch="80 86 89 90 PTX". PTX: of the one
dnl before it, which GPUs that are none of them compile for themselves.
dnl Says yes only after nvcc has compiled a kernel and the libraries are there; an explicit
dnl --with-cuda that cannot be met is an error. Sets NVCC, NVCC_GENCODE, CUDA_CPPFLAGS, CUDA_LIBS.
AC_DEFUN([EK_CUDA], [
AC_ARG_WITH([cuda], [AS_HELP_STRING([--with-cuda@<:@=DIR@:>@],
    [CUDA toolkit (default: found by itself)])],
    [], [with_cuda=check])
AC_ARG_WITH([cuda-arch], [AS_HELP_STRING([--with-cuda-arch="80 86 89 90 PTX"],
    [compute capabilities; PTX: of the one before, for later GPUs])],
    [ek_cuda_arch=$withval], [ek_cuda_arch="80 86 89 90 PTX"])
ek_cuda=no
AS_IF([test "x$with_cuda" != xno], [
    for dir in "$with_cuda" "$CUDA_HOME" /usr/local/cuda /usr/lib/cuda; do
        AS_IF([test -z "$ek_cuda_home" && test -x "$dir/bin/nvcc"], [ek_cuda_home=$dir])
    done
    AS_IF([test -z "$ek_cuda_home"], [
        AC_PATH_PROG([ek_nvcc_path], [nvcc])
        AS_IF([test -n "$ek_nvcc_path"],
            [ek_cuda_home=`dirname "\`readlink -f "$ek_nvcc_path"\`"`/..])])
    AS_IF([test -n "$ek_cuda_home"], [EK_CUDA_TRY])
    AS_IF([test "x$ek_cuda" = xno && test "x$with_cuda" != xcheck],
        [AC_MSG_ERROR([--with-cuda: no CUDA toolkit that works, with cuBLAS, CUPTI and NCCL])])
])
AM_CONDITIONAL([HAVE_CUDA], [test "x$ek_cuda" != xno])
AC_SUBST([NVCC])
AC_SUBST([NVCC_GENCODE])
AC_SUBST([CUDA_CPPFLAGS])
AC_SUBST([CUDA_LIBS])
AC_SUBST([CUDA_LIBDIR])
])

dnl Compile one kernel and link one program against every library that is used.
AC_DEFUN([EK_CUDA_TRY], [
NVCC=$ek_cuda_home/bin/nvcc
NVCC_GENCODE=
ek_last=
for a in $ek_cuda_arch; do
    AS_CASE([$a],
        [90], [NVCC_GENCODE="$NVCC_GENCODE -gencode arch=compute_90a,code=sm_90a"; ek_last=90],
        [PTX], [NVCC_GENCODE="$NVCC_GENCODE -gencode arch=compute_$ek_last,code=compute_$ek_last"],
        [NVCC_GENCODE="$NVCC_GENCODE -gencode arch=compute_$a,code=sm_$a"; ek_last=$a])
done
CUDA_LIBDIR=$ek_cuda_home/lib64
AS_IF([test ! -d "$CUDA_LIBDIR"], [CUDA_LIBDIR=$ek_cuda_home/lib])
CUDA_CPPFLAGS="-isystem $ek_cuda_home/include"
ek_cuda_libs="-L$CUDA_LIBDIR -L$ek_cuda_home/extras/CUPTI/lib64 -L$CUDA_LIBDIR/stubs"
ek_cuda_libs="$ek_cuda_libs -lcublasLt -lcublas -lcupti -lnccl -lcudart -lstdc++"
CUDA_LIBS="-Wl,--as-needed $ek_cuda_libs -Wl,-rpath,$CUDA_LIBDIR"
AC_MSG_CHECKING([for a working CUDA toolkit in $ek_cuda_home])
mkdir -p conftest.cuda
cat > conftest.cuda/t.cu <<'_EOF'
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <cupti.h>
#include <nccl.h>
__global__ void k(float *x) { x[[0]] = 1; }
int main()
{
    cublasLtHandle_t h;
    uint32_t c;
    int v;

    k<<<1, 1>>>(0);
    cublasLtCreate(&h);
    ncclGetVersion(&v);
    cuptiGetVersion(&c);
    return 0;
}
_EOF
AS_IF([$NVCC $NVCC_GENCODE $CUDA_CPPFLAGS -o conftest.cuda/t conftest.cuda/t.cu $ek_cuda_libs \
        >conftest.cuda/log 2>&1],
    [ek_cuda="$ek_cuda_home (sm $ek_cuda_arch)"; AC_MSG_RESULT([yes])
     AC_DEFINE([HAVE_CUDA], [1], [CUDA, cuBLAS, CUPTI and NCCL])],
    [AC_MSG_RESULT([no]); cat conftest.cuda/log >&AS_MESSAGE_LOG_FD])
rm -rf conftest.cuda
])
