"""Virtual machines with a software RDMA device, made of Debian packages: kernel, QEMU, busybox.

A guest's root is the host's own `/` (read-only, with a layer in memory on top), so the host's tools
and the binaries just built run inside. Two guests share a virtual wire; the host's network is not
touched. The machine is emulated: KVM is not assumed to work where /dev/kvm exists.
"""
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
MODULES = ["virtio_pci", "virtio_net", "9pnet_virtio", "9p", "overlay", "crc32_generic",
           "crc32-pclmul", "rdma_rxe", "rdma_ucm", "ib_uverbs", "ib_umad"]
MEMORY_MB = 1024
ENVIRONMENT = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C"}


class Unavailable(Exception):
    """Why this machine can't run the guests."""


def run(*command, cwd=None, timeout=300):
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=ENVIRONMENT, timeout=timeout,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def check_host(guests):
    tools = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio",
             "modprobe": "kmod", "depmod": "kmod", "rdma": "iproute2", "dpkg-deb": "dpkg",
             "apt-get": "apt", "ibv_devinfo": "ibverbs-utils", "ucx_info": "ucx-utils"}
    for tool, package in tools.items():
        if not shutil.which(tool, path=ENVIRONMENT["PATH"]):
            raise Unavailable(f"{tool} is missing (Debian package {package})")
    if os.uname().machine != "x86_64":
        raise Unavailable(f"guests are x86_64, this is {os.uname().machine}")
    with open("/proc/meminfo", encoding="ascii") as file:
        free_mb = int(re.search(r"MemAvailable:\s+(\d+)", file.read()).group(1)) // 1024
    if free_mb < guests * (MEMORY_MB + 200):
        raise Unavailable(f"{free_mb} MB of memory are free, {guests} guests need "
                          f"{guests * (MEMORY_MB + 200)}")


def fetch_kernel(cache):
    """Debian's kernel package, unpacked and not installed: (vmlinuz, version, root of modules)."""
    try:
        depends = run("apt-cache", "depends", "linux-image-amd64")
        package = re.search(r"Depends: (linux-image-[0-9]\S+)", depends).group(1)
        root = cache / package
        if not (root / "complete").exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            run("apt-get", "-o", "APT::Sandbox::User=", "download", package, cwd=root)
            deb = next(root.glob("*.deb"))
            run("dpkg-deb", "-x", deb, root)
            deb.unlink()
            version = package.removeprefix("linux-image-")
            run("depmod", "-b", root, version)
            (root / "complete").touch()
    except (RuntimeError, AttributeError, StopIteration, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"no kernel package to be had: {error}") from error
    version = package.removeprefix("linux-image-")
    return root / "boot" / f"vmlinuz-{version}", version, root


def module_files(root, version):
    """Paths in the order of loading, each after what it depends on."""
    files = []
    for module in MODULES:
        for line in run("modprobe", "-d", root, "-S", version, "--show-depends",
                        module).splitlines():
            if line.startswith("insmod "):
                path = line.split()[1]
                if path not in files:
                    files.append(path)
    return files


def build_initrd(cache, root, version):
    tree = cache / "initrd"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    shutil.copy(shutil.which("busybox", path=ENVIRONMENT["PATH"]), tree / "bin/busybox")
    shutil.copy(HERE / "init", tree / "init")
    (tree / "init").chmod(0o755)
    names = []
    for path in module_files(root, version):
        names.append(os.path.basename(path))
        shutil.copy(path, tree / "modules" / names[-1])
    (tree / "modules/order").write_text("".join(name + "\n" for name in names), encoding="ascii")
    image = cache / "initrd.cpio"
    listing = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
    with open(image, "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=tree, stdout=out,
                       input=listing.encode(), env=ENVIRONMENT, check=True)
    return image


def prepare(cache):
    """Kernel and initrd; the kernel is kept in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        vmlinuz, version, root = fetch_kernel(cache)
        return vmlinuz, build_initrd(cache, root, version)


class Guest:
    """Powers on when made. `share`: a directory that all guests and the host write to. `script`: run
    by sh inside, with the node's number, which is also the end of its address 10.77.0.NODE."""

    def __init__(self, node, vmlinuz, initrd, share, script, first):
        self.node, self.share = node, share
        wire = share / "wire"
        self.console = open(share / f"console{node}.log", "wb")
        nine = "security_model=none,multidevs=remap"
        command = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35",
            "-smp", "2", "-m", str(MEMORY_MB), "-nodefaults", "-no-reboot", "-nographic",
            "-serial", "stdio", "-kernel", str(vmlinuz), "-initrd", str(initrd), "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr "
            f"baton.node={node} baton.run={script}",
            "-virtfs", f"local,path=/,mount_tag=host,readonly=on,{nine}",
            "-virtfs", f"local,path={share},mount_tag=share,{nine}",
            "-netdev", f"stream,id=net,server={'on' if first else 'off'},addr.type=unix,"
                       f"addr.path={wire}",
            "-device", f"virtio-net-pci,netdev=net,mac=52:54:00:77:00:{node:02x},romfile="]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.console,
                                        stderr=subprocess.STDOUT, env=ENVIRONMENT,
                                        preexec_fn=die_with_parent)
        if first:
            end = time.monotonic() + 120
            while not wire.exists():
                if self.process.poll() is not None or time.monotonic() > end:
                    raise Unavailable(f"qemu does not start: {self.console_text()}")
                time.sleep(0.05)

    def text(self, name):
        try:
            return (self.share / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def console_text(self):
        return self.text(f"console{self.node}.log")

    def result(self):
        """The script's exit code; None while it runs, -1 when the guest ended without one."""
        over = self.process.poll() is not None
        code = self.text(f"node{self.node}.exit").strip()
        return int(code) if code else -1 if over else None

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.console.close()


def die_with_parent():
    import ctypes
    import signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
