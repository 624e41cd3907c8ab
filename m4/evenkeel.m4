dnl SPDX-License-Identifier: Apache-2.0

dnl --enable-asan: AddressSanitizer and UndefinedBehaviorSanitizer in every C object;
dnl --enable-tsan: ThreadSanitizer instead.
AC_DEFUN([EK_ENABLE_SANITIZERS], [
AC_ARG_ENABLE([asan], [AS_HELP_STRING([--enable-asan], [build with ASan and UBSan])])
AC_ARG_ENABLE([tsan], [AS_HELP_STRING([--enable-tsan], [build with TSan])])
AS_IF([test "x$enable_asan" = xyes && test "x$enable_tsan" = xyes],
    [AC_MSG_ERROR([--enable-asan and --enable-tsan exclude one another])])
AS_IF([test "x$enable_asan" = xyes], [ek_sanitizers="ASan, UBSan"
    EK_SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"])
AS_IF([test "x$enable_tsan" = xyes], [ek_sanitizers=TSan
    EK_SAN="-fsanitize=thread -fno-omit-frame-pointer"])
AC_SUBST([EK_SAN])
])

dnl --enable-fuzzing: libFuzzer targets (needs CC=clang).
AC_DEFUN([EK_ENABLE_FUZZING], [
AC_ARG_ENABLE([fuzzing], [AS_HELP_STRING([--enable-fuzzing], [build libFuzzer targets (CC=clang)])])
AM_CONDITIONAL([FUZZING], [test "x$enable_fuzzing" = xyes])
AS_IF([test "x$enable_fuzzing" = xyes], [
    EK_SAN="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"
    EK_SAN="$EK_SAN -fno-omit-frame-pointer"])
])

AC_DEFUN([EK_WARNINGS], [
EK_WARN="-Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes"
EK_WARN="$EK_WARN -Wwrite-strings -Wvla -Wformat=2"
AC_ARG_ENABLE([werror], [AS_HELP_STRING([--enable-werror], [warnings are errors])])
AS_IF([test "x$enable_werror" = xyes], [EK_WARN="$EK_WARN -Werror"])
AC_SUBST([EK_WARN])
])

dnl x86-64: the AVX2 and AVX-512 variants of the CPU kernels are built and chosen at run time.
AC_DEFUN([EK_SIMD], [
AS_CASE([$host_cpu], [x86_64], [ek_simd=yes], [ek_simd=no])
AM_CONDITIONAL([X86_SIMD], [test "x$ek_simd" = xyes])
AS_IF([test "x$ek_simd" = xyes], [AC_DEFINE([HAVE_X86_SIMD], [1], [AVX2 and AVX-512 kernels])])
])
