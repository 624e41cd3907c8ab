/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of this instruction set. Included last.
 */
#define DOTS_OF(T, dtype, group, UB, RS, US)   [dtype] = dots_##T,
#define DECODE_OF(T, dtype, group, UB, RS, US) [dtype] = decode_##T,

const struct cpu_simd SIMD_TABLE = {
    .name = SIMD_NAME,
    .tile = TILE,
    .dots = {FOR_EACH_TYPE(DOTS_OF)},
    .decode = {FOR_EACH_TYPE(DECODE_OF)},
    .to_f16 = to_f16,
    .to_bf16 = to_bf16,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .swiglu = swiglu,
    .finish = finish,
    .angles = angles,
    .rotate = rotate,
    .argmax = argmax,
    .read = read_all,
    .attend_one = attend_one,
    .attend_block = attend_block,
    .merge = merge,
};
