/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary frequencies in fp32, operation by operation as the official code does them: there, a
 * number divided by a tensor is the tensor's reciprocal times the number. A pow that is correctly
 * rounded may still differ from theirs in the last bit.
 */
#include "model/internal.h"

#include <math.h>

#define PI 3.14159265358979323846

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static void scale_llama3(const struct ek_config *c, float *f, uint32_t n)
{
    float factor = (float)c->rope_factor, original = (float)c->rope_original_position;
    float low = (float)c->rope_low, span = (float)(c->rope_high - c->rope_low);
    float longest = (float)(c->rope_original_position / c->rope_low);
    float shortest = (float)(c->rope_original_position / c->rope_high);

    for (uint32_t i = 0; i < n; i++) {
        float wavelength = 1 / f[i] * (float)(2 * PI);
        float scaled = wavelength > longest ? f[i] / factor : f[i];
        float smooth = (1 / wavelength * original - low) / span;
        if (wavelength < shortest || wavelength > longest)
            f[i] = scaled;
        else
            f[i] = (1 - smooth) * scaled / factor + smooth * scaled;
    }
}

/* Dimension at which a frequency makes that many rotations over the original context. */
static double yarn_dimension(const struct ek_config *c, double rotations, uint32_t dim)
{
    return dim * log(c->rope_original_position / (rotations * 2 * PI)) / (2 * log(c->rope_theta));
}

static void scale_yarn(const struct ek_config *c, float *f, uint32_t n)
{
    double low = floor(yarn_dimension(c, c->rope_beta_fast, 2 * n));
    double high = ceil(yarn_dimension(c, c->rope_beta_slow, 2 * n));
    float factor = (float)c->rope_factor;

    low = low > 0 ? low : 0;
    high = high < 2 * n - 1 ? high : 2 * n - 1;
    high = low == high ? high + 0.001 : high;
    for (uint32_t i = 0; i < n; i++) {
        float power = (float)pow(c->rope_theta, (float)(2 * i) / (float)(2 * n));
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
        f[i] = 1 / (factor * power) * (1 - keep) + f[i] * keep;
    }
}

static float yarn_amplitude(const struct ek_config *c)
{
    if (c->rope_attention_factor > 0)
        return (float)c->rope_attention_factor;
    if (c->rope_mscale > 0 && c->rope_mscale_all_dim > 0)
        return (float)(yarn_mscale(c->rope_factor, c->rope_mscale) /
                       yarn_mscale(c->rope_factor, c->rope_mscale_all_dim));
    return (float)yarn_mscale(c->rope_factor, 1);
}

static float softmax_scale(const struct ek_config *c)
{
    double scale = pow(c->head_dim, -0.5), mscale = 1;

    if (c->attention == EK_ATTENTION_MLA && c->rope_scaling == EK_ROPE_YARN &&
        c->rope_mscale_all_dim > 0)
        mscale = yarn_mscale(c->rope_factor, c->rope_mscale_all_dim);
    return (float)(scale * mscale * mscale);
}

void ek_config_rope(const struct ek_config *c, float *inv_freq, float *amplitude,
                    float *softmax_scale_out)
{
    uint32_t dim = c->attention == EK_ATTENTION_MLA ? c->qk_rope : c->head_dim, n = dim / 2;

    for (uint32_t i = 0; i < n; i++)
        inv_freq[i] = 1 / (float)pow(c->rope_theta, (float)(2 * i) / (float)dim);
    if (c->rope_scaling == EK_ROPE_LINEAR)
        for (uint32_t i = 0; i < n; i++)
            inv_freq[i] /= (float)c->rope_factor;
    else if (c->rope_scaling == EK_ROPE_LLAMA3)
        scale_llama3(c, inv_freq, n);
    else if (c->rope_scaling == EK_ROPE_YARN)
        scale_yarn(c, inv_freq, n);
    for (uint32_t i = 0; c->rope_factors && i < n; i++)
        inv_freq[i] /= c->rope_factors[i];
    *amplitude = c->rope_scaling == EK_ROPE_YARN ? yarn_amplitude(c) : 1;
    *softmax_scale_out = softmax_scale(c);
}
