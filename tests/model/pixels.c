/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints what pictures become, for comparisons with Pillow: a line of sizes and CRC-32 a file.
 *
 *   pixels VL2_CONFIG QWEN_CONFIG FILE...
 *   pixels --raw FILE        the decoded bytes
 */
#include "model/image_internal.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

static uint32_t crc32_picture(const struct ek_image *image)
{
    size_t n = (size_t)image->width * image->height * 3;
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < n; i++) {
        crc ^= image->rgb[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static void print_picture(struct ek_image *image)
{
    printf(" %u %u %u", image->width, image->height, crc32_picture(image));
    ek_image_free(image);
}

static enum ek_status print_decoded(const char *path)
{
    static const struct ek_image_options options[] = {{false, false}, {true, false}, {false, true}};
    struct ek_image image;

    for (size_t i = 0; i < EK_ARRAY_LEN(options); i++) {
        EK_TRY(ek_image_read(path, &options[i], &image));
        print_picture(&image);
    }
    return EK_OK;
}

static enum ek_status print_qwen(const struct ek_vl_rules *r, const struct ek_image *image)
{
    struct ek_image small;
    uint32_t w, h;

    if (!ek_qwen_size(r, image->width, image->height, &w, &h)) {
        printf(" 0 0 0");
        return EK_OK;
    }
    EK_TRY(ek_image_resize(image, w, h, &small));
    print_picture(&small);
    return EK_OK;
}

static enum ek_status print_vl2(const struct ek_vl_rules *r, const struct ek_image *image)
{
    struct ek_image global, local;
    struct ek_visual v;

    EK_TRY(ek_vl_measure(r, image->width, image->height, 1, false, 1, &v));
    EK_TRY(ek_vl2_views(r, image, &v, &global, &local));
    print_picture(&global);
    if (local.rgb)
        print_picture(&local);
    return EK_OK;
}

static enum ek_status print_file(const struct ek_vl_rules *vl2, const struct ek_vl_rules *qwen,
                                 const char *path)
{
    struct ek_image image;
    enum ek_status st;

    EK_TRY(print_decoded(path));
    EK_TRY(ek_image_read(path, NULL, &image));
    st = print_qwen(qwen, &image);
    if (st == EK_OK)
        st = print_vl2(vl2, &image);
    printf("\n");
    ek_image_free(&image);
    return st;
}

static enum ek_status open_rules(const char *path, struct ek_vl_rules *r)
{
    struct ek_model *m;
    enum ek_status st;

    EK_TRY(ek_model_open(path, NULL, &m));
    st = ek_vl_rules_open(m, r);
    ek_model_close(m);
    return st;
}

static enum ek_status print_raw(const char *path)
{
    struct ek_image image;

    EK_TRY(ek_image_read(path, NULL, &image));
    fwrite(image.rgb, 3, (size_t)image.width * image.height, stdout);
    ek_image_free(&image);
    return EK_OK;
}

int main(int argc, char **argv)
{
    struct ek_vl_rules vl2, qwen;
    enum ek_status st = EK_EUSAGE;

    if (argc == 3 && strcmp(argv[1], "--raw") == 0) {
        st = print_raw(argv[2]);
    } else if (argc > 3) {
        st = open_rules(argv[1], &vl2);
        if (st == EK_OK)
            st = open_rules(argv[2], &qwen);
        for (int i = 3; i < argc && st == EK_OK; i++)
            st = print_file(&vl2, &qwen, argv[i]);
    }
    if (st != EK_OK)
        fprintf(stderr, "pixels: %s\n", ek_last_error());
    return ek_exit_code(st);
}
