"""What this machine is: the description that stands beside every measured figure."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from importlib import metadata
from pathlib import Path

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def usable_cores() -> int:
    """The cores that this process may use: its affinity, and the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def at_most_cores(threads: int | None) -> int | None:
    """`threads`, but not more than can run at once: more would only wait for each other."""
    return None if threads is None else min(threads, usable_cores())


def resident_memory() -> int:
    """Bytes of memory that this process occupies; 0 where the system does not say (not Linux)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def give_back_memory() -> None:
    """Have the C library return large arrays to the system as soon as they are freed (glibc).

    It otherwise keeps them for the next one, in one heap per thread.
    """
    # The last two are glibc's own, which `keep_memory` changes.
    _mallopt({_M_MMAP_THRESHOLD: 1 << 20, _M_TRIM_THRESHOLD: 1 << 17, _M_MMAP_MAX: 1 << 16})


def keep_memory() -> None:
    """Have the C library keep large arrays that are freed, for the next ones (glibc).

    Each step of a training makes the same ones; pages from the system cost time each time.
    """
    _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 1 << 26})


def _mallopt(settings: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in settings.items():
            mallopt(name, value)


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, operating system, Python."""
    model = platform.processor() or platform.machine()
    isa = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = line.split(":", 1)[1].split()
                known = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
                isa = " ".join(flag for flag in known if flag in flags)
                break
    memory = "unknown"
    with contextlib.suppress(OSError, ValueError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = f"{size / 2**30:.0f} GiB"
    return {
        "processor": model,
        "instruction sets": isa,
        "cores": str(usable_cores()),
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
