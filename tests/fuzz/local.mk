# SPDX-License-Identifier: Apache-2.0
# Fuzz targets, one a parser. With --enable-fuzzing (CC=clang) each is a libFuzzer program; else
# standalone.c is its main and `make check` replays its corpus. A new target: a file fuzz_NAME.c, a
# folder corpus/NAME, and four lines below.
FUZZER_LIBS = libmodel.a libbase.a $(JANSSON_LIBS) $(MODEL_LIBS)
FUZZERS =
EXTRA_DIST += tests/fuzz/corpus

if FUZZING
noinst_PROGRAMS += $(FUZZERS)
FUZZER_MAIN = tests/fuzz/memfile.h
FUZZER_FLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
else
check_PROGRAMS += $(FUZZERS)
TESTS += $(FUZZERS)
FUZZER_MAIN = tests/fuzz/memfile.h tests/fuzz/standalone.c
FUZZER_FLAGS = $(AM_LDFLAGS)
endif

FUZZERS += tests/fuzz/fuzz_safetensors
tests_fuzz_fuzz_safetensors_SOURCES = tests/fuzz/fuzz_safetensors.c $(FUZZER_MAIN)
tests_fuzz_fuzz_safetensors_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_safetensors_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_gguf
tests_fuzz_fuzz_gguf_SOURCES = tests/fuzz/fuzz_gguf.c $(FUZZER_MAIN)
tests_fuzz_fuzz_gguf_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_gguf_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_config
tests_fuzz_fuzz_config_SOURCES = tests/fuzz/fuzz_config.c $(FUZZER_MAIN)
tests_fuzz_fuzz_config_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_config_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_tokenizer
tests_fuzz_fuzz_tokenizer_SOURCES = tests/fuzz/fuzz_tokenizer.c $(FUZZER_MAIN)
tests_fuzz_fuzz_tokenizer_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_tokenizer_LDFLAGS = $(FUZZER_FLAGS)

RUNTIME_FUZZER_LIBS = libruntime.a libkernels.a $(FUZZER_LIBS) $(CUDA_LIBS)

FUZZERS += tests/fuzz/fuzz_plan
tests_fuzz_fuzz_plan_SOURCES = tests/fuzz/fuzz_plan.c $(FUZZER_MAIN)
tests_fuzz_fuzz_plan_LDADD = $(RUNTIME_FUZZER_LIBS)
tests_fuzz_fuzz_plan_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_reference
tests_fuzz_fuzz_reference_SOURCES = tests/fuzz/fuzz_reference.c $(FUZZER_MAIN)
tests_fuzz_fuzz_reference_LDADD = $(RUNTIME_FUZZER_LIBS)
tests_fuzz_fuzz_reference_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_request
tests_fuzz_fuzz_request_SOURCES = tests/fuzz/fuzz_request.c $(FUZZER_MAIN)
tests_fuzz_fuzz_request_LDADD = libserver.a $(RUNTIME_FUZZER_LIBS)
tests_fuzz_fuzz_request_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_index
tests_fuzz_fuzz_index_SOURCES = tests/fuzz/fuzz_index.c $(FUZZER_MAIN)
tests_fuzz_fuzz_index_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_index_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_profile
tests_fuzz_fuzz_profile_SOURCES = tests/fuzz/fuzz_profile.c $(FUZZER_MAIN)
tests_fuzz_fuzz_profile_LDADD = libstore.a libbase.a $(SQLITE_LIBS) $(JANSSON_LIBS)
tests_fuzz_fuzz_profile_LDFLAGS = $(FUZZER_FLAGS)
EXTRA_DIST += tests/fuzz/tokenizer.dict tests/fuzz/request.dict tests/fuzz/plan.dict \
	tests/fuzz/costs.dict

if HAVE_PLANNER
PLANNER_FUZZER_LIBS = libplanner.a libstore.a $(FUZZER_LIBS) -lglpk $(SQLITE_LIBS) -lm

FUZZERS += tests/fuzz/fuzz_costs
tests_fuzz_fuzz_costs_SOURCES = tests/fuzz/fuzz_costs.c $(FUZZER_MAIN)
tests_fuzz_fuzz_costs_LDADD = $(PLANNER_FUZZER_LIBS)
tests_fuzz_fuzz_costs_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_export
tests_fuzz_fuzz_export_SOURCES = tests/fuzz/fuzz_export.c $(FUZZER_MAIN)
tests_fuzz_fuzz_export_LDADD = $(PLANNER_FUZZER_LIBS)
tests_fuzz_fuzz_export_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_device_map
tests_fuzz_fuzz_device_map_SOURCES = tests/fuzz/fuzz_device_map.c $(FUZZER_MAIN)
tests_fuzz_fuzz_device_map_LDADD = $(PLANNER_FUZZER_LIBS)
tests_fuzz_fuzz_device_map_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_cluster
tests_fuzz_fuzz_cluster_SOURCES = tests/fuzz/fuzz_cluster.c $(FUZZER_MAIN)
tests_fuzz_fuzz_cluster_LDADD = $(PLANNER_FUZZER_LIBS)
tests_fuzz_fuzz_cluster_LDFLAGS = $(FUZZER_FLAGS)
endif

FUZZERS += tests/fuzz/fuzz_image
tests_fuzz_fuzz_image_SOURCES = tests/fuzz/fuzz_image.c $(FUZZER_MAIN)
tests_fuzz_fuzz_image_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_image_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_processor
tests_fuzz_fuzz_processor_SOURCES = tests/fuzz/fuzz_processor.c $(FUZZER_MAIN)
tests_fuzz_fuzz_processor_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_processor_LDFLAGS = $(FUZZER_FLAGS)

FUZZERS += tests/fuzz/fuzz_quant
tests_fuzz_fuzz_quant_SOURCES = tests/fuzz/fuzz_quant.c $(FUZZER_MAIN)
tests_fuzz_fuzz_quant_LDADD = $(FUZZER_LIBS)
tests_fuzz_fuzz_quant_LDFLAGS = $(FUZZER_FLAGS)
