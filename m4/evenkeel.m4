dnl SPDX-License-Identifier: Apache-2.0

dnl --enable-asan: AddressSanitizer and UndefinedBehaviorSanitizer in every C object.
AC_DEFUN([EK_ENABLE_ASAN], [
AC_ARG_ENABLE([asan], [AS_HELP_STRING([--enable-asan], [build with ASan and UBSan])])
AS_IF([test "x$enable_asan" = xyes], [
    EK_SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"])
AC_SUBST([EK_SAN])
])

dnl --enable-fuzzing: libFuzzer targets (needs CC=clang).
AC_DEFUN([EK_ENABLE_FUZZING], [
AC_ARG_ENABLE([fuzzing], [AS_HELP_STRING([--enable-fuzzing], [build libFuzzer targets (CC=clang)])])
AM_CONDITIONAL([FUZZING], [test "x$enable_fuzzing" = xyes])
AS_IF([test "x$enable_fuzzing" = xyes], [
    EK_SAN="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"])
])

AC_DEFUN([EK_WARNINGS], [
EK_WARN="-Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wwrite-strings -Wvla -Wformat=2"
AC_ARG_ENABLE([werror], [AS_HELP_STRING([--enable-werror], [warnings are errors])])
AS_IF([test "x$enable_werror" = xyes], [EK_WARN="$EK_WARN -Werror"])
AC_SUBST([EK_WARN])
])

dnl Serial OpenBLAS for large CPU products (the threaded build has a process-wide pool, which defeats
dnl per-device threads). Found by directory, as Debian keeps the variants beside each other.
AC_DEFUN([EK_BLAS], [
AC_ARG_WITH([blas], [AS_HELP_STRING([--without-blas], [no OpenBLAS: plain C products])])
ek_blas=no
AS_IF([test "x$with_blas" != xno], [
    for dir in /usr/lib/*/openblas-serial; do
        AS_IF([test -e "$dir/libopenblas.so"], [ek_blas_dir=$dir])
    done
    AS_IF([test -n "$ek_blas_dir"], [
        BLAS_LIBS="$ek_blas_dir/libopenblas.a -lm"
        AS_IF([test ! -e "$ek_blas_dir/libopenblas.a"], [BLAS_LIBS="-L$ek_blas_dir -lopenblas"])
        for dir in /usr/include/*/openblas-serial; do
            AS_IF([test -e "$dir/cblas.h"], [BLAS_CFLAGS="-I$dir"])
        done
        AC_DEFINE([HAVE_BLAS], [1], [serial OpenBLAS (cblas.h)])
        ek_blas="$ek_blas_dir"])
])
AC_SUBST([BLAS_LIBS])
AC_SUBST([BLAS_CFLAGS])
])

dnl x86-64: the AVX2 and AVX-512 variants of the CPU kernels are built and chosen at run time.
AC_DEFUN([EK_SIMD], [
AS_CASE([$host_cpu], [x86_64], [ek_simd=yes], [ek_simd=no])
AM_CONDITIONAL([X86_SIMD], [test "x$ek_simd" = xyes])
AS_IF([test "x$ek_simd" = xyes], [AC_DEFINE([HAVE_X86_SIMD], [1], [AVX2 and AVX-512 kernels])])
])
