"""Real RDMA: two virtual machines with software RDMA devices. The conformance suite over rc_verbs, and
requests from a prefill worker in one to a decode worker in the other, equal to the goldens.

It builds without sanitizers for itself: the machines are emulated. BATON_RDMA_VM_BUILD names a build
directory to use instead; BATON_TEST_UCX a directory with the libraries of another UCX, and its modules in
`ucx/`, which the guests then load (deploy/container/fetch-ucx brings one).
"""
import os
import pathlib
import shlex
import shutil
import sys
import tempfile
import time

import machine

ROOT = machine.HERE.parents[1]
BUILD = pathlib.Path(os.environ.get("BATON_TEST_BUILD", ROOT / "build"))
SKIP = 77
SECONDS = 2400
TARGETS = ["tests/conformance/test_transfer", "router/baton-router", "prefill-node/baton-prefill",
           "decode-node/baton-decode", "deploy/batonctl/batonctl"]


def build(directory):
    """Release binaries."""
    given = os.environ.get("BATON_RDMA_VM_BUILD")
    if given:
        return pathlib.Path(given)
    if not (directory / "build.ninja").exists():
        shutil.rmtree(directory, ignore_errors=True)
        machine.run("meson", "setup", directory, ROOT, "-Dbuildtype=release", "-Dwerror=false",
                    timeout=600)
    machine.run("ninja", "-C", directory, *TARGETS, timeout=1800)
    return directory


def write_script(share, binaries):
    """What init runs in each guest. Without the GID that we choose nothing would pass: UCX's own choice
    is the IPv4 one, which fails with this device."""
    script = share / "run.sh"
    ucx, load = os.environ.get("BATON_TEST_UCX"), ""
    if ucx:
        load = f"""export LD_LIBRARY_PATH={shlex.quote(os.path.abspath(ucx))}
ldd {binaries}/{TARGETS[0]} | grep -F "$LD_LIBRARY_PATH/libucp" || exit 1"""
    script.write_text(f"""
. {machine.HERE}/guard.sh
{load}
export PYTHONDONTWRITEBYTECODE=1
exec python3 {machine.HERE}/guest.py "$1" {binaries}
""", encoding="utf-8")
    return "/share/run.sh"


def show(share, guests):
    for guest in guests:
        print(f"---- console of guest {guest.node}\n{guest.console_text()[-1500:]}")
    for path in sorted(share.glob("*.log")):
        if not path.name.startswith("console"):
            print(f"---- {path.name}\n{path.read_text(errors='replace')[-6000:]}")


def run_pair(vmlinuz, initrd, binaries, share):
    guests = []
    try:
        script = write_script(share, binaries)
        for node in (1, 2):
            guests.append(machine.Guest(node, vmlinuz, initrd, share, script, first=node == 1))
        end = time.monotonic() + SECONDS
        while any(guest.result() is None for guest in guests):
            if time.monotonic() > end or any(guest.result() not in (None, 0) for guest in guests):
                break
            time.sleep(0.5)
        results = [guest.result() for guest in guests]
        if results != [0, 0]:
            show(share, guests)
            raise AssertionError(f"the guests ended with {results} (None: not in {SECONDS} s)")
        logs = [guest.text(f"node{guest.node}.log") for guest in guests]
        for log in logs:
            assert "guard: UCX offers rc_verbs on rxe0:1" in log, log
        assert "conformance passed" in logs[1] and "continuation equal" in logs[0], logs
        print("\n".join(logs))
    finally:
        for guest in guests:
            guest.stop()


def main():
    begin = time.monotonic()
    try:
        machine.check_host(guests=2)
        vmlinuz, initrd = machine.prepare(BUILD / "rdma-vm")
    except machine.Unavailable as why:
        print(f"skipped: {why}")
        return SKIP
    binaries = build(BUILD / "rdma-vm" / "release")
    print(f"set up in {time.monotonic() - begin:.0f} s", flush=True)
    share = pathlib.Path(tempfile.mkdtemp(prefix="baton-rdma-vm-"))
    try:
        run_pair(vmlinuz, initrd, binaries, share)
    except machine.Unavailable as why:
        print(f"skipped: {why}")
        return SKIP
    finally:
        shutil.rmtree(share, ignore_errors=True)
    print(f"{time.monotonic() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
