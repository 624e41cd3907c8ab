# SPDX-License-Identifier: Apache-2.0
bin_PROGRAMS += evenkeel
evenkeel_SOURCES = cli/cli.h cli/session.h cli/main.c cli/options.c cli/help.c cli/session.c \
	cli/devices.c cli/model.c cli/profile.c cli/plan.c cli/run.c cli/serve.c cli/pictures.h \
	cli/pictures.c cli/messages.h cli/messages.c \
	cli/load.h cli/load.c cli/account.h cli/account.c cli/kernels.h cli/kernels.c cli/check.c \
	cli/bench.c
evenkeel_LDADD = libserver.a libprofiler.a libstore.a libruntime.a libkernels.a libmodel.a \
	libbase.a \
	$(SQLITE_LIBS) $(JANSSON_LIBS) $(MODEL_LIBS) $(MICROHTTPD_LIBS) $(CUDA_LIBS)
