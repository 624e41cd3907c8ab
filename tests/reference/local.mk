# SPDX-License-Identifier: Apache-2.0
# How the reference fixtures are made (Python, not part of any build) and the fixtures themselves.
EXTRA_DIST += docs/references.md tests/fixtures/images tests/fixtures/reference \
	tools/make-reference.py \
	tests/reference/README.md tests/reference/common.py tests/reference/make_text.py \
	tests/reference/make_smollm2.py tests/reference/make_deepseek.py \
	tests/reference/make_gguf.py tests/reference/gguf_model.py \
	tests/reference/make_vl2.py tests/reference/make_images.py \
	tests/reference/make_qwen25vl.py \
	tests/reference/own_text.py tests/reference/own_deepseek.py tests/reference/own_vl2.py \
	tests/reference/own_qwen25vl.py tests/reference/own_images.py tests/reference/check_own.py \
	tests/reference/check_mutants.py tests/reference/check_all.sh
