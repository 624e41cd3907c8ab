# SPDX-License-Identifier: Apache-2.0
# Check suites by part, command tests (tests/cli), fuzz corpora, GPU suites.
TEST_LIBS = $(CHECK_LIBS)

if HAVE_CHECK
include tests/base/local.mk
include tests/model/local.mk
include tests/kernels/local.mk
include tests/runtime/local.mk
include tests/server/local.mk
include tests/profiler/local.mk
include tests/planner/local.mk
include tests/gpu/local.mk
endif
include tests/fuzz/local.mk
include tests/cli/local.mk
include tests/reference/local.mk
