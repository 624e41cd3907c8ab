/* SPDX-License-Identifier: Apache-2.0
 *
 * Files read whole, and written whole or not at all.
 */
#define _GNU_SOURCE
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum ek_status ek_file_open(const char *path, int *out, uint64_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* of regular files it says nothing */
    struct stat sb;
    enum ek_status st = EK_OK;

    if (fd < 0 || fstat(fd, &sb) != 0)
        st = ek_error(EK_EENV, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(sb.st_mode))
        st = ek_error(EK_EFORMAT, "%s: not a regular file", path);
    if (st != EK_OK && fd >= 0)
        close(fd);
    if (st != EK_OK)
        return st;
    *out = fd;
    *size = (uint64_t)sb.st_size;
    return EK_OK;
}

static enum ek_status read_all(const char *path, int fd, char *buf, size_t n)
{
    for (size_t got = 0; got < n;) {
        ssize_t r = read(fd, buf + got, n - got);
        if (r <= 0)
            return ek_error(EK_EENV, "%s: read %zu of %zu bytes: %s", path, got, n,
                            r < 0 ? strerror(errno) : "file shrank");
        got += (size_t)r;
    }
    return EK_OK;
}

enum ek_status ek_file_read(const char *path, size_t max, char **out, size_t *n)
{
    uint64_t size;
    char *buf = NULL;
    enum ek_status st = EK_OK;
    int fd;

    EK_TRY(ek_file_open(path, &fd, &size));
    if (size > max)
        st = ek_error(EK_EFORMAT, "%s: too large (%llu bytes, at most %zu)", path,
                      (unsigned long long)size, max);
    else if ((buf = ek_calloc((size_t)size + 1, 1)) == NULL)
        st = EK_ENOMEM;
    else
        st = read_all(path, fd, buf, (size_t)size);
    close(fd);
    if (st != EK_OK) {
        free(buf);
        return st;
    }
    *out = buf;
    *n = (size_t)size;
    return EK_OK;
}

/* Its name, malloc'd; NULL without memory. */
static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL)
        return ek_strdup(".");
    return ek_asprintf("%.*s", (int)(slash == path ? 1 : slash - path), path);
}

static void sync_directory_of(const char *path)
{
    char *name = directory_of(path);
    int fd = name ? open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(name);
}

enum ek_status ek_file_may_write(const char *path, bool force)
{
    enum ek_status st = EK_OK;
    struct stat sb;
    char *name;

    if (strcmp(path, "-") == 0)
        return EK_OK;
    if (!force && ek_file_exists(path))
        return ek_error(EK_EUSAGE, "%s exists (--force replaces it)", path);
    if (stat(path, &sb) == 0 && S_ISDIR(sb.st_mode))
        return ek_error(EK_EENV, "%s: %s", path, strerror(EISDIR));
    if ((name = directory_of(path)) == NULL)
        return EK_ENOMEM;
    if (access(name, W_OK | X_OK) != 0)
        st = ek_error(EK_EENV, "%s: %s: %s", path, name, strerror(errno));
    free(name);
    return st;
}

enum ek_status ek_file_begin(const char *path, bool force, struct ek_new_file *out)
{
    struct ek_new_file f = {0};
    enum ek_status st;
    int fd = -1;

    EK_TRY(ek_file_may_write(path, force));
    f.path = ek_strdup(path);
    f.temp = ek_asprintf("%s.tmp.XXXXXX", path);
    if (f.path == NULL || f.temp == NULL) {
        st = EK_ENOMEM;
        goto fail;
    }
    if ((fd = mkostemp(f.temp, O_CLOEXEC)) < 0 || (f.stream = fdopen(fd, "wb")) == NULL) {
        st = ek_error(EK_EENV, "%s: %s", f.temp, strerror(errno));
        goto fail;
    }
    *out = f;
    return EK_OK;
fail:
    if (fd >= 0) {
        close(fd);
        unlink(f.temp);
    }
    free(f.path);
    free(f.temp);
    return st;
}

enum ek_status ek_file_end(struct ek_new_file *f, enum ek_status st)
{
    int fd = fileno(f->stream);

    if (st == EK_OK && (ferror(f->stream) || fflush(f->stream) != 0 || fchmod(fd, 0644) != 0 ||
                        fsync(fd) != 0 || rename(f->temp, f->path) != 0))
        st = ek_error(EK_EENV, "%s: %s", f->path, strerror(errno));
    if (st != EK_OK)
        unlink(f->temp);
    fclose(f->stream);
    if (st == EK_OK)
        sync_directory_of(f->path);
    free(f->path);
    free(f->temp);
    *f = (struct ek_new_file){0};
    return st;
}

enum ek_status ek_file_write(const char *path, const void *data, size_t n, bool force)
{
    struct ek_new_file f;
    enum ek_status st = EK_OK;

    if (strcmp(path, "-") == 0) {
        if (fwrite(data, 1, n, stdout) == n && fflush(stdout) == 0)
            return EK_OK;
        return ek_error(EK_EENV, "stdout: %s", strerror(errno));
    }
    EK_TRY(ek_file_begin(path, force, &f));
    if (fwrite(data, 1, n, f.stream) != n)
        st = ek_error(EK_EENV, "%s: %s", path, strerror(errno));
    return ek_file_end(&f, st);
}

bool ek_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

char *ek_path_join(const char *dir, const char *name)
{
    return ek_asprintf("%s/%s", dir, name);
}
