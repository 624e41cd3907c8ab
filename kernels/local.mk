# SPDX-License-Identifier: Apache-2.0
# The operations of devices: registry, plain C reference decoders, CPU backend.
noinst_LIBRARIES += libkernels.a
CPU_KERNEL_SOURCES = kernels/cpu/cpu.h kernels/cpu/attention.c kernels/cpu/cores.c \
	kernels/cpu/device.c kernels/cpu/experts.c \
	kernels/cpu/latent.c kernels/cpu/linear.c kernels/cpu/memory.c kernels/cpu/ops.c \
	kernels/cpu/pool.c kernels/cpu/queue.c kernels/cpu/simd.c kernels/cpu/simd_c.c \
	kernels/cpu/vision.c \
	kernels/cpu/simd/attend.h kernels/cpu/simd/compiler.h kernels/cpu/simd/decode.h \
	kernels/cpu/simd/products.h \
	kernels/cpu/simd/read.h kernels/cpu/simd/rows.h kernels/cpu/simd/table.h kernels/cpu/simd/vec_c.h
if X86_SIMD
CPU_KERNEL_SOURCES += kernels/cpu/simd_avx2.c kernels/cpu/simd_avx512.c \
	kernels/cpu/simd/bytes_avx2.h kernels/cpu/simd/vec_avx2.h \
	kernels/cpu/simd/vec_avx512.h
endif
libkernels_a_SOURCES = kernels/kernels.h kernels/arguments.h kernels/arguments.c \
	kernels/registry.c kernels/sample.c kernels/sample.h \
	$(CPU_KERNEL_SOURCES)

# Part of the key of every measurement: what the CPU kernels were built from.
kernels/cpu/hash.h: $(CPU_KERNEL_SOURCES)
	@$(MKDIR_P) kernels/cpu
	$(AM_V_GEN)sum=`cd $(top_srcdir) && cat $(CPU_KERNEL_SOURCES) | md5sum | cut -c1-32` && \
	  echo "#define CPU_KERNELS_HASH \"$$sum\"" > $@.tmp && mv $@.tmp $@
kernels/cpu/device.$(OBJEXT): kernels/cpu/hash.h
CLEANFILES += kernels/cpu/hash.h

if HAVE_CUDA
CUDA_KERNEL_SOURCES = kernels/cuda/cuda.h kernels/cuda/launch.h kernels/cuda/device.c \
	kernels/cuda/gemm.c kernels/cuda/lt.h kernels/cuda/lt.c kernels/cuda/matrix.c \
	kernels/cuda/memory.c kernels/cuda/nvml.h kernels/cuda/nvml.c \
	kernels/cuda/ops.c kernels/cuda/peer.c kernels/cuda/nccl.c kernels/cuda/store.cu \
	kernels/cuda/queue.c kernels/cuda/attention.cuh \
	kernels/cuda/decode_work.cuh kernels/cuda/decode_join.cuh kernels/cuda/cache.cuh \
	kernels/cuda/unpack.cu kernels/cuda/attention_any.cu kernels/cuda/begun.cuh \
	kernels/cuda/bulk.cuh \
	kernels/cuda/attention_decode.cu kernels/cuda/parts.h kernels/cuda/parts_join.cuh \
	kernels/cuda/attention_parts.cu kernels/cuda/attention_boxed.cu \
	kernels/cuda/probe.cu \
	kernels/cuda/attention_boxes.cuh kernels/cuda/attention_dense.cu \
	kernels/cuda/attention_prefill.cu kernels/cuda/attention_tiles.cuh kernels/cuda/common.cuh \
	kernels/cuda/dequantize.cu \
	kernels/cuda/arrange.cu kernels/cuda/blocks.cuh kernels/cuda/stream_blocks.cuh \
	kernels/cuda/chunks.cuh kernels/cuda/few.cuh kernels/cuda/few_groups.cu kernels/cuda/few_plain.cu \
	kernels/cuda/few_q32.cu kernels/cuda/few_qk.cu kernels/cuda/integers.cuh \
	kernels/cuda/one.cu kernels/cuda/one_blocks.cu kernels/cuda/one_bands.cuh \
	kernels/cuda/ask.cuh kernels/cuda/bands.cuh kernels/cuda/digits.cuh \
	kernels/cuda/experts_blocks.cu kernels/cuda/layers.cuh \
	kernels/cuda/one_blocks.h kernels/cuda/held.cu kernels/cuda/held.h kernels/cuda/split.cuh \
	kernels/cuda/batch.cuh \
	kernels/cuda/staged.cuh kernels/cuda/stream.cu kernels/cuda/units.cuh kernels/cuda/deepseek.c \
	kernels/cuda/deepseek.h \
	kernels/cuda/experts_few.cu kernels/cuda/experts_many.cu kernels/cuda/experts_one.cu \
	kernels/cuda/experts_stream.cu kernels/cuda/experts_wide.cu \
	kernels/cuda/latent.cu kernels/cuda/latent_attention.cu kernels/cuda/latent_one.cu \
	kernels/cuda/token.cu \
	kernels/cuda/route.cu kernels/cuda/route.cuh kernels/cuda/attention_expanded.cu \
	kernels/cuda/expanded.c kernels/cuda/turn.cuh \
	kernels/cuda/rope.cu kernels/cuda/rows.cu kernels/cuda/sample.cu kernels/cuda/tma.cuh \
	kernels/cuda/weights.cuh kernels/cuda/wgmma.cuh \
	kernels/cuda/wide.cu kernels/cuda/wide.h
libkernels_a_SOURCES += $(CUDA_KERNEL_SOURCES)
kernels/cuda/hash.h: $(CUDA_KERNEL_SOURCES)
	@$(MKDIR_P) kernels/cuda
	$(AM_V_GEN)sum=`cd $(top_srcdir) && cat $(CUDA_KERNEL_SOURCES) | md5sum | cut -c1-32` && \
	  echo "#define CUDA_KERNELS_HASH \"$$sum\"" > $@.tmp && mv $@.tmp $@
kernels/cuda/device.$(OBJEXT): kernels/cuda/hash.h
CLEANFILES += kernels/cuda/hash.h
endif
