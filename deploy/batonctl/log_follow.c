#include "deploy/batonctl/log_follow.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/verbs.h"

#define LOOK_AGAIN_MS 100

/* What is read and not printed yet: the beginning of a line. */
struct reader {
    const struct ctl_log_follow *follow;
    int fd;
    off_t at;
    char *buffer; /* [CTL_LOG_LINE_MAX + 1] */
    size_t size;
};

static enum bt_status failed(const struct reader *reader, struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_IO, "%s: %s", reader->follow->path, strerror(errno));
}

/* `end` is where a 0 can stand. */
static void print_line(char *line, char *end)
{
    *end = '\0';
    for (char *part = line; part <= end; part += strlen(part) + 1) {
        char *next = strchr(part, '\t');
        if (next)
            *next = '\0';
        ctl_text_flatten(part);
        fputs(part, stdout);
        if (next)
            fputc('\t', stdout);
        else
            break;
    }
    fputc('\n', stdout);
}

/* A 0 in the file would end a line for print_line. */
static void mask_zeros(char *data, size_t size)
{
    for (char *zero = data; (zero = memchr(zero, '\0', size - (size_t)(zero - data)));)
        *zero = '?';
}

static void print_lines(struct reader *reader, bool all)
{
    char *line = reader->buffer, *end = line + reader->size, *next;
    while ((next = memchr(line, '\n', (size_t)(end - line)))) {
        print_line(line, next);
        line = next + 1;
    }
    bool full = line == reader->buffer && reader->size == CTL_LOG_LINE_MAX;
    if (line < end && (all || full)) {
        print_line(line, end);
        line = end;
    }
    reader->size = (size_t)(end - line);
    memmove(reader->buffer, line, reader->size);
}

/* To the file's present end. */
static enum bt_status read_on(struct reader *reader, struct bt_error *error)
{
    for (;;) {
        char *to = reader->buffer + reader->size;
        ssize_t got = pread(reader->fd, to, CTL_LOG_LINE_MAX - reader->size, reader->at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return failed(reader, error);
        if (got == 0)
            break;
        mask_zeros(to, (size_t)got);
        reader->at += got;
        reader->size += (size_t)got;
        print_lines(reader, false);
    }
    return fflush(stdout) == 0 ? BT_OK
                               : bt_error_set(error, BT_ERR_IO, "output: %s", strerror(errno));
}

/* Where the last `tail` lines begin. */
static enum bt_status find_tail(struct reader *reader, struct bt_error *error)
{
    int64_t left = reader->follow->tail;
    off_t end = lseek(reader->fd, 0, SEEK_END), at = end;
    if (end < 0)
        return failed(reader, error);
    while (left > 0 && at > 0) {
        size_t size = at < CTL_LOG_LINE_MAX ? (size_t)at : CTL_LOG_LINE_MAX;
        at -= (off_t)size;
        if (pread(reader->fd, reader->buffer, size, at) != (ssize_t)size)
            break; /* it became shorter */
        for (size_t i = size; i > 0; i--) {
            bool last = at + (off_t)i == end; /* it ends the last line, and begins none */
            if (reader->buffer[i - 1] != '\n' || (last && left > 0) || --left > 0)
                continue;
            reader->at = at + (off_t)i;
            return BT_OK;
        }
    }
    reader->at = left == 0 ? end : 0;
    return BT_OK;
}

/* Another file of the name, or the same and shorter: from its beginning. */
static enum bt_status follow_file(struct reader *reader, struct bt_error *error)
{
    struct stat own, named;
    if (fstat(reader->fd, &own) != 0)
        return failed(reader, error);
    if (own.st_size < reader->at) {
        print_lines(reader, true);
        reader->at = 0;
    }
    if (stat(reader->follow->path, &named) != 0 ||
        (named.st_ino == own.st_ino && named.st_dev == own.st_dev))
        return BT_OK;
    enum bt_status status = read_on(reader, error);
    int fd = open(reader->follow->path, O_RDONLY | O_CLOEXEC);
    if (status != BT_OK || fd < 0) {
        if (fd >= 0)
            close(fd);
        return status;
    }
    print_lines(reader, true);
    close(reader->fd);
    reader->fd = fd;
    reader->at = 0;
    return BT_OK;
}

static enum bt_status wait_moment(const struct ctl_log_follow *follow, struct bt_error *error)
{
    struct pollfd interrupt = {.fd = follow->interrupt, .events = POLLIN};
    if (poll(&interrupt, 1, LOOK_AGAIN_MS) > 0)
        return ctl_interrupt_check(follow->interrupt, error);
    return BT_OK;
}

static enum bt_status follow_on(struct reader *reader, struct bt_error *error)
{
    const struct ctl_log_follow *follow = reader->follow;
    enum bt_status status = BT_OK;
    bool alive = follow->follow;
    while (status == BT_OK) {
        /* Before the file is read, so that its last lines are not missed. */
        alive = alive && (!follow->is_alive || follow->is_alive(follow->context));
        status = follow_file(reader, error);
        if (status == BT_OK)
            status = read_on(reader, error);
        if (!alive)
            break;
        if (status == BT_OK)
            status = wait_moment(follow, error);
    }
    print_lines(reader, true);
    fflush(stdout);
    return status;
}

enum bt_status ctl_log_follow(const struct ctl_log_follow *follow, struct bt_error *error)
{
    struct reader reader = {.follow = follow, .buffer = malloc(CTL_LOG_LINE_MAX + 1)};
    if (!reader.buffer)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a line");
    enum bt_status status = BT_OK;
    reader.fd = open(follow->path, O_RDONLY | O_CLOEXEC);
    if (reader.fd < 0)
        status = failed(&reader, error);
    if (status == BT_OK && follow->tail >= 0)
        status = find_tail(&reader, error);
    if (status == BT_OK)
        status = follow_on(&reader, error);
    if (reader.fd >= 0)
        close(reader.fd);
    free(reader.buffer);
    return status;
}
