from __future__ import annotations

import pytest

from common.errors import ConfigError
from launch.execution.outcomes import Stopped, classify, judge_log, traceback_digest


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("row 7"), "config"),
        (ValueError("Free memory on device (3.1/79 GiB) on startup is less than desired"), "fault"),
        (RuntimeError("x"), "fault"),
        (MemoryError(), "oom"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "oom"),
        (OSError(28, "No space left on device"), "disk"),
        (ValueError("IOError: No space left on device"), "disk"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk"),
        (RuntimeError("Error while serializing: IoError(Custom: os error 28)"), "disk"),
        (OSError(122, "Disk quota exceeded"), "disk"),
        (Stopped(), "stopped"),
        (SystemExit(1), "fault"),
    ],
)
def test_exceptions_fall_into_classes(error, kind):
    assert classify(error)[0] == kind


def test_the_cause_counts_when_it_was_memory():
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise RuntimeError("worker died") from error
    except RuntimeError as error:
        assert classify(error)[0] == "oom"


def test_messages_are_one_line():
    assert classify(ConfigError("a\n  b")) == ("config", "a b")
    assert classify(KeyError("x"))[1] == "KeyError: 'x'"


def test_our_error_stays_ours_inside_an_actor_and_around_it():
    from ray.exceptions import RayTaskError

    inner = ConfigError("data.files: row 7 has no answer")
    task = RayTaskError("work", "Traceback ...\ncommon.errors.ConfigError: data.files: row 7 has no answer", inner)
    assert classify(task.as_instanceof_cause()) == ("config", "data.files: row 7 has no answer")
    assert classify(task) == ("config", "data.files: row 7 has no answer")
    library = RayTaskError("work", "Traceback ...\nValueError: x", ValueError("x"))
    assert classify(library.as_instanceof_cause())[0] == "fault"
    try:
        raise RuntimeError("the worker failed") from inner
    except RuntimeError as error:
        assert classify(error) == ("config", "data.files: row 7 has no answer")


def test_an_actor_that_dies_while_it_is_made_still_says_our_error():
    from ray.exceptions import RayError

    class ActorDiedError(RayError):
        pass

    ActorDiedError.__module__ = "ray.exceptions"
    text = (
        "The actor died because of an error raised in its creation task, ray::Worker.__init__()\n"
        "  File 'x.py', line 3\ncommon.errors.ConfigError: model.eos=<x>: not a token"
    )
    assert classify(ActorDiedError(text)) == ("config", "model.eos=<x>: not a token")


def test_what_was_being_handled_is_not_the_cause():
    try:
        try:
            raise ConfigError("a guess that did not fit")
        except ConfigError:
            raise RuntimeError("the other way failed too")  # noqa: B904
    except RuntimeError as error:
        assert classify(error)[0] == "fault"


def test_a_hub_that_cannot_be_reached_names_the_way_to_fetch_before():
    from huggingface_hub.errors import LocalEntryNotFoundError

    kind, message = classify(LocalEntryNotFoundError("no network"))
    assert kind == "fault" and "python -m launch check <recipe> --prefetch" in message


def failure(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


def test_equal_tracebacks_have_equal_digests_whatever_the_numbers_in_them():
    def first():
        raise RuntimeError(f"process {counts.pop()} of .tmp-{counts.pop()} at 0x{counts.pop():x}")

    def second():
        raise RuntimeError("process 1 of .tmp-2 at 0x3")

    counts = [11, 12, 13, 14, 15, 16]
    one, two, other = (traceback_digest(failure(f)) for f in (first, first, second))
    assert one == two != other


RANKS = """\
(WorkerDict pid=77) loading
[rank1]: Traceback (most recent call last):
[rank1]:   File "/x/rank.py", line 3, in <module>
[rank1]:     main()
[rank1]: {error}
Traceback (most recent call last):
  File "/x/child.py", line 9, in _call
RuntimeError: an SFT process ended with status 1
"""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ("ValueError: tensor shapes differ", "fault", "ValueError: tensor shapes differ"),
        (
            "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left (os error 28)",
            "disk",
            "no space left on the disk (safetensors_rust.SafetensorError: Error while",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "oom", "torch.OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_the_log_says_what_a_process_below_the_child_died_of(tmp_path, error, kind, words):
    log = tmp_path / "attempt-1.log"
    log.write_text(RANKS.format(error=error))
    found = judge_log(log)
    assert found is not None and found[0] == kind and found[1].startswith(words)


def test_the_log_of_an_engine_names_the_first_error_behind_its_own_prefix(tmp_path):
    log = tmp_path / "attempt-1.log"
    prefix = "(EngineCore_DP0 pid=12) ERROR 11-27 01:02:03 [core.py:846] "
    lines = ["Traceback (most recent call last):", '  File "core.py", line 1, in run', "KeyError: 'layers.0'"]
    log.write_text("\n".join(prefix + line for line in lines) + "\nRuntimeError: Engine core initialization failed\n")
    assert judge_log(log) == ("fault", "KeyError: 'layers.0'")
    log.write_text("nothing went wrong\n")
    assert judge_log(log) is None and judge_log(tmp_path / "absent") is None
