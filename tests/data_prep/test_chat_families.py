# ruff: noqa: RUF001
"""Real families' chat templates: every turn's supervised text, and the prompt in front of it, token for token.

The templates are those that `trl` ships. `python tests/data_prep/test_chat_families.py` prints the table of
docs/data.md.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.chats import Renderer
from common.errors import ConfigError
from data_prep.chats import render
from evaluation.generation.prompts import Prompter

ROOT = Path(__file__).resolve().parents[2]
VISION = ("idefics3", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl", "lfm2_2_5_vl")
# What ends a turn, by the beginning of a template's name: the last of a chat, an earlier one, one that calls a tool.
ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "gemma4": ("<turn|>", "<turn|>", "<|tool_response>"),
    "diffusion_gemma": ("<turn|>", "<turn|>", "<|tool_response>"),
    "gemma": ("<end_of_turn>",),
    "glm4moe": ("<|user|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|end|>", "<|call|>"),
    "llama3": ("<|eot_id|>",),
    "muse": ("<|eot|>",),
    "phi3": ("<|end|>",),
    "": ("<|im_end|>",),
}
# The tokenizer's own EOS where it is another token than the one that ends a turn.
OTHER_EOS = {"gemma": "<eos>", "gemma4": "<eos>", "phi3": "<|endoftext|>", "glm4moe": "<|endoftext|>"}
# Chats that a family refuses or cannot train on: the reason in the one line that says so.
REFUSED = {
    ("cohere", "tools"): "roles must alternate",
    ("cohere2", "tools"): "roles must alternate",
    ("gemma", "tools"): "roles must alternate",
    ("gemma", "system"): "System role not supported",
    ("gemma3", "tools"): "roles must alternate",
    ("deepseek_r1_distill", "tools"): "ends it with nothing",
    ("lfm2", "tools"): "leaves out its tool_calls",
    ("llama3", "tools"): "leaves out its tool_calls",
    ("phi3", "tools"): "leaves out its tool_calls",
    ("phi3_5", "tools"): "leaves out its tool_calls",
    **{("glm4moe", chat): "ends it with nothing" for chat in ("single", "multi", "system", "thinking", "tools")},
}
GLM_TRAINS = "glm4moe_training"  # TRL's variant ends turns, the family's own template does not
QUESTIONS, ANSWERS = ("What is 2+2?", "And 3+3?"), ("It is four.", "It is six.")
THOUGHTS = ("two and two", "three and three")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "its name"}},
            "required": ["city"],
        },
    },
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CHATS = {
    "single": [user(QUESTIONS[0]), assistant(ANSWERS[0])],
    "multi": [user(QUESTIONS[0]), assistant(ANSWERS[0]), user(QUESTIONS[1]), assistant(ANSWERS[1])],
    "system": [{"role": "system", "content": "Be brief."}, user(QUESTIONS[0]), assistant(ANSWERS[0])],
    "thinking": [
        user(QUESTIONS[0]),
        assistant(ANSWERS[0], reasoning_content=THOUGHTS[0]),
        user(QUESTIONS[1]),
        assistant(ANSWERS[1], reasoning_content=THOUGHTS[1]),
    ],
    "tools": [
        user("How is the weather in Rome?"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "24 degrees"},
        assistant("It is sunny."),
    ],
}


def directory() -> Path | None:
    spec = importlib.util.find_spec("trl")
    return Path(spec.origin).parent / "chat_templates" if spec and spec.origin else None


def templates() -> dict[str, Path]:
    folder = directory()
    files = sorted(folder.glob("*.jinja")) if folder else []
    return {file.stem: file for file in files if not file.stem.startswith(VISION)}


TEMPLATES = templates()
needs_trl = pytest.mark.skipif(not TEMPLATES, reason="pip install trl==1.16.0 (dev extra) to run")


def family(name: str, table: dict[str, Any]) -> Any:
    keys = [key for key in table if name.startswith(key)]
    return table[max(keys, key=len)] if keys else None


def tokenizer_of(name: str, template: str):
    """A tokenizer with a token for each byte and for each marker of the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AddedToken, PreTrainedTokenizerFast

    marker = r"<\|[A-Za-z0-9_]+\|>|<｜[^｜]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_turn>|\[gMASK\]|<sop>"
    ends = family(name, ENDS)
    eos = family(name, OTHER_EOS) or ends[0]
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token="<bos>", pad_token="<pad>")
    special = sorted({*re.findall(marker, template), *ends})
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special], special_tokens=True)
    plain = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers_of_families():
    return {name: tokenizer_of(name, file.read_text(encoding="utf-8")) for name, file in TEMPLATES.items()}


def refusal(name: str, chat: str) -> str | None:
    return None if name == GLM_TRAINS else REFUSED.get((name.removesuffix("_training"), chat))


def spans(rows) -> list[tuple[list[int], list[int]]]:
    """Of every supervised span the ids before it and its own, in the order of the rows."""
    found = []
    for row in rows:
        assert len(row.ids) == len(row.supervised) and set(row.supervised) <= {0, 1}
        place = 0
        while 1 in row.supervised[place:]:
            begin = place + row.supervised[place:].index(1)
            end = begin + (row.supervised[begin:].index(0) if 0 in row.supervised[begin:] else len(row.ids) - begin)
            found.append((row.ids[:begin], row.ids[begin:end]))
            place = end
    return found


@needs_trl
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_is_what_the_model_would_generate(tokenizers_of_families, name, chat):
    tokenizer, messages = tokenizers_of_families[name], CHATS[chat]
    tools = [TOOL] if chat == "tools" else None
    reason = refusal(name, chat)
    if reason:
        with pytest.raises(ConfigError, match=reason) as error:
            render(tokenizer, messages, tools=tools)
        assert "\n" not in str(error.value) and str(error.value).startswith("turn ")
        return
    rows = render(tokenizer, messages, tools=tools)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    found = spans(rows)
    assert len(found) == len(turns)
    ends = family(name, ENDS)
    said = [message["content"] for message in messages if message["role"] != "assistant"]
    evaluation = Renderer(tokenizer)
    for (before, generated), index in zip(found, turns, strict=True):
        _, prompt = evaluation.prompt(messages[:index], tools)
        # Marks of the template's own may leave out the beginning of a turn.
        assert before == prompt or (name.endswith("_training") and before[: len(prompt)] == prompt)
        text = tokenizer.decode(generated)
        if messages[index].get("tool_calls"):
            assert "weather" in text and "Rome" in text
            assert text.endswith((ends[-1], ends[0]))
        else:
            assert text.count(messages[index]["content"]) == 1
            last = ends[0] if index == len(messages) - 1 else (ends[:2])[-1]
            # A row of its own ends as the chat's last turn does.
            assert text.endswith((last, ends[0])) and text.count(last) <= 1 + text.count("<|channel|>")
        assert not any(other in text for other in said)
        if chat == "thinking" and index == turns[-1]:
            assert THOUGHTS[1] in text


# Chats on which families differ: each is trained on as it is, or refused in a line that names the turn.
OTHER_CHATS = {
    "developer": [{"role": "developer", "content": "Be brief."}, user(QUESTIONS[0]), assistant(ANSWERS[0])],
    "system within": [user(QUESTIONS[0]), {"role": "system", "content": "Be brief."}, assistant(ANSWERS[0])],
    "two questions": [user(QUESTIONS[0]), user(QUESTIONS[1]), assistant(ANSWERS[0])],
    "two answers": [user(QUESTIONS[0]), assistant(ANSWERS[0]), assistant(ANSWERS[1])],
    "weights": [
        user(QUESTIONS[0]),
        assistant("A draft.", weight=0),
        user(QUESTIONS[1]),
        assistant(ANSWERS[1], weight=1),
    ],
    "not the last": [user(QUESTIONS[0]), assistant(ANSWERS[0]), user(QUESTIONS[1]), assistant("A draft.", train=False)],
    "arguments as text": [
        user("How is the weather in Rome?"),
        assistant(
            "", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
        ),
    ],
}


@needs_trl
@pytest.mark.parametrize("chat", OTHER_CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_other_chats_are_trained_on_whole_or_refused(tokenizers_of_families, name, chat):
    tokenizer, messages = tokenizers_of_families[name], OTHER_CHATS[chat]
    try:
        rows = render(tokenizer, messages, tools=[TOOL] if chat == "arguments as text" else None)
    except ConfigError as error:
        assert re.match(r"turn \d \(\w+\): the chat template \S.*", str(error)) and "\n" not in str(error)
        return
    trained = [m for m in messages if m["role"] == "assistant" and m.get("weight", 1) and m.get("train", True)]
    found = spans(rows)
    assert len(found) == len(trained)
    for (_, generated), turn in zip(found, trained, strict=True):
        text = tokenizer.decode(generated)
        assert turn["content"] in text and ("tool_calls" not in turn or ("weather" in text and "Rome" in text))
        assert not any(m["content"] in text for m in messages if m is not turn and m["content"])
    whole = "".join(tokenizer.decode(row.ids) for row in rows)
    if chat == "developer":
        assert "Be brief." in whole


@needs_trl
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_calls_arguments_are_the_same_as_text_and_as_an_object(tokenizers_of_families, name):
    """Some families print an object, some want its text: what the row has does not decide."""
    tokenizer, messages = tokenizers_of_families[name], OTHER_CHATS["arguments as text"]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    found = []
    for chat in (messages, [messages[0], assistant("", tool_calls=[call])]):
        try:
            found.append([(row.ids, row.supervised) for row in render(tokenizer, chat, tools=[TOOL])])
        except ConfigError as error:
            found.append(str(error))
    assert found[0] == found[1]


@needs_trl
@pytest.mark.parametrize("name", TEMPLATES)
def test_rl_and_evaluation_send_the_prompts_of_the_rows(tokenizers_of_families, tmp_path, name):
    """What verl's own loop hands to the engine, and what evaluation does, of every turn of every chat."""
    tokenizer = tokenizers_of_families[name]
    tokenizer.save_pretrained(tmp_path)
    prompter = Prompter(tmp_path)
    for chat, messages in CHATS.items():
        if refusal(name, chat):
            continue
        tools = [TOOL] if chat == "tools" else None
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        for (before, _), index in zip(spans(render(tokenizer, messages, tools=tools)), turns, strict=True):
            evaluated = list(prompter.prompt(messages[:index], tools=tools).ids)
            # Marks of the template's own may leave out the beginning of a turn.
            assert evaluated == (before[: len(evaluated)] if name.endswith("_training") else before)
            assert evaluated == sent_by_rl(tokenizer, messages[:index], tools)


def sent_by_rl(tokenizer, messages, tools=None) -> list[int]:
    """The ids that a rollout of one prompt gives the engine."""
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap
    from verl.utils.dataset.rl_dataset import RLHFDataset
    from verl.workers.rollout.replica import TokenOutput

    from rl_stage.agent_loop import ScoredSingleTurnAgentLoop

    given = []

    class Engine:
        async def generate(self, *, prompt_ids, **_):
            given.append(prompt_ids)
            return TokenOutput(token_ids=[5, 6])

    class Unscored(ScoredSingleTurnAgentLoop):
        async def _score(self, output, row):
            assert output.prompt_ids == given[0] and output.response_ids == [5, 6]
            return {"reward_score": 0.0, "reward_extra_info": {}}

    rollout = {"prompt_length": 1, "response_length": 8, "full_determinism": False}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})
    data = OmegaConf.create({"apply_chat_template_kwargs": {}})

    async def rollout_of_one() -> None:
        loop: Any = Unscored(
            trainer_config=DictConfigWrap(config),
            server_manager=Engine(),
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(data),
        )
        # A Parquet file gives every message every field.
        shown = {} if tools is None else {"tools": json.dumps(tools)}
        await loop.run({}, raw_prompt=[{"reasoning_content": None, **message} for message in messages], **shown)

    asyncio.run(rollout_of_one())
    return given[0]


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma3", "qwen2_5"])
def test_lp_sft_begins_at_distance_zero_from_the_base(world, tmp_path, name):
    """Cached rows lie on the tokens of the training rows: LP-SFT's KL term of the model that made them is zero."""
    import torch
    from transformers import AutoModelForCausalLM

    import sft_objectives
    from data_prep.reference.codec import decode
    from sft_objectives import Reference

    tokenizer = tokenizer_of(name, TEMPLATES[name].read_text(encoding="utf-8"))
    model = world.save_model(tmp_path / "model", 0, tokenizer, max_position_embeddings=2048)
    (tmp_path / "data").mkdir()
    world.write_chats(tmp_path / "data", [CHATS[chat] for chat in ("single", "multi", "system", "thinking")])
    own = type(world)(model, tmp_path / "data", tokenizer)
    length = {"max_length": 2048, "tokens_per_batch": 4096}
    cache = own.produce(tmp_path, **length)
    fields = ["support_ids", "support_logprobs", "ceil_n1"]
    rows = own.dataset({"base": {"path": str(cache.directory), "fields": fields, "top_k": None}}, **length)
    assert len(rows) >= 4
    network, distances = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), []
    for row in (rows[index] for index in range(len(rows))):
        ids, logprobs = decode(row["reference_base_packed"], 16)
        reference = Reference(support_ids=ids, support_logprobs=logprobs, ceil_n1=row["reference_base_ceil_n1"])
        labels, mask = row["input_ids"].roll(-1), row["loss_mask"].roll(-1)
        with torch.no_grad():
            logits = network(input_ids=row["input_ids"].unsqueeze(0)).logits[0]
            lp, sft = (
                sft_objectives.token_losses(sft_objectives.load(kind), logits, labels, mask=mask, reference=reference)
                for kind in ("lp_sft", "sft")
            )
        distances.append(abs(float((lp - sft).sum() / mask.sum())))
    print(f"{name}: {len(distances)} rows, LP-SFT's KL at most {max(distances):.1e}")
    assert max(distances) < 1e-5


@needs_trl
def test_at_least_95_percent_of_what_families_take_is_right(tokenizers_of_families):
    """Of the chats at which a template does not raise itself and whose turns it ends."""
    found = outcomes(tokenizers_of_families)
    cells = {(name, chat): outcome for name, chats in found.items() for chat, outcome in chats.items()}
    taken = {
        cell: outcome
        for cell, outcome in cells.items()
        if not raises(tokenizers_of_families[cell[0]], cell[1]) and not outcome.endswith("(c)")
    }
    refused = [cell for cell, outcome in taken.items() if outcome.startswith("refused")]
    assert len(TEMPLATES) > 60 and len(taken) > 280
    assert 1 - len(refused) / len(taken) >= 0.95
    assert all(refusal(*cell) for cell, outcome in cells.items() if outcome.startswith("refused"))


@needs_trl
def test_the_page_shows_the_table():
    wanted = table()
    assert wanted in (ROOT / "docs" / "data.md").read_text(), "run: python tests/data_prep/test_chat_families.py"


def raises(tokenizer, chat) -> bool:
    """Whether the template itself raises for a chat."""
    tools = [TOOL] if chat == "tools" else None
    try:
        tokenizer.apply_chat_template(CHATS[chat], tools=tools, tokenize=False)
    except Exception as error:
        return type(error).__name__ == "TemplateError"
    return False


def outcomes(tokenizers) -> dict[str, dict[str, str]]:
    """template -> chat -> what becomes of it."""
    found: dict[str, dict[str, str]] = {}
    for name, tokenizer in tokenizers.items():
        for chat, messages in CHATS.items():
            try:
                rows = len(render(tokenizer, messages, tools=[TOOL] if chat == "tools" else None))
                outcome = "1 row" if rows == 1 else f"{rows} rows"
            except ConfigError as error:
                outcome = f"refused{FOOTNOTES[next(reason for reason in FOOTNOTES if reason in str(error))]}"
            found.setdefault(name, {})[chat] = outcome
    return found


FOOTNOTES = {
    "refuses it": " (a)",
    "leaves out its tool_calls": " (b)",
    "ends it with nothing": " (c)",
}


def table() -> str:
    """Templates whose outcomes are equal share a line; TRL's training variants are left out."""
    names = [name for name in TEMPLATES if not name.endswith("_training")]
    found = outcomes({name: tokenizer_of(name, TEMPLATES[name].read_text(encoding="utf-8")) for name in names})
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, cells in found.items():
        groups.setdefault(tuple(cells.values()), []).append(name)
    lines = [f"| template | {' | '.join(CHATS)} |", f"|{' --- |' * (len(CHATS) + 1)}"]
    lines += [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in groups.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
