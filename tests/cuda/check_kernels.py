#!/usr/bin/env python3
"""What the compiler made of each GPU kernel, against what the head of its file says.

    check_kernels.py resources|ptx|sass DIRECTORY SOURCE.cu...

DIRECTORY: where compile.py left its reports. Nothing runs.

    resources  no spills, no stack frame (local memory), no kernel above its registers; no wgmma
               that ptxas puts one after the other, no setmaxnreg that it ignores; where there is
               one, all registers of a multiprocessor at the launch
    ptx        each of `Instructions:` is in the PTX of every architecture that it is said for; no
               register of a wgmma is changed behind its fence, or touched before its wait; no
               product or sum that may be fused with another
    sass       the machine's code has no local memory, and the instructions that those become;
               exit 77 where nvdisasm can't be had (PyPI: nvidia-cuda-nvdisasm)

In a head, once or more:
    Registers: [kernel:] <= N (sm_80), <= N (sm_90a), <= N (sm_100)
    Instructions: words of one instruction[ (sm_90a)]; words of another
"""
import concurrent.futures
import pathlib
import re
import shutil
import subprocess
import sys

ARCHES = ('80', '90a', '100')
BUDGET = re.compile(r'<= (\d+) \(sm_(\w+)\)')
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
FRAME = re.compile(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads')
USED = re.compile(r'Used (\d+) registers')
# What ptxas tells of wgmma, and of setmaxnreg, that it does not do as it is said.
NOTES = re.compile(r'setmaxnreg|wgmma|Potential Performance Loss', re.IGNORECASE)
ENTRY_PTX = re.compile(r'\.entry (\w+)')
REGISTER = re.compile(r'%[fr]\d+')
FILE_REGISTERS = 65536  # of a multiprocessor
FUSABLE = re.compile(r'(?:@!?%p\d+ )?(mul|add|sub)(\.ftz)?\.f(32|64)\s')
LOCAL = re.compile(r'\b(LDL|STL)\b')
# What the instructions of PTX become: all of the words of a name are in one instruction.
MACHINE = (
    (('wgmma', 's8'), 'IGMMA'), (('wgmma', 'e4m3'), 'QGMMA'), (('wgmma',), 'HGMMA'),
    (('mma', 'sync', 's8'), 'IMMA'), (('mma', 'sync', 'bf16'), 'HMMA'),
    (('ldmatrix',), 'LDSM'), (('cp', 'async', 'bulk', 'tensor'), 'UTMALDG'),
    (('cp', 'async', 'bulk'), 'UBLKCP'), (('cp', 'async'), 'LDGSTS'),
    (('ld', 'global', 'v2', 'u32'), r'LDG\.E[\w.]*\.64'),
    (('ld', 'global', 'v4'), r'LDG\.E[\w.]*\.128'), (('st', 'global', 'v4'), r'STG\.E[\w.]*\.128'),
    (('shfl',), 'SHFL'),
)


class Faults:
    """Printed as they come."""

    def __init__(self):
        self.count = 0

    def add(self, text):
        """One line."""
        self.count += 1
        print(f'FAIL {text}')


def head(source):
    """The first comment, its lines joined where they go on."""
    text = source.read_text(encoding='utf-8')
    lines = text[text.index('/*'):text.index('*/')].splitlines()
    return [line.strip().lstrip('/*').strip() for line in lines]


def said(lines, key):
    """All of `key: …`, with the lines that go on until the next word with a colon."""
    found, current = [], None
    for line in lines:
        if line.startswith(key + ':'):
            current = [line[len(key) + 1:]]
            found.append(current)
        elif current is not None and line and not re.match(r'[A-Z][\w ,()]*:', line):
            current.append(line)
        else:
            current = None
    return [' '.join(parts).strip() for parts in found]


def name_of(entry):
    """The kernel's name inside a mangled one."""
    match = re.match(r'_Z(?:N\d+_GLOBAL__N__\w*?E?|L)?(\d+)(\w+)', entry)
    if not match:
        return entry
    return match.group(2)[:int(match.group(1))]


def budgets(source, faults):
    """{(kernel or '', arch): registers}"""
    result = {}
    for text in said(head(source), 'Registers'):
        kernel = text.split(':')[0].strip() if ':' in text.split('<=')[0] else ''
        for most, arch in BUDGET.findall(text):
            result[kernel, arch] = int(most)
    for arch in ARCHES:
        if not any(a == arch for _, a in result):
            faults.add(f'{source.name}: its head says no registers for sm_{arch}')
    return result


def functions(report):
    """(entry, arch, stack, stores, loads, registers) of each kernel."""
    entry = arch = frame = None
    for line in report.splitlines():
        if match := ENTRY.search(line):
            entry, arch = match.groups()
        elif match := FRAME.search(line):
            frame = tuple(int(n) for n in match.groups())
        elif (match := USED.search(line)) and entry:
            yield (entry, arch, *frame, int(match.group(1)))
            entry = None


def entries(text):
    """[(name, lines)] of a file of PTX; instructions and directives alone."""
    result = []
    for line in text.splitlines():
        line = line.split('//')[0].strip()
        if match := ENTRY_PTX.search(line):
            result.append((match.group(1), []))
        if result and line:
            result[-1][1].append(line)
    return result


def launch_registers(lines):
    """What a thread has at the launch, where the launch bounds are of one block: all there is."""
    text = '\n'.join(lines)
    threads = re.search(r'\.maxntid (\d+)', text)
    if not threads or not re.search(r'\.minnctapersm 1$', text, re.MULTILINE):
        return 0
    warps = -(-int(threads.group(1)) // 32)
    return min(255, FILE_REGISTERS // (32 * warps) // 8 * 8)


def check_pools(source, directory, faults, used):
    """setmaxnreg gives and takes from what the launch gave: that is known by launch bounds of one
    block, as on the emulated grid. used: {(entry, arch): registers}"""
    for arch in ARCHES:
        text = (directory / f'{source.stem}.{arch}.ptx').read_text(encoding='utf-8')
        for entry, lines in entries(text):
            if not any(line.startswith('setmaxnreg') for line in lines):
                continue
            most = launch_registers(lines)
            if used.get((entry, arch)) != most:
                faults.add(f'{source.name}: {name_of(entry)} for sm_{arch} has setmaxnreg and '
                           f'{used.get((entry, arch))} registers at its launch, not {most} by '
                           f'launch bounds of one block')


def check_resources(source, directory, faults):
    """Of one file; returns how many kernels there were."""
    most, seen, used = budgets(source, faults), 0, {}
    report = (directory / f'{source.stem}.resources').read_text(encoding='utf-8')
    for entry, arch, stack, stores, loads, registers in functions(report):
        kernel, seen = name_of(entry), seen + 1
        used[entry, arch] = registers
        limit = most.get((kernel, arch), most.get(('', arch), 0))
        where = f'{source.name}: {kernel} for sm_{arch}'
        if stack or stores or loads:
            faults.add(f'{where}: {stack} bytes of stack, {stores} stored and {loads} loaded of '
                       f'what was spilt ({entry})')
        if registers > limit:
            faults.add(f'{where}: {registers} registers, its head says {limit} ({entry})')
    for line in report.splitlines():
        if NOTES.search(line) and 'entry function' not in line and 'properties' not in line:
            faults.add(f'{source.name}: {line.strip()}')
    check_pools(source, directory, faults, used)
    if seen % len(ARCHES) or not seen:
        faults.add(f'{source.name}: {seen} reports, not one for each architecture')
    return seen


def instructions(source):
    """[(words, arch or None)]"""
    result = []
    for text in said(head(source), 'Instructions'):
        for item in re.split(r'[;,]', text):
            only = re.search(r'\(sm_(\w+)\)', item)
            words = re.findall(r'[\w:]+', re.sub(r'\(.*?\)', '', item))
            if words:
                result.append((words, only.group(1) if only else None))
    return result


def has(words, lines):
    """Whether they are in one instruction, in this order."""
    for parts in lines:
        rest = iter(parts)
        if all(word in rest for word in words):
            return True
    return False


def registers_of(line):
    """Of a wgmma: its accumulators, and its left operand where that is in registers."""
    return set(REGISTER.findall(' '.join(re.findall(r'\{(.*?)\}', line))))


def check_products(where, lines, faults):
    """The rules that PTX has for registers of wgmma, line after line as the text goes."""
    changed, current, groups = {}, set(), []
    for line in lines:
        under_way = current.union(*groups)
        if line.startswith('wgmma.fence'):
            changed = {}
        elif line.startswith('wgmma.mma_async'):
            if late := registers_of(line) & changed.keys():
                faults.add(f'{where}: {len(late)} registers of a wgmma change behind its fence: '
                           f'{changed[min(late)]}')
                changed = {}
            current |= registers_of(line)
        elif line.startswith('wgmma.commit'):
            groups, current = groups + [current], set()
        elif line.startswith('wgmma.wait'):
            left = int(re.search(r'(\d+);', line).group(1))
            groups = groups[-left:] if left else []
        elif not line.startswith('.') and (found := REGISTER.findall(line)):
            if under_way & set(found):
                faults.add(f'{where}: a register of a wgmma before its wait: {line}')
                groups, current = [], set()
            changed[found[0]] = line


def check_fusing(where, lines, faults):
    """Without a rounding of their own a product and the sum of it become one instruction, which
    rounds once: nvcc has to be told -fmad=false."""
    for line in lines:
        if FUSABLE.match(line):
            faults.add(f'{where}: is said without its rounding: {line}')
            return


def check_ptx(source, directory, faults):
    """Of one file; returns how many instructions were looked for."""
    wanted = instructions(source)
    for arch in ARCHES:
        text = (directory / f'{source.stem}.{arch}.ptx').read_text(encoding='utf-8')
        for entry, body in entries(text):
            where = f'{source.name}: {name_of(entry)} for sm_{arch}'
            check_products(where, body, faults)
            check_fusing(where, body, faults)
        lines = [re.findall(r'[\w:]+', line.split('//')[0]) for line in text.splitlines()]
        for words, only in wanted:
            if only in (None, arch) and not has(words, lines):
                faults.add(f'{source.name}: no {".".join(words)} in its PTX for sm_{arch}')
    return len(wanted)


def disassembler(folder):
    """A path, or None. Installed into `folder` where pip can."""
    if found := shutil.which('nvdisasm'):
        return found
    path, part = folder / 'nvidia' / 'cu13' / 'bin' / 'nvdisasm', folder.with_suffix('.part')
    if not path.exists():       # whole, or not at all
        for left in (part, folder):
            shutil.rmtree(left, ignore_errors=True)
        done = subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--target', str(part),
                               'nvidia-cuda-nvdisasm'], capture_output=True, check=False)
        if done.returncode == 0:
            part.rename(folder)
    if path.exists():
        path.chmod(0o755)
        return str(path)
    return None


def machine_of(words):
    """What the machine calls it; None: not looked for."""
    for ptx, sass in MACHINE:
        rest = iter(words)
        if all(word in rest for word in ptx):
            return sass
    return None


def check_sass(source, directory, faults, nvdisasm):
    """Of one file; returns how many instructions were looked for."""
    wanted = instructions(source)
    for arch in ARCHES:
        cubin = directory / f'{source.stem}.{arch}.cubin'
        text = subprocess.run([nvdisasm, '-c', str(cubin)], capture_output=True, text=True,
                              check=True).stdout
        if LOCAL.search(text):
            faults.add(f'{source.name}: local memory in the code for sm_{arch}')
        for words, only in wanted:
            machine = machine_of(words)
            if machine and only in (None, arch) and not re.search(machine, text):
                faults.add(f'{source.name}: no {machine} ({".".join(words)}) for sm_{arch}')
    return len(wanted)


def main():
    what, directory, *sources = sys.argv[1:]
    directory, faults = pathlib.Path(directory), Faults()
    nvdisasm = disassembler(directory / 'nvdisasm') if what == 'sass' else None
    if what == 'sass' and not nvdisasm:
        print('skipped: no nvdisasm here, and PyPI gave none')
        return 77
    check = {'resources': check_resources, 'ptx': check_ptx,
             'sass': lambda *of_one: check_sass(*of_one, nvdisasm)}[what]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # nvdisasm takes its time
        looked = pool.map(lambda path: check(path, directory, faults), map(pathlib.Path, sources))
        seen = sum(looked)
    print(f'{what}: {len(sources)} files, {seen} looked at, {faults.count} faults')
    return 1 if faults.count or not seen else 0


if __name__ == '__main__':
    sys.exit(main())
