#!/usr/bin/env python3
"""Compiles one .cu for all architectures, and keeps what tests read beside the object.

    compile.py NVCC SOURCE OBJECT DEPFILE FLAGS...

Beside OBJECT (name.o): name.resources, the report of ptxas; name.80.ptx, name.80.cubin and the
same for every other architecture.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

KEPT = {'.ptx': 'ptx', '.cubin': 'cubin'}


def keep(directory, target):
    """name.compute_90a.ptx -> name.90a.ptx; a cubin may have its own architecture behind that."""
    for path in sorted(pathlib.Path(directory).iterdir()):
        if path.suffix in KEPT:
            arch = path.name.split('.compute_')[1].split('.')[0]
            shutil.copy(path, target.with_name(f'{target.stem}.{arch}{path.suffix}'))


def main():
    nvcc, source, target, depfile, *flags = sys.argv[1:]
    target = pathlib.Path(target)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        command = [nvcc, *flags, '-Xptxas', '-v', '--keep', '--keep-dir', directory,
                   '-MD', '-MF', depfile, '-c', source, '-o', str(target)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.stderr.write(done.stderr)
            return done.returncode
        keep(directory, target)
    target.with_suffix('.resources').write_text(done.stderr, encoding='utf-8')
    return 0


if __name__ == '__main__':
    os.umask(0o022)
    sys.exit(main())
