#!/usr/bin/env python3
"""Breaks rules of the router's core, one at a time, and requires that `scale` notices.

    mutants.py BUILD_DIRECTORY [NAME ...]

As the mutants of the folder above: a copy of one source file with some text replaced, linked before
the library that has the good one.
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from mutants import judge  # noqa: E402

SEEDS = (1, 2, 3, 4)  # until one notices
ARGUMENTS = ["--requests", "800", "--policy", "kv-utilization"]

# name: (the rule that is broken, file, [(text, replacement), ...])
MUTANTS = {
    "pages-in-transit-forgotten": ("what is under way to a rank counts there",
                                   "router/worker_books.c", [
        ("    return load->pages_total - free_pages + worker->unseen_pages;",
         "    return load->pages_total - free_pages;"),
        ("    return used > expected ? used : expected;", "    return expected > 0 ? used : used;")]),
    "full-ranks-get-more": ("a request goes where its pages are", "router/decode_policy.c", [
        ("request->pages > -key->field[DECODE_MINUS_FREE] ||",
         "request->pages > 1e9 - key->field[DECODE_MINUS_FREE] ||")]),
    "books-kept-of-what-is-over": ("a worker is rid of a request that left it",
                                   "router/worker_books.c", [
        ("        worker->placed_pages -= request->placed_pages;\n", "")]),
    "lost-workers-keep-theirs": ("what a lost worker ran is run elsewhere", "router/core_worker.c", [
        ("    empty_worker(core, worker, died);\n", "    (void)empty_worker;\n")]),
    "mates-keep-theirs": ("a group is lost as one", "router/core_worker.c", [
        ("        empty_worker(core, mates[i], false);", "        (void)mates[i];")]),
    "lost-workers-are-chosen": ("nothing goes to a worker that is not ready",
                                "router/worker_table.c", [
        ("rt_worker_state(worker) == RT_WORKER_READY &&\n", "true &&\n")]),
    "group-state-not-followed": ("a rank that is silent stops its whole group",
                                 "router/worker_table.c", [
        ("            reindex_group(table, worker->group);", "            (void)reindex_group;")]),
    "open-breakers-ignored": ("an open breaker keeps a worker out", "router/worker_health.c", [
        ("    return health->breaker == RT_BREAKER_CLOSED || health->breaker == RT_BREAKER_HALF_OPEN;",
         "    (void)health;\n    return true;")]),
    "poison-tried-again": ("what kills again and again is stopped", "router/attempt.c", [
        ("    if (exposed && rt_suspicion_death(", "    if (exposed && false && rt_suspicion_death(")]),
    "company-suspected": ("a death is shared by those that were there", "router/poison.c", [
        ("    suspicion->shares += 1.0 / sharing;", "    suspicion->shares += 1.0;")]),
    "limits-of-tenants-ignored": ("a tenant runs no more than its limit", "router/request_queue.c", [
        ("tenant->running < tenant->limits.max_running;", "true;")]),
    "share-never-given-back": ("a tenant's request that ended makes room",
                               "router/request_queue.c", [
        ("        tenant->running--;\n", "")]),
    "requeue-forgets": ("a request whose attempt failed waits again", "router/attempt.c", [
        ("    rt_request_queue_return(&core->queue, request, rest_until_ns);",
         "    (void)rest_until_ns;")]),
    "tokens-sent-twice": ("the client sees no repeat", "router/token_order.c", [
        ("uint32_t delivered_before = request->delivered_count;",
         "uint32_t delivered_before = count > 0 ? tokens[0].index : request->delivered_count;")]),
    "drawn-from-addresses": ("a run is a function of its seed", "router/order_tree.c", [
        ("    return a->key < b->key || (a->key == b->key && a->tie < b->tie);",
         "    return a->key < b->key || (a->key == b->key && (a->tie ^ (uintptr_t)a >> 4) <"
         " (b->tie ^ (uintptr_t)b >> 4));")]),
}


def scale(program, seed):
    """None: it passed. Otherwise what it said last."""
    run = subprocess.run([program, "--twice", "--seed", str(seed), *ARGUMENTS], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    if run.returncode == 0:
        return None
    telling = [line for line in run.stdout.splitlines()
               if line.startswith("seed ") and ":" in line
               or "ERROR" in line or "assert" in line.lower()]
    return (telling or [f"exit {run.returncode}"])[0]


def main():
    return judge(os.path.realpath(sys.argv[1]), sys.argv[2:], MUTANTS, "tests/sim/router/scale",
                 lambda _, program: next(filter(None, (scale(program, seed) for seed in SEEDS)),
                                         None))


if __name__ == "__main__":
    sys.exit(main())
