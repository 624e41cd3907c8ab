/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures of any kind; what decodes is turned, composed, resized and padded.
 */
#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define PIXELS_MAX 4096u /* beyond, resizing is only slow */

static void use(struct ek_image *image)
{
    const uint8_t grey[3] = {127, 127, 127};
    struct ek_image out = {0};

    if (image->width == 0 || image->height == 0 || image->width > EK_IMAGE_SIDE_MAX ||
        image->height > EK_IMAGE_SIDE_MAX)
        __builtin_trap(); /* what decoded is within the limits */
    if ((uint64_t)image->width * image->height <= PIXELS_MAX) {
        if (ek_image_pad(image, 70, 28, grey, &out) == EK_OK)
            ek_image_free(&out);
        if (ek_image_resize(image, 1 + image->height, image->width / 2 + 1, &out) == EK_OK)
            ek_image_free(&out);
    }
    ek_image_free(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const struct ek_image_options forms[] = {{false, false}, {true, true}};
    struct ek_image image;

    for (size_t i = 0; i < EK_ARRAY_LEN(forms); i++)
        if (ek_image_decode(data, n, "fuzz", &forms[i], &image) == EK_OK)
            use(&image);
    return 0;
}
