/* SPDX-License-Identifier: Apache-2.0
 *
 * Exits 0 when stdin is exactly one JSON document, without NaN, and nothing else. */
#include <jansson.h>
#include <stdio.h>

int main(void)
{
    json_error_t error;
    json_t *v = json_loadf(stdin, JSON_REJECT_DUPLICATES, &error);

    if (v == NULL)
        fprintf(stderr, "not one JSON document: line %d: %s\n", error.line, error.text);
    json_decref(v);
    return v == NULL;
}
