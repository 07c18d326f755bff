"""`python -m launch`, also installed as `sft-then-rl`: plan, run, resume and explain recipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from launch import interrupts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0 fine, 1 a stage failed, 2 a wrong recipe or argument, 3 stopped,
    130 interrupted)."""
    try:
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        from launch.commands.line import call

        code = call(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(interrupts.SAID, file=sys.stderr)
        return interrupts.INTERRUPTED
    except BrokenPipeError:  # `launch plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def console() -> None:
    """The process of `sft-then-rl` and `python -m launch`; code in the working directory can be imported by both."""
    interrupts.end_at_once()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    code = main()
    interrupts.ignore()
    sys.exit(code)


if __name__ == "__main__":
    console()
