# SPDX-License-Identifier: Apache-2.0
EXTRA_DIST += tests/fixtures/dequant.bin tests/reference/make_dequant.py
KERNEL_TESTS = tests/kernels/check_device tests/kernels/check_products tests/kernels/check_ops \
	tests/kernels/check_deepseek tests/kernels/check_vision tests/kernels/check_nvml \
	tests/kernels/check_arguments
check_PROGRAMS += $(KERNEL_TESTS)
TESTS += $(KERNEL_TESTS)
KERNEL_TEST_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS) \
	-DFIXTURES='"$(abs_top_srcdir)/tests/fixtures"'
KERNEL_TEST_LDADD = libkernels.a libbase.a $(CUDA_LIBS) $(JANSSON_LIBS) $(TEST_LIBS)
KERNEL_TEST_SUPPORT = tests/kernels/support.c tests/kernels/support.h

tests_kernels_check_device_SOURCES = tests/kernels/check_device.c $(KERNEL_TEST_SUPPORT)
tests_kernels_check_device_CPPFLAGS = $(KERNEL_TEST_CPPFLAGS)
tests_kernels_check_device_LDADD = $(KERNEL_TEST_LDADD)
tests_kernels_check_products_SOURCES = tests/kernels/check_products.c $(KERNEL_TEST_SUPPORT)
tests_kernels_check_products_CPPFLAGS = $(KERNEL_TEST_CPPFLAGS)
tests_kernels_check_products_LDADD = $(KERNEL_TEST_LDADD)
tests_kernels_check_ops_SOURCES = tests/kernels/check_ops.c $(KERNEL_TEST_SUPPORT)
tests_kernels_check_ops_CPPFLAGS = $(KERNEL_TEST_CPPFLAGS)
tests_kernels_check_ops_LDADD = $(KERNEL_TEST_LDADD)
tests_kernels_check_deepseek_SOURCES = tests/kernels/check_deepseek.c $(KERNEL_TEST_SUPPORT)
tests_kernels_check_deepseek_CPPFLAGS = $(KERNEL_TEST_CPPFLAGS)
tests_kernels_check_deepseek_LDADD = $(KERNEL_TEST_LDADD)
tests_kernels_check_vision_SOURCES = tests/kernels/check_vision.c $(KERNEL_TEST_SUPPORT)
tests_kernels_check_vision_CPPFLAGS = $(KERNEL_TEST_CPPFLAGS)
tests_kernels_check_vision_LDADD = $(KERNEL_TEST_LDADD)

tests_kernels_check_arguments_SOURCES = tests/kernels/check_arguments.c tests/kernels/refused.c \
	tests/kernels/refused.h $(KERNEL_TEST_SUPPORT)
tests_kernels_check_arguments_CPPFLAGS = $(KERNEL_TEST_CPPFLAGS)
tests_kernels_check_arguments_LDADD = $(KERNEL_TEST_LDADD)

# Reads answers of NVML, with no CUDA.
tests_kernels_check_nvml_SOURCES = tests/kernels/check_nvml.c kernels/cuda/nvml.h \
	kernels/cuda/nvml.c
tests_kernels_check_nvml_CPPFLAGS = $(KERNEL_TEST_CPPFLAGS)
tests_kernels_check_nvml_LDADD = libkernels.a libbase.a $(CUDA_LIBS) $(JANSSON_LIBS) $(TEST_LIBS)

# Speed over SmolLM2-135M's shapes: run by hand.
noinst_PROGRAMS += tests/kernels/bench_cpu
tests_kernels_bench_cpu_SOURCES = tests/kernels/bench_cpu.c
tests_kernels_bench_cpu_LDADD = libkernels.a libbase.a $(CUDA_LIBS) $(JANSSON_LIBS)
