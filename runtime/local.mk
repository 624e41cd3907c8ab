# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libruntime.a
libruntime_a_SOURCES = runtime/runtime.h runtime/stage.h runtime/cache.h runtime/engine.h \
	runtime/wave.h runtime/plan.c runtime/plan_model.c runtime/batch.c runtime/stage.c \
	runtime/weights.c runtime/load.c runtime/modules.c runtime/modules_deepseek.c \
	runtime/modules_vision.c \
	runtime/vision.c runtime/vision.h runtime/weights.h runtime/weights_vision.c \
	runtime/encode.c runtime/blocks.c runtime/look.c runtime/prompt.h runtime/prompt.c \
	runtime/reference_images.c \
	runtime/graph.c runtime/cache.c runtime/link.c \
	runtime/preflight.c runtime/worker.c runtime/steps.c runtime/engine.c runtime/sampling.c \
	runtime/watch.c \
	runtime/reference.c runtime/record.c runtime/compare.c runtime/trace.c runtime/wave.c \
	runtime/history.h runtime/history.c runtime/places.h runtime/places.c runtime/generate.c \
	runtime/bench.c \
	runtime/bench_pictures.c runtime/bench_pictures.h
