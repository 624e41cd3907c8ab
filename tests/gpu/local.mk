# SPDX-License-Identifier: Apache-2.0
# Suites that need a GPU: they skip without one. `make relocatable` carries them to a closed host.
GPU_TEST_LIBS = libkernels.a libbase.a $(CUDA_LIBS) $(JANSSON_LIBS) $(TEST_LIBS)
GPU_TESTS = tests/gpu/check_devices tests/gpu/check_ops tests/gpu/check_attention \
	tests/gpu/check_cache tests/gpu/check_links tests/gpu/check_deepseek \
	tests/gpu/check_vision tests/gpu/check_runtime
EXTRA_DIST += tests/gpu/full_size.py tests/gpu/beside_transformers.py \
	tests/gpu/balanced_transformers.py tests/gpu/summary.py tests/gpu/serve.py
GPU_BENCHES = tests/gpu/bench_kernels tests/gpu/bench_deepseek tests/gpu/bench_vision \
	tests/gpu/bench_handoff
EXTRA_DIST += tests/gpu/run-gpu.sh tests/gpu/main-job.sh tests/gpu/cases.sh \
	tests/gpu/vl-cases.sh tests/gpu/many-gpus.sh tests/gpu/predict.sh tests/gpu/common.sh \
	tests/gpu/cuda-path.sh
if HAVE_CUDA
check_PROGRAMS += $(GPU_TESTS) $(GPU_BENCHES)
TESTS += $(GPU_TESTS)
tests_gpu_check_devices_SOURCES = tests/gpu/check_devices.c
tests_gpu_check_devices_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_devices_LDADD = $(GPU_TEST_LIBS)
tests_gpu_check_ops_SOURCES = tests/gpu/check_ops.c tests/gpu/pair.c tests/gpu/gpu.h \
	tests/kernels/refused.c tests/kernels/refused.h
tests_gpu_check_ops_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_ops_LDADD = $(GPU_TEST_LIBS)
tests_gpu_check_attention_SOURCES = tests/gpu/check_attention.c tests/gpu/batch.c tests/gpu/pair.c \
	tests/gpu/gpu.h
tests_gpu_check_attention_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_attention_LDADD = $(GPU_TEST_LIBS)
tests_gpu_check_cache_SOURCES = tests/gpu/check_cache.c tests/gpu/batch.c tests/gpu/pair.c \
	tests/gpu/gpu.h
tests_gpu_check_cache_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_cache_LDADD = $(GPU_TEST_LIBS)
tests_gpu_check_deepseek_SOURCES = tests/gpu/check_deepseek.c tests/gpu/batch.c tests/gpu/pair.c \
	tests/gpu/gpu.h
tests_gpu_check_deepseek_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_deepseek_LDADD = $(GPU_TEST_LIBS)
tests_gpu_check_vision_SOURCES = tests/gpu/check_vision.c tests/gpu/pair.c tests/gpu/gpu.h
tests_gpu_check_vision_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_vision_LDADD = $(GPU_TEST_LIBS)
tests_gpu_check_runtime_SOURCES = tests/gpu/check_runtime.c tests/runtime/support.c \
	tests/runtime/support.h
tests_gpu_check_runtime_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_runtime_LDADD = $(RUNTIME_TEST_LIBS)
tests_gpu_check_links_SOURCES = tests/gpu/check_links.c tests/runtime/support.c \
	tests/runtime/support.h
tests_gpu_check_links_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_gpu_check_links_LDADD = $(RUNTIME_TEST_LIBS)
tests_gpu_bench_handoff_SOURCES = tests/gpu/bench_handoff.cu
tests_gpu_bench_handoff_LDADD = $(CUDA_LIBS)
tests_gpu_bench_deepseek_SOURCES = tests/gpu/bench_deepseek.c tests/gpu/bench.c tests/gpu/bench.h
tests_gpu_bench_deepseek_LDADD = $(GPU_TEST_LIBS)
tests_gpu_bench_kernels_SOURCES = tests/gpu/bench_kernels.c tests/gpu/bench.c tests/gpu/bench.h
tests_gpu_bench_kernels_LDADD = $(GPU_TEST_LIBS)
tests_gpu_bench_vision_SOURCES = tests/gpu/bench_vision.c tests/gpu/bench.c tests/gpu/bench.h
tests_gpu_bench_vision_LDADD = $(GPU_TEST_LIBS)
endif

# bin/ with the programs and GPU suites, lib/ with the libraries that a closed host may lack; libc,
# the compiler's and CUDA's libraries are the host's.
carried_programs = $(bin_PROGRAMS)
if HAVE_CHECK
if HAVE_CUDA
carried_programs += $(GPU_TESTS) $(GPU_BENCHES)
endif
endif
host_libraries = ld-linux|linux-vdso|lib(c|m|dl|rt)\.so|lib(pthread|gcc_s|stdc|cu|nccl|nvidia)
carried = $(abs_top_builddir)/relocatable
.PHONY: relocatable
relocatable: $(carried_programs)
	@rm -rf $(carried) && $(MKDIR_P) $(carried)/bin $(carried)/lib
	$(AM_V_GEN)for p in $(carried_programs); do \
	  strip -o $(carried)/bin/`basename $$p` $$p || exit 1; \
	  ldd $$p | grep -vE '$(host_libraries)' | awk '/=> \// { print $$3 }' | \
	    xargs -r cp -L -t $(carried)/lib || exit 1; \
	done; cp $(top_srcdir)/tests/gpu/*.sh $(top_srcdir)/tests/gpu/*.py $(carried)/
