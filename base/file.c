/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum ek_status ek_file_read(const char *path, size_t max, char **out, size_t *n)
{
    struct stat sb;
    char *buf = NULL;
    size_t got = 0;
    enum ek_status st = EK_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &sb) != 0) {
        st = ek_error(EK_EENV, "%s: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(sb.st_mode) || (uint64_t)sb.st_size > max) {
        st = ek_error(EK_EFORMAT, "%s: %s (%lld bytes, at most %zu)", path,
                      S_ISREG(sb.st_mode) ? "too large" : "not a regular file",
                      (long long)sb.st_size, max);
        goto done;
    }
    if ((buf = ek_calloc((size_t)sb.st_size + 1, 1)) == NULL) {
        st = EK_ENOMEM;
        goto done;
    }
    while (got < (size_t)sb.st_size) {
        ssize_t r = read(fd, buf + got, (size_t)sb.st_size - got);
        if (r <= 0) {
            st = ek_error(EK_EENV, "%s: read %zu of %lld bytes: %s", path, got,
                          (long long)sb.st_size, r < 0 ? strerror(errno) : "file shrank");
            goto done;
        }
        got += (size_t)r;
    }
    *out = buf;
    *n = got;
    buf = NULL;
done:
    free(buf);
    if (fd >= 0)
        close(fd);
    return st;
}

static bool write_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return false;
        p += w;
        n -= (size_t)w;
    }
    return true;
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
    char *name;

    if (strcmp(path, "-") == 0)
        return EK_OK;
    if (!force && ek_file_exists(path))
        return ek_error(EK_EUSAGE, "%s exists (--force replaces it)", path);
    if ((name = directory_of(path)) == NULL)
        return EK_ENOMEM;
    if (access(name, W_OK | X_OK) != 0)
        st = ek_error(EK_EENV, "%s: %s: %s", path, name, strerror(errno));
    free(name);
    return st;
}

enum ek_status ek_file_write(const char *path, const void *data, size_t n, bool force)
{
    enum ek_status st = EK_OK;
    char *temp;
    int fd;

    if (strcmp(path, "-") == 0) {
        if (fwrite(data, 1, n, stdout) == n && fflush(stdout) == 0)
            return EK_OK;
        return ek_error(EK_EENV, "stdout: %s", strerror(errno));
    }
    EK_TRY(ek_file_may_write(path, force));
    if ((temp = ek_asprintf("%s.tmp.XXXXXX", path)) == NULL)
        return EK_ENOMEM;
    if ((fd = mkostemp(temp, O_CLOEXEC)) < 0) {
        st = ek_error(EK_EENV, "%s: %s", temp, strerror(errno));
        free(temp);
        return st;
    }
    if (!write_all(fd, data, n) || fchmod(fd, 0644) != 0 || fsync(fd) != 0 ||
        rename(temp, path) != 0) {
        st = ek_error(EK_EENV, "%s: %s", path, strerror(errno));
        unlink(temp);
    }
    close(fd);
    if (st == EK_OK)
        sync_directory_of(path);
    free(temp);
    return st;
}

bool ek_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

char *ek_path_join(const char *dir, const char *name)
{
    return ek_asprintf("%s/%s", dir, name);
}
