/* The verb that makes a key. */
#include <stdio.h>
#include <string.h>

#include "common/messaging/security.h"
#include "deploy/batonctl/verbs.h"

/* "keys/prefill-7.key" -> "prefill-7". False: that is no name. */
static bool name_of_file(const char *path, char ret_name[BT_KEY_NAME_SIZE])
{
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    const char *dot = strrchr(file, '.');
    size_t size = dot && strcmp(dot, ".key") == 0 ? (size_t)(dot - file) : strlen(file);
    if (size >= BT_KEY_NAME_SIZE)
        return false;
    memcpy(ret_name, file, size);
    ret_name[size] = '\0';
    return ctl_name_ok(ret_name);
}

int ctl_verb_keygen(int argc, char **argv)
{
    const char *out, *name;
    int output;
    const struct bt_option options[] = {
        {"out", BT_OPTION_STRING, &out, NULL, 0, 0, NULL, "FILE",
         "where the secret key goes, for --curve-secret-file: a new file of mode 0600", true},
        {"name", BT_OPTION_STRING, &name, NULL, 0, 0, NULL, "NAME",
         "whose key it is, for people; default: FILE without its directory and .key", false},
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    int code = ctl_parse(options,
                         "batonctl keygen --out FILE [--name NAME]\n\n"
                         "  batonctl keygen --out router.key >> allow\n\n"
                         "Prints the line 'KEY NAME' with the public key, which belongs into the "
                         "list (--curve-allow-file)\n"
                         "of every process that is to deal with the holder of the secret.",
                         argc, argv, NULL);
    if (code >= 0)
        return code;
    char file_name[BT_KEY_NAME_SIZE], public_key[BT_KEY_HEX_SIZE];
    struct bt_error error;
    if (name ? !ctl_name_ok(name) : !name_of_file(out, file_name)) {
        bt_error_set(&error, BT_ERR_INVALID_ARGUMENT,
                     "--name: letters, digits, '-', '_' and '.' only, up to %d; '%s' is no name",
                     BT_KEY_NAME_SIZE - 1, name ? name : out);
        return ctl_fail("keygen", &error);
    }
    if (bt_security_generate(out, &error, public_key) != BT_OK)
        return ctl_fail("keygen", &error);
    if (output == CTL_OUTPUT_JSON)
        return ctl_print_json(json_pack("{s:s,s:s,s:s}", "key", public_key, "name",
                                        name ? name : file_name, "file", out));
    printf("%s %s\n", public_key, name ? name : file_name);
    return CTL_EXIT_OK;
}
