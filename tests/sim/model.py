#!/usr/bin/env python3
"""Checks the protocol's model exhaustively, and that it can tell when a rule is missing.

    model.py HANDOFF.PML [NAME ...]

The whole space of each configuration below is searched within fixed memory. Then each rule in turn
is switched off, and spin has to find a violation. Without spin or a compiler the test is skipped.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

MEMORY_MB = 1400
DEPTH = 20000
SECONDS = 240

REPEATED = {"REPEATS": 1, "TARGET_CRASHES": 0, "DAMAGES": 0, "CRASHES": 0}
CONFIGURATIONS = {
    "all misfortunes": {},
    "two writes": {"W": 2, "TARGET_CRASHES": 0, "DAMAGES": 0, "BREAKS": 0},
    "a Run comes twice": REPEATED,
    "on one host": {"ELSEWHERE": 0, "TARGET_CRASHES": 0, "DAMAGES": 0},
}
# Where the violation lies in a small space, or needs what the first configuration lacks.
BROKEN = {
    "FREE_ON_TIMER": {},
    "FREE_ON_CANCEL": {},
    "SILENT_IS_GONE": {},
    "DEAD_NOT_CUT_OFF": {},
    "NO_CUT_OFF": {},
    "NO_LEASE_CHECK": {},
    "EPOCH_REUSE": {},
    "OLD_EPOCH": {},
    "DONE_BEFORE_FLUSH": {},
    "QUIESCED_BEFORE_FLUSH": {},
    "BROKEN_AS_QUIESCED": {},
    "CHECKSUM": {},
    "END_TWICE": {"CANCELS": 2},
    "NO_QUIESCED": {"ELSEWHERE": 0},
    "RESERVED_FOR_EVER": {},
    "LEASE_AFTER_DONE": REPEATED,
    "RUN_WHILE_QUIESCING": REPEATED,
}


def check(model, defines, optimise="-O2"):
    """Errors found, states stored, or an exception when the search was not complete."""
    options = [f"-D{name}={value}" for name, value in defines.items()]
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(model, os.path.join(scratch, "model.pml"))
        subprocess.run(["spin", "-a", *options, "model.pml"], cwd=scratch, check=True,
                       stdout=subprocess.DEVNULL)
        subprocess.run(["cc", optimise, "-w", "-DSAFETY", "-DNOCLAIM", "-DCOLLAPSE",
                        "-DVECTORSZ=512", f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c"],
                       cwd=scratch, check=True)
        said = subprocess.run(["./pan", f"-m{DEPTH}", "-w24"], cwd=scratch, timeout=SECONDS,
                              check=False, capture_output=True, text=True).stdout
    errors = re.search(r"errors: (\d+)", said)
    states = re.search(r"(\d+) states, stored", said)
    if not errors or not states:
        raise RuntimeError("spin did not come to an end:\n" + said)
    if errors.group(1) == "0" and ("too small" in said or "out of memory" in said):
        raise RuntimeError("the search was cut short:\n" + said)
    return int(errors.group(1)), int(states.group(1))


def main():
    for tool in ("spin", "cc"):
        if not shutil.which(tool):
            print(f"skipped: no {tool} here")
            return 77
    model, chosen = sys.argv[1], sys.argv[2:]
    failures = 0
    for name, defines in CONFIGURATIONS.items():
        if chosen and name not in chosen:
            continue
        errors, states = check(model, defines)
        failures += errors > 0
        print(f"{'VIOLATED' if errors else 'holds'}: {name}, {states} states", flush=True)
    for name, defines in BROKEN.items():
        if chosen and name not in chosen:
            continue
        errors, states = check(model, {**defines, "BREAK_" + name: 1}, "-O0")
        failures += errors == 0
        print(f"{'noticed' if errors else 'NOT NOTICED'}: without {name}, {states} states",
              flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
