/* The verb that replaces workers by others: of another version, with other options or model. */
#include <stdio.h>
#include <string.h>

#include "deploy/batonctl/scaling.h"

static bool parse_roles(int count, char **words, bool roles[CTL_ROLES])
{
    for (int role = 0; role < CTL_ROLES; role++)
        roles[role] = count == 0;
    for (int i = 0; i < count; i++) {
        enum ctl_role role;
        if (!ctl_role_parse(words[i], strlen(words[i]), &role)) {
            fprintf(stderr, "batonctl rollout: expected prefill or decode, got '%s'\n", words[i]);
            return false;
        }
        roles[role] = true;
    }
    return true;
}

static bool options_fit(const struct ctl_rollout *rollout, int words)
{
    const char *wrong = NULL;
    if (rollout->model && words > 0)
        wrong = "--model replaces the workers of both roles; leave the role out";
    if (!rollout->model && (rollout->served_model_name || rollout->dtype || rollout->router_args))
        wrong = "--served-model-name, --dtype and --router-args go with --model, which may be the "
                "present one";
    if (wrong)
        fprintf(stderr, "batonctl rollout: %s\n", wrong);
    return !wrong;
}

static int run(struct ctl_scaling *scaling, const struct ctl_rollout *rollout)
{
    struct ctl_engine *engine;
    struct ctl_fleet before;
    struct bt_error error = {0};
    int code = ctl_scaling_open(scaling, &engine);
    if (code != CTL_EXIT_OK)
        return code;
    code = ctl_scaling_look(scaling, engine, &before);
    if (code == CTL_EXIT_OK) {
        enum bt_status status = BT_OK;
        if (!scaling->dry_run)
            status = engine->ops->rollout(engine, rollout, &error);
        code = status == BT_OK ? ctl_scaling_print(scaling, engine, &before)
                               : ctl_fail(scaling->verb, &error);
        ctl_fleet_finish(&before);
    }
    ctl_engine_close(engine);
    return code;
}

int ctl_verb_rollout(int argc, char **argv)
{
    struct ctl_scaling scaling = {.verb = "rollout"};
    struct ctl_rollout rollout = {0};
    int used;
    const struct bt_option options[] = {
        CTL_SCALING_OPTIONS(scaling),
        {"model", BT_OPTION_STRING, &rollout.model, NULL, 0, 0, NULL, "DIR",
         "another checkpoint: routers and workers of its own take over, those before finish what "
         "they have",
         false},
        {"served-model-name", BT_OPTION_STRING, &rollout.served_model_name, NULL, 0, 0, NULL,
         "NAME", "what clients call the model; default: the directory's name", false},
        {"dtype", BT_OPTION_STRING, &rollout.dtype, NULL, 0, 0, NULL, "NAME",
         "arithmetic of all workers: auto, float32, bfloat16", false},
        {"router-args", BT_OPTION_STRING, &rollout.router_args, NULL, 0, 0, NULL, "ARGS",
         "more options for the routers, instead of those before", false},
        {"prefill-args", BT_OPTION_STRING, &rollout.args[CTL_PREFILL], NULL, 0, 0, NULL, "ARGS",
         "more options for each prefill worker, instead of those before", false},
        {"decode-args", BT_OPTION_STRING, &rollout.args[CTL_DECODE], NULL, 0, 0, NULL, "ARGS",
         "more options for each decode worker, instead of those before", false},
        {"image", BT_OPTION_STRING, &rollout.image, NULL, 0, 0, NULL, "IMAGE",
         "of pods; without it they are replaced by others of the same image", false},
        {0},
    };
    int code = ctl_parse(
        options,
        "batonctl rollout [prefill] [decode] [OPTIONS]\n\n"
        "Replaces workers one by one, by those of this batonctl's version: a new one starts, and "
        "when it is\nready an old one is drained and ends. With --model what can't work together "
        "never meets: the new\nmodel's routers take the HTTP port over, without closing it, when "
        "its first workers are ready.\n"
        "Pods are replaced role by role; a role whose new pods don't get ready within --wait is "
        "taken back.\n\n"
        "  batonctl rollout decode --decode-args '--max-num-seqs 128'\n"
        "  batonctl rollout --model tests/models/tiny --dtype float32\n"
        "  batonctl rollout --engine kubernetes --namespace baton --image baton:2",
        argc, argv, &used);
    if (code >= 0)
        return code;
    if (!parse_roles(argc - used, argv + used, rollout.roles) ||
        !options_fit(&rollout, argc - used))
        return CTL_EXIT_USAGE;
    rollout.drain_ns = scaling.drain_ns;
    rollout.wait_ns = scaling.wait_ns;
    return run(&scaling, &rollout);
}
