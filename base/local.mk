# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libbase.a
libbase_a_SOURCES = base/base.h base/status.c base/size.c base/units.c base/dtype.c base/dequant.c \
	base/file.c \
	base/hash.c base/json.c base/table.c base/progress.c
