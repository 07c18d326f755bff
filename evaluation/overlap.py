"""Whether a model was trained on the problems it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from common.errors import ConfigError
from common.parquet import streamed
from common.problems import asked_keys

BATCH_ROWS = 4096
# Input of a measure stage -> its file, the column that holds the chat, and what to call it.
TRAINED_ON = {
    "trained_on_sft": ("sft_train.parquet", "messages", "SFT chats"),
    "trained_on_rl": ("rl_train.parquet", "prompt", "RL prompts"),
}


def check_trained_on(
    benchmark: str, keys: Mapping[str, str], inputs: Mapping[str, Path], beat: Callable[[], None]
) -> None:
    """Raises ConfigError, naming benchmark and problem, where a problem is among the rows that the model saw.

    keys: `problem_key` in hex -> id of a problem. inputs: of `TRAINED_ON`, those that are there, prepared data.
    """
    for name, (file, column, what) in TRAINED_ON.items():
        if name not in inputs:
            continue
        path = inputs[name] / file
        if not path.is_file():
            raise ConfigError(f"{name}: {path}: no such file; give prepared data")
        row = 0
        trained = streamed(path)
        columns = [column, *({"tools"} & set(trained.schema_arrow.names))]
        for batch in trained.iter_batches(BATCH_ROWS, columns=columns):
            for given in batch.to_pylist():
                asked = asked_keys(given[column], given.get("tools"))
                found = next((keys[key.hex()] for key in sorted(asked) if key.hex() in keys), None)
                if found is not None:
                    raise ConfigError(
                        f"eval.benchmarks: {benchmark!r}: problem {found!r} is row {row} of the {what} the model was "
                        f"trained on ({path}); remove it from one of them"
                    )
                row += 1
            beat()
