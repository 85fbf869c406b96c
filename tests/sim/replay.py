#!/usr/bin/env python3
"""replay.py SIMULATE: the same seeds give the same log in another process, other seeds another."""
import subprocess
import sys

COUNT = "300"


def hash_of(seed):
    said = subprocess.run([sys.argv[1], "--seed", str(seed), "--count", COUNT, "--hash"],
                          check=True, capture_output=True, text=True).stdout
    return next(line for line in said.splitlines() if line.startswith("hash "))


first, again, other = hash_of(7), hash_of(7), hash_of(1000007)
print(first, again, other)
sys.exit(0 if first == again != other else 1)
