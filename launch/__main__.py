"""`python -m launch`, also installed as `sft-then-rl`: plan, run, resume and explain recipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0 fine, 1 a stage failed, 2 a wrong recipe or argument, 3 stopped,
    130 interrupted)."""
    try:
        # imports take a second, in which a user may think better of it
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        from launch.commands.line import call

        code = call(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `launch plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def console() -> None:
    """The entry point of `sft-then-rl`: as `python -m launch`, code in the working directory can be imported."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    leave(main())


def leave(code: int) -> None:
    """Ends the process; a second Ctrl-C while it is being taken down changes nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
