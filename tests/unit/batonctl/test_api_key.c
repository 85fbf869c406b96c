/* Which key of several is meant, what is none, and that nobody gets to see it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "deploy/batonctl/api_key.h"

static char path[] = "/tmp/baton-api-key-XXXXXX", directory[] = "/tmp/baton-api-key-XXXXXX";
static char got[CTL_API_KEY_SIZE];
static struct bt_error error;

static void write_file(const char *data, size_t size)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* The options of a command line, as they are parsed. */
static enum bt_status read_key(int argc, const char *first, const char *second, const char *third,
                               const char *fourth)
{
    struct ctl_api_key api_key;
    const struct bt_option options[] = {CTL_API_KEY_OPTIONS(api_key), {0}};
    const char *argv[] = {"verb", first, second, third, fourth};
    memset(&error, 0, sizeof(error));
    strcpy(got, "nothing");
    enum bt_status status = bt_option_parse(options, "verb", argc, (char **)argv, &error, NULL);
    return status == BT_OK ? ctl_api_key_read(&api_key, &error, got) : status;
}

static void expect_file(const char *data, const char *key)
{
    write_file(data, strlen(data));
    assert_int_equal(read_key(3, "--api-key-file", path, NULL, NULL), BT_OK);
    assert_string_equal(got, key);
}

static void expect_bad_file(const char *data, size_t size)
{
    write_file(data, size);
    assert_int_equal(read_key(3, "--api-key-file", path, NULL, NULL), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, path));
    assert_null(strstr(error.text, "s3cret"));
}

static void test_which_is_meant(void **state)
{
    (void)state;
    assert_int_equal(read_key(1, NULL, NULL, NULL, NULL), BT_OK);
    assert_string_equal(got, "");
    assert_int_equal(read_key(3, "--api-key", "flag-key", NULL, NULL), BT_OK);
    assert_string_equal(got, "flag-key");
    setenv("BATON_API_KEY", "env-key", 1);
    assert_int_equal(read_key(1, NULL, NULL, NULL, NULL), BT_OK);
    assert_string_equal(got, "env-key");
    assert_int_equal(read_key(3, "--api-key", "flag-key", NULL, NULL), BT_OK);
    assert_string_equal(got, "flag-key");
    write_file("file-key\n", 9);
    assert_int_equal(read_key(5, "--api-key", "flag-key", "--api-key-file", path), BT_OK);
    assert_string_equal(got, "file-key");
    setenv("BATON_API_KEY_FILE", path, 1);
    assert_int_equal(read_key(3, "--api-key", "flag-key", NULL, NULL), BT_OK);
    assert_string_equal(got, "file-key");
    unsetenv("BATON_API_KEY_FILE");
    unsetenv("BATON_API_KEY");
}

static void test_first_line(void **state)
{
    (void)state;
    expect_file("s3cret", "s3cret");
    expect_file("s3cret\n", "s3cret");
    expect_file("s3cret\r\n", "s3cret");
    expect_file("s3cret\n\nwhat it is for\n", "s3cret");
    expect_file("!~\n", "!~");
}

static void test_what_is_no_key(void **state)
{
    (void)state;
    static const char *const bad[] = {"",           "\n",           "\ns3cret\n",
                                      " s3cret\n",  "s3cret \n",    "s3cret two\n",
                                      "s3\tcret\n", "s3cret\x7f\n", "s3cret\xc3\xa9\n"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        expect_bad_file(bad[i], strlen(bad[i]));
    assert_int_equal(read_key(3, "--api-key", "s3cret two", NULL, NULL), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "--api-key"));
    assert_null(strstr(error.text, "s3cret"));
}

static void test_length(void **state)
{
    (void)state;
    char key[2 * CTL_API_KEY_SIZE] = "";
    memset(key, 'k', CTL_API_KEY_SIZE - 1);
    expect_file(key, key);
    key[CTL_API_KEY_SIZE - 1] = '\n';
    write_file(key, CTL_API_KEY_SIZE);
    assert_int_equal(read_key(3, "--api-key-file", path, NULL, NULL), BT_OK);
    assert_int_equal(strlen(got), CTL_API_KEY_SIZE - 1);
    memset(key, 'k', sizeof(key) - 1);
    for (size_t size = CTL_API_KEY_SIZE; size < CTL_API_KEY_SIZE + 4; size++)
        expect_bad_file(key, size);
    expect_bad_file(key, sizeof(key) - 1);
    assert_int_equal(read_key(3, "--api-key", key, NULL, NULL), BT_ERR_INVALID_ARGUMENT);
}

static void test_file_that_can_not_be_read(void **state)
{
    (void)state;
    static const char nowhere[] = "/nonexistent/key";
    assert_int_equal(read_key(3, "--api-key-file", nowhere, NULL, NULL), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, nowhere));
    assert_non_null(strstr(error.text, "No such file"));
    assert_int_equal(read_key(5, "--api-key-file", directory, "--api-key", "flag-key"),
                     BT_ERR_INVALID_ARGUMENT); /* and not the other key instead */
    assert_non_null(strstr(error.text, "directory"));
    assert_null(strstr(error.text, "flag-key"));
}

/* Help shows defaults and environments, but not what is in them. */
static void test_help_shows_none(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *real = stdout;
    setenv("BATON_API_KEY", "s3cret", 1);
    stdout = open_memstream(&text, &size);
    enum bt_status status = read_key(4, "--api-key", "s3cret-flag", "--help", NULL);
    fclose(stdout);
    stdout = real;
    unsetenv("BATON_API_KEY");
    assert_int_equal(status, BT_ERR_CANCELLED);
    assert_non_null(strstr(text, "BATON_API_KEY"));
    assert_null(strstr(text, "s3cret"));
    free(text);
}

static int set_up(void **state)
{
    (void)state;
    unsetenv("BATON_API_KEY");
    unsetenv("BATON_API_KEY_FILE");
    int fd = mkstemp(path);
    return fd < 0 || close(fd) != 0 || !mkdtemp(directory) ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_which_is_meant),
        cmocka_unit_test(test_first_line),
        cmocka_unit_test(test_what_is_no_key),
        cmocka_unit_test(test_length),
        cmocka_unit_test(test_file_that_can_not_be_read),
        cmocka_unit_test(test_help_shows_none),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
