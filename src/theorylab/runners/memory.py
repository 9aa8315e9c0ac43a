"""How much memory a study needed: the peak resident size of its process while it ran."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> bool:
    """Give freed memory back and set the process's high-water mark to what it holds now; False where the system does not allow it.

    Linux resets the mark when "5" is written to ``/proc/self/clear_refs``. Elsewhere a process has one mark for its whole life, so
    that only a process of its own gives a study an honest peak.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform != "win32" else None
    if trim is not None:
        trim(0)  # else memory that the last study freed would be counted for this one
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The process's peak resident size since `reset_peak`, or since its start where that returned False; 0 where it is not known."""
    try:
        return int(re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
