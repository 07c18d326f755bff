"""The random model, its tokenizer and its chats that items 4, 5 and 7 run on."""

from __future__ import annotations

import random
from pathlib import Path

from launch.gpu_check.context import Context

SIZES = {  # of Qwen2.5-0.5B
    "vocabulary": 151_936,
    "hidden": 896,
    "layers": 24,
    "heads": 14,
    "key_value_heads": 2,
    "intermediate_size": 4864,
    "max_position_embeddings": 4096,
}
TINY = {
    "vocabulary": 320,
    "hidden": 64,
    "layers": 2,
    "heads": 2,
    "key_value_heads": 1,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}


def random_model_directory(context: Context) -> Path:
    """A Qwen2 model with random weights and a byte tokenizer, made once; bfloat16, on a CPU float32."""
    import torch

    from common.tiny_models import byte_tokenizer, ends_of, random_model, save

    directory = context.scratch("model") / "final"
    if not (directory / "config.json").is_file():
        sizes = TINY if context.tiny else SIZES
        tokenizer = byte_tokenizer(sizes["max_position_embeddings"])
        given = {name: value for name, value in sizes.items() if name != "vocabulary"}
        with torch.device(context.device):
            model = random_model("Qwen2", sizes["vocabulary"], **given, tie_word_embeddings=True, **ends_of(tokenizer))
        dtype = torch.float32 if context.device == "cpu" else torch.bfloat16
        half_made = directory.with_name("half_made")
        save(half_made, torch.nn.Module.to(model, "cpu", dtype), tokenizer)  # type: ignore[arg-type]
        half_made.replace(directory)
    return directory


def write_chats(directory: Path, count: int, longest: int) -> int:
    """Chats of 64 to `longest` bytes as a `prepare` artifact: `count` for training, 8 held out. Returns their bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    rng, total = random.Random(0), 0
    for name, rows in (("sft_train", count), ("sft_val", 8)):
        chats = []
        for index in range(rows):
            answer = "".join(rng.choice("0123456789 ") for _ in range(rng.randrange(32, longest - 64)))
            turns = [{"role": "user", "content": f"Count to {index}."}, {"role": "assistant", "content": answer}]
            chats.append({"id": f"{name}-{index}", "messages": turns})
            total += len(answer) * (name == "sft_train")
        pq.write_table(pa.Table.from_pylist(chats), directory / f"{name}.parquet")
    return total
