#!/usr/bin/env python3
"""What each GPU kernel asks of memory and of the units, counted on the emulated GPU.

    count_kernels.py table|lines|check [--only GROUP] SHAPES MODULE SOURCE.cu...

SHAPES: the program that runs them (count_shapes.c), GROUP: what it is to run,
MODULE: baton-cuda-emulated-80.so or -90.so.

    table   a line for each kernel and case
    lines   likewise, and below each its places in the source that cost the most
    check   the table; fails where a kernel is above what the head of its file says, or it says
            nothing of one that ran

Columns, and what a head may bound:

    moved      distinct bytes read and written / what the shape has to move
    asked      bytes of all sectors that warps and bulk copies ask for / distinct bytes, where
               the shape says what has to be moved
    sectors    sectors of 32 bytes of global memory / the least that hold the same bytes
    conflicts  wavefronts of shared memory / the least that bring the same words
    products   multiplications (of tensor cores, else fused ones) / those of the shape

In a head, once or more; of a kernel that is named for itself, and of an architecture alone:
    Counted: [kernel:] moved <= 1.01, asked <= 1.5, sectors <= 1.0, conflicts <= 1.0[ (sm_90)]
"""
import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'cuda'))
from check_kernels import head, said  # pylint: disable=wrong-import-position

METRICS = ('moved', 'asked', 'sectors', 'conflicts', 'products')
BOUND = re.compile(r'(\w+) <= ([\d.]+)')
SECTOR = 32
ENTRY = re.compile(r'BT_KERNEL\((?:[^()]|\([^()]*\))*\)\s*(\w+)\(')
# Files of kernels that an architecture has others for.
ELSEWHERE = {'80': r'_wgmma\.cu$', '90': r'^(grouped_gemm_(bf16|f8|i8|i4)|mla_prefill)\.cu$'}


class Places:
    """Names of code: functions and lines."""

    def __init__(self):
        self.known = {}

    def look_up(self, wanted):
        """wanted: {(module, offset)}"""
        by_module = collections.defaultdict(list)
        for module, offset in wanted:
            by_module[module].append(offset)
        self.known['?', '0'] = [('?', '?:0')]
        by_module.pop('?', None)
        for module, offsets in by_module.items():
            text = subprocess.run(['addr2line', '-a', '-i', '-f', '-C', '-e', module],
                                  input='\n'.join(f'{max(int(o, 16) - 1, 0):x}' for o in offsets),
                                  capture_output=True, text=True, check=True).stdout
            answers = re.split(r'^0x[0-9a-f]+\n', text, flags=re.MULTILINE)[1:]
            for offset, answer in zip(offsets, answers):
                lines = answer.splitlines()
                self.known[module, offset] = list(zip(lines[::2], lines[1::2]))

    def lines(self, place):
        """The line, and those that it is inlined in, up to a file of kernels."""
        names = []
        for _, line in self.known[place]:
            line = re.sub(r' \(discriminator \d+\)', '', line)
            name = f'{pathlib.Path(line.rsplit(":", 1)[0]).name}:{line.rsplit(":", 1)[1]}'
            if not name.startswith(('instructions.cuh', 'tuple', 'invoke.h')):
                names.append(name)
            if '.cu:' in name:
                break
        return ' < '.join(names) or '?'

    def function(self, place):
        """The name of a function that begins there."""
        module, offset = place
        text = subprocess.run(['addr2line', '-f', '-C', '-e', module, offset], capture_output=True,
                              text=True, check=True).stdout.splitlines()
        self.known[place] = [(text[0], text[1])]
        return place


class Kernel:
    """All launches of one kernel in one case."""

    def __init__(self):
        self.launches = self.moved = self.fmas = self.products = 0
        self.sites = collections.defaultdict(lambda: [0] * 5)  # {(line, kind): …}

    def sum_of(self, kinds, column):
        """column: requests, lanes, bytes, cost, least"""
        return sum(all_of[column] for (_, kind), all_of in self.sites.items() if kind in kinds)


GLOBAL = ('global read', 'global write', 'global bulk')
SHARED = ('shared read', 'shared write')


def plain_name(function):
    """Without namespaces, arguments, templates."""
    name = re.sub(r'\(anonymous namespace\)::', '', function)
    return re.match(r'(?:void )?(\w+)', name).group(1)


def run_shapes(shapes, module, groups):
    """The lines that it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'counts'
        subprocess.run([shapes, *groups], check=True,
                       env={**os.environ, 'BATON_EMULATION_COUNTS': str(path),
                            'BATON_CUDA_MODULE': module})
        return [line.split('\t') for line in path.read_text(encoding='utf-8').splitlines()]


def parse(records):
    """({(case, kernel): Kernel}, {(case, kernel): (bytes, products)})"""
    places, kernels, floors, case, now = Places(), {}, {}, None, None
    places.look_up({tuple(record[1:3]) for record in records if record[0] == 'site'})
    for record in records:
        if record[0] == 'case':
            case = record[1]
        elif record[0] == 'floor':
            for name in record[1].split('|'):
                floors[case, name] = (float(record[2]), float(record[3]))
        elif record[0] == 'launch':
            place = tuple(record[1:3])
            if place not in places.known:
                places.function(place)
            name = plain_name(places.known[place][0][0])
            now = kernels.setdefault((case, name), Kernel())
            now.launches += 1
            now.moved += int(record[8]) + int(record[9])
            now.products += int(record[10])
            now.fmas += int(record[11])
        else:
            site = now.sites[places.lines(tuple(record[1:3])), record[3]]
            for i in range(5):
                site[i] += int(record[4 + i])
    return kernels, floors


def ratio(part, whole):
    """None: there is nothing to compare with."""
    return part / whole if whole else None


def measure(kernel, floor):
    """{metric: ratio or None}"""
    floor_bytes, floor_products = floor or (0, 0)
    return {
        'moved': ratio(kernel.moved, floor_bytes),
        'asked': ratio(SECTOR * kernel.sum_of(GLOBAL, 3), kernel.moved if floor_bytes else 0),
        'sectors': ratio(kernel.sum_of(GLOBAL, 3), kernel.sum_of(GLOBAL, 4)),
        'conflicts': ratio(kernel.sum_of(SHARED, 3), kernel.sum_of(SHARED, 4)),
        'products': ratio(kernel.products or kernel.fmas, floor_products),
    }


def worst(kernel):
    """The line that wastes the most, of shared memory and of global: ('text', …)"""
    found = []
    for kinds in (SHARED, GLOBAL):
        sites = [(all_of[3] - all_of[4], key, all_of) for key, all_of in kernel.sites.items()
                 if key[1] in kinds and all_of[3] > all_of[4] > 0]
        if sites:
            _, (line, kind), all_of = max(sites)
            found.append(f'{line} ({kind} {all_of[3] / all_of[4]:.2f})')
    return found


def text_of(value):
    """A column."""
    return '    -' if value is None else f'{value:5.2f}'


def show(kernels, floors, with_lines):
    """The table."""
    print(f'{"kernel":24} {"moved":>5} {"asked":>5} {"secto":>5} {"confl":>5} {"produ":>5}  '
          f'{"MB":>8}  case; worst of shared and global memory')
    for (case, name), kernel in sorted(kernels.items(), key=lambda item: item[0][::-1]):
        values = measure(kernel, floors.get((case, name)))
        print(f'{name:24} {" ".join(text_of(values[m]) for m in METRICS)}  '
              f'{kernel.moved / 1e6:8.3f}  {case}; {"; ".join(worst(kernel))}')
        if not with_lines:
            continue
        for (line, kind), site in sorted(kernel.sites.items(), key=lambda item: -item[1][3]):
            requests, lanes, size, cost, least = site
            print(f'    {kind:13} {cost:9} / {least:9} = {cost / least if least else 0:5.2f}  '
                  f'{requests:8} requests of {lanes / requests:4.1f} lanes, '
                  f'{size / lanes:5.1f} bytes each  {line}')


def bounds(source, arch):
    """{(kernel or '', metric): most}"""
    result = {}
    for text in said(head(source), 'Counted'):
        name = text.split(':')[0].strip() if ':' in text.split('<=')[0] else ''
        for part in re.split(r';', text):
            if (only := re.search(r'\(sm_(\w+)\)', part)) and only.group(1) != arch:
                continue
            for metric, most in BOUND.findall(part):
                result[name, metric] = float(most)
    return result


def check(kernels, floors, sources, arch, is_all):
    """How many faults."""
    faults, seen = 0, set()
    said_of = {source.name: bounds(source, arch) for source in sources}
    file_of = {name: source.name for source in sources
               for name in ENTRY.findall(source.read_text(encoding='utf-8'))}
    for (case, name), kernel in kernels.items():
        file = file_of.get(name)
        if not file:
            continue  # of another folder
        if file not in seen and not said_of[file]:
            faults += 1
            print(f'FAIL {file}: its head does not say what is counted, and {name} ran ({case})')
        seen.add(file)
        if not (most := said_of[file]):
            continue
        for metric, value in measure(kernel, floors.get((case, name))).items():
            limit = most.get((name, metric), most.get(('', metric)))
            if value is None:
                continue
            if limit is None:
                faults += 1
                print(f'FAIL {file}: its head says nothing of {metric} of {name}: '
                      f'{value:.3f} ({case})')
            elif value > limit + 1e-9:
                faults += 1
                print(f'FAIL {file}: {name}: {metric} {value:.3f}, its head says {limit} '
                      f'({case}): {"; ".join(worst(kernel))}')
    for file, limits in said_of.items():
        if file in seen or not is_all or re.search(ELSEWHERE[arch], file):
            continue
        if limits:
            faults += 1
            print(f'FAIL {file}: its head says what is counted, and no case runs it')
        else:
            print(f'no bounds, and no case: {file}')
    return faults


def main():
    """As the head says."""
    if len(sys.argv) < 4 or sys.argv[1] not in ('table', 'lines', 'check'):
        print(__doc__, file=sys.stderr)
        return 2
    what, *arguments = sys.argv[1:]
    groups = []
    if arguments[0] == '--only':
        groups, arguments = arguments[1:2], arguments[2:]
    shapes, module, *files = arguments
    arch = re.search(r'-(\d+)\.so$', module).group(1)
    kernels, floors = parse(run_shapes(shapes, module, groups))
    show(kernels, floors, what == 'lines')
    if what != 'check':
        return 0
    faults = check(kernels, floors, [pathlib.Path(file) for file in files], arch, not groups)
    print(f'counts: {len(kernels)} looked at, {faults} faults')
    return 1 if faults or not kernels else 0


if __name__ == '__main__':
    sys.exit(main())
