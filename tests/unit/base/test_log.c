#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/log.h"

static int saved_stderr;
static int ends[2];

static void capture_start(void)
{
    assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
    saved_stderr = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
}

static void capture_end(char *ret_text, size_t size)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    close(ends[1]);
    ssize_t got = read(ends[0], ret_text, size - 1);
    close(ends[0]);
    ret_text[got > 0 ? got : 0] = '\0';
}

static void assert_matches(const char *text, const char *pattern)
{
    regex_t regex;
    assert_int_equal(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0);
    int no_match = regexec(&regex, text, 0, NULL, 0);
    regfree(&regex);
    if (no_match) {
        fail_msg("'%s' is not '%s'", text, pattern);
    }
}

#define STAMP "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z "

static void test_lines(void **state)
{
    (void)state;
    char text[8192];
    bt_log_init("decode-0", BT_LOG_INFO);
    capture_start();
    bt_log_info(0x3f2a, "joined batch pages=%d", 12);
    capture_end(text, sizeof text);
    assert_matches(text,
                   STAMP "info  decode-0 \\[req 0000000000003f2a\\] joined batch pages=12\n$");
    capture_start();
    bt_log_error(0, "first\nsecond\r\x1b[31m");
    capture_end(text, sizeof text);
    assert_matches(text, STAMP "error decode-0 first second  \\[31m\n$");
}

static void test_levels(void **state)
{
    (void)state;
    char text[8192];
    bt_log_init("who", BT_LOG_WARN);
    capture_start();
    bt_log_info(0, "not this");
    bt_log_debug(0, "nor this");
    bt_log_warn(0, "but this");
    capture_end(text, sizeof text);
    assert_matches(text, STAMP "warn  who but this\n$");
}

static void test_long_line(void **state)
{
    (void)state;
    char text[8192], body[5000];
    memset(body, 'b', sizeof body);
    body[sizeof body - 1] = '\0';
    bt_log_init("who", BT_LOG_INFO);
    capture_start();
    errno = EDOM;
    bt_log_info(0, "%s", body);
    assert_int_equal(errno, EDOM);
    capture_end(text, sizeof text);
    assert_true(strlen(text) <= 2048);
    assert_matches(text, "bbb\\.\\.\\.\n$");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_long_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
