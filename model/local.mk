noinst_LIBRARIES += libmodel.a
libmodel_a_SOURCES = \
	model/model.h \
	model/tokenizer.h \
	model/gguf.h \
	model/datafile.h \
	model/datafile.c \
	model/gguf.c \
	model/safetensors.c
