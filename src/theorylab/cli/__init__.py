"""The command line: ``theorylab syllabus | run | plan | show | config | measure``.

Everything beyond the parser is imported by the command that needs it, so that ``--help`` costs no numpy and ``syllabus`` no torch.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from theorylab.cli.options import parse


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; ``args`` are those of the process where None."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show λ shows ?
    command = parse(sys.argv[1:] if args is None else args)
    from theorylab.cli.commands import DO, complain
    from theorylab.course.syllabus import SyllabusError
    from theorylab.runners.selection import UsageError

    try:
        return DO[type(command)](command)
    except (UsageError, SyllabusError) as error:
        return complain(str(error), 2)
    except KeyboardInterrupt:
        return complain("stopped.", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
