# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libserver.a
libserver_a_SOURCES = server/server.h server/server.c server/client.h server/client.c \
	server/queue.h server/guests.h server/guests.c server/score.h server/score.c \
	server/queue.c server/prompt.h server/prompt.c server/answer.h server/answer.c \
	server/choice.h server/choice.c server/request.h server/request.c server/text.h server/text.c
