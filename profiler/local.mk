# SPDX-License-Identifier: Apache-2.0
# The database of measurements (read by the planner too), and what measures into it.
noinst_LIBRARIES += libstore.a
libstore_a_SOURCES = profiler/store.h profiler/store_internal.h profiler/store.c \
	profiler/store_schema.c profiler/store_sql.c profiler/store_devices.c \
	profiler/store_measurements.c profiler/store_kernels.c profiler/interpolate.c

noinst_LIBRARIES += libprofiler.a
libprofiler_a_SOURCES = profiler/profiler.h profiler/measure.h profiler/profile.h \
	profiler/timing.c profiler/gate.c profiler/points.c profiler/batch.c profiler/routing.c \
	profiler/ceilings.c \
	profiler/links.c profiler/traffic.c profiler/rounds.c profiler/rig.c profiler/memory.c \
	profiler/devices.c profiler/profile.c profiler/lanes.c \
	profiler/busy.c profiler/sustain.c profiler/twins.c profiler/tracer.h profiler/tracers.c \
	profiler/attribution.c profiler/kernels.c \
	profiler/account.c
if HAVE_CUDA
libprofiler_a_SOURCES += profiler/cupti.c
endif

EXTRA_DIST += docs/measurement.md
