#!/usr/bin/env python3
"""Breaks the code on purpose, one rule at a time, and requires that the simulator notices.

    mutants.py BUILD_DIRECTORY [NAME ...]

Each mutant is a copy of one source file with some text replaced, compiled as the build directory
compiles that file and linked before the library that has the good one. A text that is not found
any more fails the test: the rule has moved, and its mutant has to follow. A mutant is noticed when
the simulator ends with anything but success within its number of schedules. That the unbroken
program passes is the test beside this one.

Rules that schedules at random meet too rarely are held by unit tests: a landing that is cancelled
while it is verified (kvtransfer, test_verdicts), cuts before READY (decode, test_done_after_a_cut)
and early checksums over a cut (decode, test_handoff).
"""
import os
import shlex
import subprocess
import sys
import tempfile

SCHEDULES = 20000  # of which most mutants need a few hundred
SEED = 1
# Where few schedules meet the rule: a first seed near one that does. From there on as many.
SEEDS = {"any-peer-gone-frees-all": 1401, "cut-of-a-healthy-line": 1601, "cuts-dropped": 10101,
         "cuts-dropped-at-the-end": 10101, "line-number-used-again": 11001}

# name: (the rule that is broken, file, [(text, replacement), ...])
MUTANTS = {
    "free-on-timer": ("rule 2: time alone frees nothing", "kvtransfer/landing.c", [
        ('fail_and_quarantine(table, landing, BT_ERR_DEADLINE, "its lease expired")',
         'fail_and_drop(table, landing, BT_ERR_DEADLINE, "its lease expired")')]),
    "free-on-cancel": ("rule 2: a cancelled landing waits for Quiesced", "kvtransfer/landing.c", [
        ("""    case KVT_LANDING_LANDING:
        quarantine(table, landing);
        break;
    case KVT_LANDING_VERIFYING:
        landing->cancelled = true;""",
         """    case KVT_LANDING_LANDING:
        drop(table, landing);
        landing_free(landing);
        break;
    case KVT_LANDING_VERIFYING:
        landing->cancelled = true;""")]),
    "same-epoch-twice": ("rule 1: an epoch is never used twice", "kvtransfer/landing.c", [
        ("    table->next_epoch++;\n", "")]),
    "old-epoch-accepted": ("rule 5: (request, epoch) decides", "kvtransfer/landing.c", [
        ("return landing != NULL && landing->epoch == epoch ? landing : NULL;",
         "(void)epoch;\n    return landing;")]),
    "quiesced-of-another-epoch": ("rule 5: Quiesced of another epoch frees nothing",
                                  "kvtransfer/landing.c", [
        ("""void kvt_landing_quiesced(struct kvt_landing_table *table, uint64_t request, uint64_t epoch)
{
    struct kvt_landing *landing = find_any(table, request, epoch);
""", """void kvt_landing_quiesced(struct kvt_landing_table *table, uint64_t request, uint64_t epoch)
{
    struct kvt_landing *landing = find_any(table, request, epoch);
    if (landing == NULL)
        landing = bt_map_get(&table->by_request, request);
""")]),
    "done-twice-verified-twice": ("rule 5: a second Done is harmless", "kvtransfer/landing.c", [
        ("        verdict = KVT_DONE_DUPLICATE;", "        verdict = KVT_DONE_VERIFY;")]),
    "cancel-forgets-running": ("pages of a running sequence are the engine's",
                               "decode-node/request.c", [
        ("""    if (landing->state == KVT_LANDING_READY) {
        dc_request_stop(request, DC_FINISH_CANCELLED);""",
         """    if (false) {
        dc_request_stop(request, DC_FINISH_CANCELLED);""")]),
    "any-peer-gone-frees-all": ("rule 2: gone is one incarnation", "kvtransfer/landing.c", [
        ("if (!kvt_landing_is_open(landing) || !landing->lost ||\n            landing->peer_incarnation != incarnation)",
         "(void)incarnation;\n        if (!kvt_landing_is_open(landing))")]),
    "reserved-for-ever": ("rule 7: a reservation that nobody takes ends", "kvtransfer/landing.c", [
        ("    return landing->state == KVT_LANDING_RESERVED || landing->state == KVT_LANDING_LANDING;",
         "    return landing->state == KVT_LANDING_LANDING;")]),
    "write-without-lease": ("rule 3: no lease, no write", "kvtransfer/push.c", [
        ("return *ret_now_ns < atomic_load(&push->lease_until_ns);", "(void)push;\n    return true;"),
        ("} else if (lease_until_ns == 0 || !link_is(push, KVT_LINK_READY)) {",
         "} else if (!link_is(push, KVT_LINK_READY)) {")]),
    "done-before-flush": ("rule 4: the event comes after the flush", "kvtransfer/push.c", [
        ("    if (!push->touched || (push->flushed", "    if (push->event.status == BT_OK || (push->flushed")]),
    "cancel-without-flush": ("rule 4: so does that of a cancelled push", "kvtransfer/push.c", [
        ("    if (!push->touched || (push->flushed",
         "    if (push->event.status != BT_OK || (push->flushed")]),
    "broken-called-quiesced": ("rule 4: a broken link is not quiesced", "kvtransfer/push.c", [
        ("end(push, BT_ERR_PEER_LOST, false);", "end(push, BT_ERR_PEER_LOST, true);")]),
    "broken-not-cut-off": ("rule 4: the target cuts a broken source off", "decode-node/service.c", [
        ("    if (list.count > 0 && kvt_landing_is_open(landing)) {",
         "    if (false) {")]),
    "lost-not-cut-off": ("rule 2: lost and disconnected", "decode-node/cutoff.c", [
        ("            cut_lost(cutoffs, peers[i]);",
         "            (void)cut_lost;\n"
         "            kvt_landing_peer_gone(cutoffs->options.landings, peers[i]);")]),
    "silence-is-death": ("rule 2: who is silent here is not gone", "decode-node/cutoff.c", [
        ("return bt_process_probe(process) == BT_PROCESS_DEAD ? KVT_WRITER_DEAD : KVT_WRITER_ALIVE;",
         "return KVT_WRITER_DEAD;"),
        ("            cut_lost(cutoffs, peers[i]);",
         "            (void)cut_lost;\n"
         "            kvt_landing_peer_gone(cutoffs->options.landings, peers[i]);")]),
    "elsewhere-for-ever": ("rule 2: pages of a worker elsewhere come back", "decode-node/cutoff.c", [
        ("        return KVT_WRITER_ELSEWHERE;", "        return KVT_WRITER_ALIVE;")]),
    "checksum-ignored": ("rule 6: a wrong checksum is not decoded", "decode-node/request.c", [
        ("    bool equal = checksum == request->checksum;",
         "    (void)checksum;\n    bool equal = true;")]),
    "early-sum-believed": ("rule 11: what a source says of its progress is a hint",
                           "decode-node/request.c", [
        ("        request_sum(request); /* what came early was a hint: from the beginning, then */",
         "        request_verdict(request, BT_OK, NULL);")]),
    "early-sum-is-the-verdict": ("rule 11: an early sum that does not fit fails nothing",
                                 "decode-node/request.c", [
        ("    if (early && checksum != request->checksum && request->landing) {", "    if (false && early) {"),
        ]),
    "cuts-dropped": ("rule 12: a rail that failed is a cut", "kvtransfer/rails/peer.c", [
        ("        peer->cuts |= UINT64_C(1) << line->number;", "        ;")]),
    "cuts-dropped-at-the-end": ("rule 12: the event of a push names the cuts", "kvtransfer/push.c", [
        ("        event->cut_lines = cuts_to_tell(push);", "        (void)cuts_to_tell;")]),
    "cut-the-first-alone": ("rule 12: all that a message names is cut off", "decode-node/cutoff.c", [
        ("    for (size_t i = 0; i < count; i++) {\n        enum bt_status status = read_cut(",
         "    for (size_t i = 0; i < (count > 0); i++) {\n        enum bt_status status = read_cut(")]),
    "cut-of-a-healthy-link": ("rule 5: a cut is of one link", "decode-node/cutoff.c", [
        (".link = message->link,", ".link = KVT_ANY_LINK,")]),
    "cut-of-a-healthy-line": ("rule 12: a cut is of its lines", "decode-node/cutoff.c", [
        ("        wanted.lines |= ask->lines;", "        wanted.lines = KVT_ALL_LINES;")]),
    "stale-duplicate-cut": ("rule 5: nothing is cut off for an epoch that is over",
                            "decode-node/service.c", [
        ("    if (list.count > 0 && kvt_landing_is_open(landing)) {",
         "    if (list.count > 0) {\n        list.cuts[0].link = KVT_ANY_LINK;")]),
    "line-number-used-again": ("rule 12: a line that is tried again has a new number",
                               "kvtransfer/rails/peer.c", [
        ("    uint32_t number = free_number(line->owner);",
         "    (void)free_number;\n    uint32_t number = line->number;")]),
    "pages-leak-at-the-end": ("the pages of a sequence that ended are free",
                              "decode-node/request.c", [
        ("    kvt_landing_release(requests->landings, request->reservation.request, request->epoch);\n",
         "")]),
    "quiesced-not-sent": ("an end that is not OK is followed by Quiesced", "prefill-node/run.c", [
        ("    if (run_owes_quiesced(run)) {",
         "    (void)run_owes_quiesced;\n    if (false) {")]),
    "quiesced-not-repeated": ("Quiesced is told until it is acknowledged", "prefill-node/peer.c", [
        ("    if (pf_rank_worth_retrying(status)) {", "    if (false) {")]),
    "source-pages-reused": ("rule 8: source pages stay until the push's event",
                            "prefill-node/run.c", [
        ("    pf_prompt_pages_computed(&run->pages);\n    if",
         "    pf_prompt_pages_computed(&run->pages);\n    run_free_pages(run);\n    if")]),
    "other-incarnation-quiesces": ("only the holder of the lease gives it up",
                                   "decode-node/service.c", [
        ("    return holder != 0 && holder != incarnation;", "    return holder == incarnation;")]),
    "tokens-sent-twice": ("the client sees no repeat", "router/token_order.c", [
        ("uint32_t delivered_before = request->delivered_count;",
         "uint32_t delivered_before = count > 0 ? tokens[0].index : request->delivered_count;")]),
    "what-prefill-did-not-passed-on": ("whoever is heard first tells what prefill did",
                                       "decode-node/request.c", [
        ("if (entry->has_token && request->token_ns == 0 && request->has_prefill) {", "if (0) {")]),
}


def commands(build, target):
    """The compile command of each source file, and the link command."""
    lines = subprocess.run(["ninja", "-C", build, "-t", "commands", target],
                           check=True, capture_output=True, text=True).stdout.splitlines()
    compile_of = {}
    for line in lines:
        words = shlex.split(line)
        if "-c" in words:
            compile_of[os.path.realpath(os.path.join(build, words[words.index("-c") + 1]))] = words
    return compile_of, shlex.split(lines[-1])


def replaced(words, option, value):
    at = words.index(option) + 1
    return words[:at] + [value] + words[at + 1:]


def without_dependencies(words):
    kept, skip = [], 0
    for word in words:
        if skip:
            skip -= 1
        elif word in ("-MQ", "-MF"):
            skip = 1
        elif word != "-MD":
            kept.append(word)
    return kept


def mutate(root, file, edits):
    with open(os.path.join(root, file), encoding="utf-8") as source:
        text = source.read()
    for old, new in edits:
        if text.count(old) != 1:
            raise LookupError(f"{file} has {text.count(old)} times, not once:\n{old}")
        text = text.replace(old, new)
    return text


def build_mutant(build, root, scratch, name, file, edits, compile_of, link):
    source = os.path.join(scratch, name + ".c")
    with open(source, "w", encoding="utf-8") as out:
        out.write(mutate(root, file, edits))
    words = without_dependencies(compile_of[os.path.realpath(os.path.join(root, file))])
    here = os.path.join(root, os.path.dirname(file))
    words = replaced(replaced(words, "-c", source), "-o", source[:-2] + ".o")
    subprocess.run(words + ["-I" + here, "-Wno-error", "-w", "-g0"], cwd=build, check=True)
    program = os.path.join(scratch, name)
    words = replaced(link, "-o", program) + ["-Wl,--strip-debug"]
    first = next(i for i, word in enumerate(words) if word.endswith(".o"))
    subprocess.run(words[:first] + [source[:-2] + ".o"] + words[first:], cwd=build, check=True)
    return program


def simulate(name, program):
    """None: it passed. Otherwise what it said last."""
    run = subprocess.run([program, "--seed", str(SEEDS.get(name, SEED)), "--count", str(SCHEDULES)],
                         text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    if run.returncode == 0:
        return None
    telling = [line for line in run.stdout.splitlines()
               if line.startswith(("seed ", "of ")) or "ERROR" in line or "assert" in line.lower()]
    return (telling or [f"exit {run.returncode}"])[0]


def judge(build, chosen, mutants, target, says):
    """Builds `target` once for each mutant; says(name, program) is None where it was not noticed."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    compile_of, link = commands(build, target)
    chosen = chosen or list(mutants)
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            rule, file, edits = mutants[name]
            program = build_mutant(build, root, scratch, name, file, edits, compile_of, link)
            said = says(name, program)
            failures += said is None
            print(f"{'NOT NOTICED' if said is None else 'noticed'}: {name} ({rule}): {said or ''}",
                  flush=True)
            os.unlink(program)
    print(f"{len(chosen) - failures} of {len(chosen)} mutants were noticed")
    return 1 if failures else 0


def main():
    return judge(os.path.realpath(sys.argv[1]), sys.argv[2:], MUTANTS, "tests/sim/simulate", simulate)


if __name__ == "__main__":
    sys.exit(main())
