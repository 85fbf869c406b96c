#include "tests/unit/decode/gate.h"

#include <pthread.h>

#include "decode-node/engine.h"
#include "prefill-node/engine.h"

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t opens;
    uint32_t left;
};

static struct gate decode = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, GATE_OPEN};
static struct gate prefill = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, GATE_OPEN};

static void gate_set(struct gate *gate, uint32_t passes)
{
    pthread_mutex_lock(&gate->lock);
    gate->left = passes;
    pthread_cond_broadcast(&gate->opens);
    pthread_mutex_unlock(&gate->lock);
}

static void gate_pass(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    while (gate->left == 0) {
        pthread_cond_wait(&gate->opens, &gate->lock);
    }
    gate->left -= gate->left != GATE_OPEN;
    pthread_mutex_unlock(&gate->lock);
}

void decode_gate(uint32_t passes)
{
    gate_set(&decode, passes);
}

void prefill_gate(uint32_t passes)
{
    gate_set(&prefill, passes);
}

uint32_t decode_gate_left(void)
{
    pthread_mutex_lock(&decode.lock);
    uint32_t left = decode.left;
    pthread_mutex_unlock(&decode.lock);
    return left;
}

enum bt_status __real_dc_engine_run(struct dc_engine *engine, struct dc_step *step,
                                    enum dc_pass pass);
enum bt_status __wrap_dc_engine_run(struct dc_engine *engine, struct dc_step *step,
                                    enum dc_pass pass);
enum bt_status __real_pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished);
enum bt_status __wrap_pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished);

enum bt_status __wrap_dc_engine_run(struct dc_engine *engine, struct dc_step *step,
                                    enum dc_pass pass)
{
    gate_pass(&decode);
    return __real_dc_engine_run(engine, step, pass);
}

enum bt_status __wrap_pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished)
{
    gate_pass(&prefill);
    return __real_pf_engine_run(engine, ret_finished);
}
