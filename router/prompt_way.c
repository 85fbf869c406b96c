#include "router/prompt_way.h"

#include <math.h>

/* The means are of about so many requests; what is not tried is forgotten a little with each of the
 * other way, so that it is tried again. */
#define MISS_SPAN   32
#define FORGET_SPAN 512

const char *const rt_local_prefill_names[] = {"auto", "never", "always", NULL};
const char *const rt_way_names[] = {
    [RT_WAY_REMOTE_ONLY] = "only",      [RT_WAY_REMOTE_BITS] = "bits",
    [RT_WAY_REMOTE_SAFER] = "safer",    [RT_WAY_REMOTE_CHEAPER] = "cheaper",
    [RT_WAY_LOCAL_CHEAPER] = "cheaper", [RT_WAY_LOCAL_ALONE] = "no_prefill_worker",
    [RT_WAY_LOCAL_ONLY] = "only",
};

/* ---- what may be */

/* Its client has tokens of one rank, and prefill workers of several are there. */
static bool bound_to_local(const struct rt_worker_table *workers, const struct rt_request *request)
{
    return request->bits == RT_BITS_ONE && workers->wide_prefills > 0 &&
           request->spec.prompt_tokens <= rt_placement_longest_local(workers);
}

static bool must_be_local(const struct rt_worker_table *workers, const struct rt_request *request)
{
    enum rt_local_prefill mode = workers->options->local_prefill;
    return mode == RT_LOCAL_PREFILL_ALWAYS ||
           (mode == RT_LOCAL_PREFILL_AUTO && bound_to_local(workers, request));
}

static bool same_bits(const struct rt_worker_table *workers, const struct rt_request *request)
{
    return workers->options->local_prefill == RT_LOCAL_PREFILL_AUTO &&
           workers->wide_prefills == 0 && request->bits != RT_BITS_WIDE;
}

/* It may be what workers die or fail of, and a prefill worker is there to try it on. */
static bool is_suspect(const struct rt_worker_table *workers, const struct rt_request *request)
{
    return (request->suspicion.deaths > 0 || request->failures > 0) &&
           workers->willing_count[RT_ROLE_PREFILL] > 0;
}

bool rt_way_possible(const struct rt_worker_table *workers, const struct rt_request_spec *spec)
{
    enum rt_local_prefill mode = workers->options->local_prefill;
    bool remote =
        mode != RT_LOCAL_PREFILL_ALWAYS && rt_placement_possible(workers, RT_ROLE_PREFILL, spec);
    bool local = mode != RT_LOCAL_PREFILL_NEVER && rt_placement_local_possible(workers, spec);
    return (remote || local) && rt_placement_possible(workers, RT_ROLE_DECODE, spec);
}

bool rt_way_stranded(const struct rt_worker_table *workers, const struct rt_request *request)
{
    if (workers->options->local_prefill != RT_LOCAL_PREFILL_AUTO || workers->local_ranks == 0 ||
        workers->willing_count[RT_ROLE_PREFILL] > 0) {
        return false;
    }
    bool local = same_bits(workers, request) || bound_to_local(workers, request);
    return !local || !rt_placement_local_possible(workers, &request->spec);
}

/* ---- cost */

/* Where no prefill worker has room now it would wait until one has. INFINITY: none is there. */
static double remote_ns(const struct rt_way_question *question, const struct rt_worker *prefill,
                        int64_t predicted_ns)
{
    const struct rt_worker_table *workers = question->workers;
    uint32_t ready = workers->willing_count[RT_ROLE_PREFILL];
    if (ready == 0) {
        return INFINITY;
    }
    struct rt_line line = prefill ? prefill->line.line : workers->line.line;
    uint32_t tokens = prefill ? rt_request_uncached(question->request, prefill->ref)
                              : rt_request_least_uncached(&question->request->spec);
    double own_ns = rt_line_at(line, tokens);
    double wait_ns =
        prefill ? (double)predicted_ns : (double)workers->options->prefill_depth_ns + own_ns;
    return wait_ns + own_ns * question->waiting / ready + question->misses->ns[false];
}

static double local_ns(const struct rt_way_question *question, const struct rt_worker *rank)
{
    double own_ns = rt_line_at(rank->line.line, question->request->spec.prompt_tokens);
    return rt_placement_local_ahead_ns(rank) + own_ns +
           RT_WAY_HARM * own_ns * rt_worker_rows(rank) + question->misses->ns[true];
}

static struct rt_worker *local_rank(const struct rt_way_question *question,
                                    struct rt_decode_turns *turns)
{
    return rt_placement_decode(question->workers, question->request, question->pages, true, turns);
}

static void answer_local(const struct rt_way_question *question, enum rt_way way,
                         struct rt_worker *rank, struct rt_way_answer *ret_answer)
{
    *ret_answer = (struct rt_way_answer){.way = way, .local = true, .decode = rank};
    if (rank) {
        uint32_t tokens = question->request->spec.prompt_tokens;
        ret_answer->predicted_ns =
            (int64_t)(rt_placement_local_ahead_ns(rank) + rt_line_at(rank->line.line, tokens));
    }
}

/* True: the rank itself, by one of these reasons. */
static bool local_is_better(const struct rt_way_question *question, const struct rt_worker *rank,
                            const struct rt_way_answer *remote, enum rt_way *ret_way)
{
    double there_ns = remote_ns(question, remote->prefill, remote->predicted_ns);
    *ret_way = isinf(there_ns) ? RT_WAY_LOCAL_ALONE : RT_WAY_LOCAL_CHEAPER;
    return local_ns(question, rank) < RT_WAY_MARGIN * there_ns;
}

void rt_way_choose(const struct rt_way_question *question, struct rt_decode_turns *turns,
                   struct rt_way_answer *ret_answer)
{
    const struct rt_worker_table *workers = question->workers;
    const struct rt_request *request = question->request;
    if (must_be_local(workers, request)) {
        answer_local(question, RT_WAY_LOCAL_ONLY, local_rank(question, turns), ret_answer);
        return;
    }
    struct rt_way_answer remote = {.way = RT_WAY_REMOTE_ONLY};
    remote.prefill = rt_placement_prefill(workers, request, question->now_ns, &remote.predicted_ns);
    if (!same_bits(workers, request)) {
        bool bits = workers->wide_prefills > 0 && workers->local_ranks > 0;
        remote.way = bits ? RT_WAY_REMOTE_BITS : RT_WAY_REMOTE_ONLY;
    } else if (is_suspect(workers, request)) {
        remote.way = workers->local_ranks > 0 ? RT_WAY_REMOTE_SAFER : RT_WAY_REMOTE_ONLY;
    } else {
        struct rt_decode_turns after = *turns;
        struct rt_worker *rank = local_rank(question, &after);
        enum rt_way way;
        if (rank && local_is_better(question, rank, &remote, &way)) {
            *turns = after;
            answer_local(question, way, rank, ret_answer);
            return;
        }
        remote.way = rank ? RT_WAY_REMOTE_CHEAPER : RT_WAY_REMOTE_ONLY;
    }
    if (remote.prefill) {
        remote.decode = rt_placement_decode(workers, request, question->pages, false, turns);
    }
    *ret_answer = remote;
}

void rt_way_learn(struct rt_way_misses *misses, const struct rt_request *request, int64_t actual_ns)
{
    double *miss = &misses->ns[request->local];
    *miss += ((double)(actual_ns - request->predicted_ns) - *miss) / MISS_SPAN;
    misses->ns[!request->local] -= misses->ns[!request->local] / FORGET_SPAN;
}
