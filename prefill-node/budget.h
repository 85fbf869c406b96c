/*
 * How many prompt tokens one iteration should have: the smallest chunk whose throughput is within
 * 5 % of the best. Smaller ones leave the hardware waiting for weights, larger ones only let other
 * prompts wait. Measured at start on the loaded model, and kept in a file beside what it depends
 * on: model, arithmetic, kernels, threads, CPU. The bits of no prompt depend on it.
 */
#ifndef BATON_PREFILL_NODE_BUDGET_H
#define BATON_PREFILL_NODE_BUDGET_H

#include "common/model/model.h"

#define PF_BUDGET_MAX_POINTS 16
#define PF_BUDGET_FALLBACK   512 /* where time ended before the curve was flat */

struct pf_budget_point {
    uint32_t tokens;
    double tokens_per_s;
};

/* Throughput against chunk size, ascending. */
struct pf_budget_curve {
    struct pf_budget_point points[PF_BUDGET_MAX_POINTS];
    uint32_t count;
    bool is_cut; /* larger chunks were not measured for lack of time */
};

/* PF_BUDGET_FALLBACK for a curve without points, or one that was cut while it rose, unless the best
 * of that is larger. */
uint32_t pf_budget_choose(const struct pf_budget_curve *curve);

/*
 * Runs the last chunk of a prompt of 2048 tokens, or fewer where `layout` or the model has less,
 * through one layer of each kind, and adds up over the layers. Takes about `limit_ns`, the first
 * point at least. The calling thread is thread 0 of the model's team. INTERNAL: the device failed.
 */
enum bt_status pf_budget_measure(const struct bt_model *model, const struct bt_kv_layout *layout,
                                 int64_t limit_ns, struct bt_error *error,
                                 struct pf_budget_curve *ret_curve);

/* Of a curve that was not cut: one line a point, after lines that say what it was measured on.
 * False: no room in `text`. */
bool pf_budget_format(const struct pf_budget_curve *curve, const struct bt_model *model,
                      const char *cpu, char *text, size_t size);
/* False for anything but what format made for the same model and CPU. */
bool pf_budget_parse(const char *text, const struct bt_model *model, const char *cpu,
                     struct pf_budget_curve *ret_curve);

/*
 * From the file in `cache_dir` (NULL: $XDG_CACHE_HOME/baton, or $HOME/.cache/baton) or measured
 * and, unless the curve was cut, kept there; logs it. A file that can't be read or written only
 * costs the measuring.
 */
enum bt_status pf_budget_find(const struct bt_model *model, const struct bt_kv_layout *layout,
                              const char *cache_dir, struct bt_error *error, uint32_t *ret_tokens);

#endif
