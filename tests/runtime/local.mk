# SPDX-License-Identifier: Apache-2.0
RUNTIME_TEST_LIBS = libruntime.a libkernels.a libmodel.a libbase.a $(JANSSON_LIBS) \
	$(MODEL_LIBS) $(CUDA_LIBS) $(TEST_LIBS)

check_PROGRAMS += tests/runtime/check_engine
TESTS += tests/runtime/check_engine
tests_runtime_check_engine_SOURCES = tests/runtime/check_engine.c tests/runtime/support.c \
	tests/runtime/support.h
tests_runtime_check_engine_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_engine_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_plan
TESTS += tests/runtime/check_plan
tests_runtime_check_plan_SOURCES = tests/runtime/check_plan.c tests/runtime/support.c
tests_runtime_check_plan_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_plan_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_sampling
TESTS += tests/runtime/check_sampling
tests_runtime_check_sampling_SOURCES = tests/runtime/check_sampling.c
tests_runtime_check_sampling_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_sampling_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_reference
TESTS += tests/runtime/check_reference
tests_runtime_check_reference_SOURCES = tests/runtime/check_reference.c tests/runtime/support.c
tests_runtime_check_reference_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_reference_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_generate
TESTS += tests/runtime/check_generate
tests_runtime_check_generate_SOURCES = tests/runtime/check_generate.c tests/runtime/support.c
tests_runtime_check_generate_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_generate_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_stage
TESTS += tests/runtime/check_stage
tests_runtime_check_stage_SOURCES = tests/runtime/check_stage.c tests/runtime/recorder.c \
	tests/runtime/recorder.h tests/runtime/support.c
tests_runtime_check_stage_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_stage_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_faults
TESTS += tests/runtime/check_faults
tests_runtime_check_faults_SOURCES = tests/runtime/check_faults.c tests/runtime/support.c
tests_runtime_check_faults_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_faults_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_vision
TESTS += tests/runtime/check_vision
tests_runtime_check_vision_SOURCES = tests/runtime/check_vision.c tests/runtime/support.c
tests_runtime_check_vision_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_vision_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_quant
TESTS += tests/runtime/check_quant
tests_runtime_check_quant_SOURCES = tests/runtime/check_quant.c tests/runtime/support.c
tests_runtime_check_quant_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_quant_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_watch
TESTS += tests/runtime/check_watch
tests_runtime_check_watch_SOURCES = tests/runtime/check_watch.c tests/runtime/support.c
tests_runtime_check_watch_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_watch_LDADD = $(RUNTIME_TEST_LIBS)

check_PROGRAMS += tests/runtime/check_chain
TESTS += tests/runtime/check_chain
tests_runtime_check_chain_SOURCES = tests/runtime/check_chain.c tests/runtime/support.c
tests_runtime_check_chain_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_runtime_check_chain_LDADD = $(RUNTIME_TEST_LIBS)
