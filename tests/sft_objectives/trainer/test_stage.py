"""The sft stage on the real stack: verl's trainer in its own processes, killed and resumed, and what it exports."""

import json
import time
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sft_objectives.trainer import stage
from sft_objectives.trainer.config import verl_config

TIMINGS = "timings.jsonl"


class Killed(Exception):
    """Raised by `report`; the stage then kills its processes with SIGKILL."""


def run(settings, inputs, root: Path, *, kill_after: int | None = None) -> Path:
    """One attempt; the output directory. `kill_after`: kill the processes when this many steps are done."""
    output = root / f"output_{time.monotonic_ns()}"
    output.mkdir(parents=True)

    def report(done, total, **metrics):
        if kill_after is not None and done >= kill_after:
            raise Killed

    stage.run(settings, inputs, output, root / "scratch", report)
    return output


def payload(output: Path) -> dict[str, bytes]:
    """Every file but the timings."""
    files = {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}
    return {name: content for name, content in files.items() if name != TIMINGS}


def curve(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()]


def cross_entropy(model_directory: Path, world) -> float:
    """Mean loss over the supervised tokens of the held-out chats, from the exported model alone."""
    import pyarrow.parquet as pq
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    total, count = 0.0, 0
    for chat in pq.read_table(world["data"] / "sft_val.parquet").column("messages").to_pylist():
        ids, mask = [], []
        for index, message in enumerate(chat):
            turn = tokenizer.apply_chat_template(chat[: index + 1], tokenize=True, return_dict=True)["input_ids"][
                len(ids) :
            ]
            header = len(tokenizer("<|im_start|>assistant\n")["input_ids"])
            answer = len(turn) - header - 1 if message["role"] == "assistant" else 0  # up to <|im_end|>, no newline
            ids, mask = ids + turn, mask + ([0] * header + [1] * answer + [0] if answer else [0] * len(turn))
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses = -log_p[:-1].gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
        total += (losses * torch.tensor(mask[1:])).sum().item()
        count += sum(mask[1:])
    return total / count


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_killed_and_resumed_gives_the_same_bytes(tiny_world, settings_of, tmp_path):
    settings = settings_of(
        objective={"name": "psft", "inner_updates": 4},
        sft__steps=9,
        sft__save_every=2,
        sft__keep_checkpoints=2,
        sft__validate_every=2,
        sft__publish_steps=[3],
        sft__regularizer={"name": "l2_to_init", "weight": 0.1},
    )
    undisturbed = run(settings, tiny_world, tmp_path / "a")
    for kill_after in (5, 7):
        with pytest.raises(Killed):
            run(settings, tiny_world, tmp_path / "b", kill_after=kill_after)
    checkpoints = tmp_path / "b" / "scratch" / "checkpoints"
    # 24 chats in batches of 8: step 6 is the end of an epoch, after which verl would skip the next one
    assert {path.name for path in checkpoints.glob("global_step_*")} >= {"global_step_4", "global_step_6"}
    resumed = run(settings, tiny_world, tmp_path / "b")
    assert payload(resumed) == payload(undisturbed)

    rows = curve(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 4, 6, 8, 9]
    assert rows[0]["penalty"] == 0 < rows[-1]["penalty"]
    steps = json.loads((undisturbed / "checkpoints.json").read_text())
    best = min((row for row in rows if "val_loss" in row), key=lambda row: row["val_loss"])["step"]
    assert steps == {"final": 9, "best": best, "steps": sorted({3, 9, best})}

    newest = max(checkpoints.glob("global_step_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    file = next(newest.glob("model_*.pt"))
    file.write_bytes(file.read_bytes()[:-1])
    assert payload(run(settings, tiny_world, tmp_path / "b")) == payload(undisturbed)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_finished_training_does_not_train_again(tiny_world, settings_of, tmp_path):
    first = run(settings_of(sft__steps=4, sft__schedule="constant", sft__save_every=2), tiny_world, tmp_path)
    # a checkpoint of the last step, as verl itself writes one
    again = run(settings_of(sft__steps=2, sft__schedule="constant", sft__save_every=2), tiny_world, tmp_path)
    assert [row["step"] for row in curve(again)] == [1, 2]
    assert json.loads((again / "checkpoints.json").read_text())["final"] == 2
    assert curve(again)[0] == curve(first)[0]


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_ranks_padding_and_micro_batches_give_the_same_curve(tiny_world, settings_of, tmp_path):
    one = run(settings_of(), tiny_world, tmp_path / "one")
    changes = {"sft__processes": 2, "sft__packed": False, "sft__dynamic_batch": False, "sft__micro_batch_size": 2}
    two = run(settings_of(**changes), tiny_world, tmp_path / "two")
    assert len(curve(one)) == len(curve(two)) == 6
    for left, right in zip(curve(one), curve(two), strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], rel=2e-5, abs=1e-6), name
    for output in (one, two):
        measured = cross_entropy(output / "checkpoints" / "step_6", tiny_world)
        assert measured == pytest.approx(curve(output)[-1]["val_loss"], abs=1e-5)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_lora_is_merged_into_the_export(tiny_world, settings_of, tmp_path):
    settings = settings_of(sft__lora={"rank": 4, "alpha": 8, "target_modules": "all-linear"}, objective={"name": "dft"})
    inputs = {**tiny_world, "model": tiny_world["untied"]}
    output = run(settings, inputs, tmp_path)
    exported = output / "checkpoints" / "step_6"
    assert cross_entropy(exported, tiny_world) == pytest.approx(curve(output)[-1]["val_loss"], abs=1e-5)
    assert not list(exported.glob("adapter*"))
    before, after = cross_entropy(inputs["model"], tiny_world), curve(output)[-1]["val_loss"]
    assert abs(after - before) > 1e-3


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_cached_base_is_aligned_with_the_student(tiny_world, settings_of, tmp_path):
    """LP-SFT of the base itself: its KL term is 0 at the first step, and positive later."""
    import data_prep.reference.stage

    settings = settings_of(objective={"name": "lp_sft"}, sft__metrics={"kl_from_base": True})
    cache = SimpleNamespace(
        cache=settings.cache.model_copy(update={"encoding": "lossless", "sample_sequences": 2}),
        data=settings.data,
        model=settings.model,
        platform=settings.platform,
        role="base",
    )
    directory = tmp_path / "cache"
    directory.mkdir()
    inputs = {"model": tiny_world["model"], "data": tiny_world["data"]}
    (tmp_path / "cache_scratch").mkdir()
    data_prep.reference.stage.run(cache, inputs, directory, tmp_path / "cache_scratch", lambda *_, **__: None)
    rows = curve(run(settings, {**inputs, "base_cache": directory}, tmp_path))
    assert rows[0]["loss"] == pytest.approx(rows[0]["cross_entropy"], abs=1e-5)
    assert rows[0]["kl_from_base"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["loss"] > rows[-1]["cross_entropy"] + 1e-4
    assert rows[-1]["kl_from_base"] > 1e-4
    assert 0 <= rows[-1]["empty_set"] <= 1


@pytest.mark.e2e
def test_bad_data_is_refused_with_one_line(tiny_world, settings_of, tmp_path):
    with pytest.raises(ValueError, match=r"chats are fewer than one batch; set sft\.batch_size to at most 24"):
        run(settings_of(sft__batch_size=32), tiny_world, tmp_path)


# The whole trainer in twelve runs: every pair of padding, micro-batching, ranks, interruption and objective occurs. The
# objectives keep state, train a low-rank update, or couple the batch; all runs of one objective give one curve.
LORA = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}
OBJECTIVES = {
    "ema": {"objective": {"name": "talr", "source": "ema", "momentum": 0.5}},
    "lora": {"objective": {"name": "psft", "inner_updates": 2}, "sft__lora": LORA},
    "batch": {"objective": {"name": "token_selection", "fraction": 0.6}},
}
FACTORS = {"packed": (True, False), "dynamic": (True, False), "ranks": (1, 2), "resumed": (False, True)}
# the first run of an objective is what the others are compared with
RUNS = {
    "ema": [(True, True, 1, False), (False, False, 2, False), (True, False, 1, True), (False, True, 2, True)],
    "lora": [(True, True, 1, False), (False, True, 2, False), (True, False, 2, True), (False, False, 1, True)],
    "batch": [(True, True, 1, False), (True, False, 2, False), (False, True, 1, True), (False, False, 2, True)],
}


def test_every_pair_of_ways_to_train_occurs():
    rows = [(name, *levels) for name, runs in RUNS.items() for levels in runs]
    assert len(rows) == 12
    for (i, left), (j, right) in combinations(enumerate([tuple(RUNS), *FACTORS.values()]), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(left, right))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUNS)
def test_one_curve_however_it_is_trained(name, tiny_world, settings_of, tmp_path):
    inputs = {**tiny_world, "model": tiny_world["untied"]}
    wanted = []
    for index, (packed, dynamic, ranks, resumed) in enumerate(RUNS[name]):
        settings = settings_of(
            **OBJECTIVES[name],
            sft__packed=packed,
            sft__dynamic_batch=dynamic,
            sft__micro_batch_size=2,
            sft__processes=ranks,
            sft__save_every=1,
            sft__steps=5,
        )
        root = tmp_path / str(index)
        if resumed:
            with pytest.raises(Killed):
                run(settings, inputs, root, kill_after=3)
            assert list((root / "scratch" / "checkpoints").glob("global_step_*"))
        found = curve(run(settings, inputs, root))
        wanted = wanted or found
        assert [row["step"] for row in found] == [1, 2, 3, 4, 5]
        for left, right in zip(found, wanted, strict=True):
            assert left == pytest.approx(right, rel=3e-5, abs=1e-6), RUNS[name][index]


INPUTS = {"model": Path("model"), "data": Path("data")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft__verl": {"engine": {"offload": True}}}, r"no key 'engine\.offload'; allowed there: .*param_offload"),
        ({"sft__verl": {"optimizer": {"lr": 1}}}, "no key 'optimizer'; allowed there: .*optim"),
        ({"sft__verl": {"data.nothing.here": 1}}, r"no key 'data\.nothing\.here'"),
        ({"objective": {"name": "lp_sft"}}, "'lp_sft' needs the base cache"),
        ({"objective": {"name": "asft"}}, "'asft': reads the whole vocabulary of the base, .*estimator=topk"),
        ({"objective": {"name": "lp_sft", "scope": "full"}}, "'lp_sft': reads the whole vocab.*scope=local"),
        ({"objective": {"name": "kd_decomposed"}}, "whole vocabulary of the teacher.* input teacher is missing"),
        ({"objective": {"name": "flow"}}, "'flow': takes constants of the training set.*input base_cache is missing"),
        ({"objective": {"name": "sed_sft"}}, "'sed_sft': takes constants .*or fix them as settings"),
    ],
)
def test_wrong_settings_are_refused_with_one_line(settings_of, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        verl_config(settings_of(**changes), INPUTS, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_live_reference_is_refused_where_sequences_are_split(settings_of, tmp_path):
    split = {"sft__sequence_parallel": 2, "sft__processes": 2, "model__attention": "flash_attention_2"}
    settings = settings_of(objective={"name": "asft"}, **split)
    with pytest.raises(ValueError, match=r"'asft': keeps the base in memory.*set sft\.sequence_parallel=1"):
        verl_config(settings, {**INPUTS, "base": Path("base")}, tmp_path)


def test_settings_reach_verl_and_passthrough_comes_last(settings_of, tmp_path):
    extra = {
        "optim": {"betas": [0.8, 0.9]},
        "engine.param_offload": True,
        "model": {"override_config": {"rope_theta": 5}},
    }
    config = verl_config(settings_of(sft__verl=extra, sft__lr=3e-4), INPUTS, tmp_path)
    assert config.optim.lr == 3e-4
    assert config.optim.betas == [0.8, 0.9]
    assert config.engine.param_offload is True
    assert config.model.override_config == {"attn_implementation": "sdpa", "rope_theta": 5}
    assert config.trainer.device == "cpu"


def test_the_configuration_opens_chats_from_one_memory_mapped_copy(settings_of, tmp_path):
    from data_prep.chat_dataset import ChatDataset
    from data_prep.micro_world.tokenizer import world_tokenizer
    from data_prep.tables import CHAT_SCHEMA, TableWriter

    for name in ("sft_train", "sft_val"):
        with TableWriter(tmp_path / f"{name}.parquet", CHAT_SCHEMA) as writer:
            for number in range(4):
                turns = [{"role": "user", "content": f"{number}+1="}, {"role": "assistant", "content": f"{number + 1}"}]
                writer.add({"id": str(number), "messages": turns, "row_tokens": [9], "row_supervised": [2]})
    inputs = {**INPUTS, "data": tmp_path, "base_cache": tmp_path / "cache"}
    data = verl_config(settings_of(), inputs, tmp_path / "scratch").data
    rank, other = (ChatDataset(data.train_files, world_tokenizer(), data) for _ in range(2))
    assert len(list((tmp_path / "scratch" / "chats").glob("*.arrow"))) == 1
    assert rank.identity() == other.identity()
    assert rank[3]["input_ids"].tolist() == other[3]["input_ids"].tolist()
    given = verl_config(settings_of(objective={"name": "lp_sft"}), inputs, tmp_path).data.references.base
    assert given.verified  # by the ranks together, before any opens its data


@pytest.mark.e2e
def test_gpu_configuration_is_valid_for_verl(settings_of, tmp_path):
    """verl's own dataclasses accept what a cluster recipe composes to; no GPU is needed for that."""
    from verl.utils.config import omega_conf_to_dataclass

    settings = settings_of(
        platform__name="gpu",
        platform__gpus_per_node=8,
        platform__nodes=2,
        model__dtype="bfloat16",
        model__attention="flash_attention_2",
        sft__processes=16,
        sft__batch_size=256,
        sft__gradient_checkpointing=True,
    )
    config = verl_config(settings, INPUTS, tmp_path)
    engine = omega_conf_to_dataclass(config.engine)
    assert engine.mixed_precision["param_dtype"] == "bf16"
    assert engine.strategy == "fsdp2"
    assert omega_conf_to_dataclass(config.optim).lr_scheduler_type == "cosine"
    assert omega_conf_to_dataclass(config.checkpoint).save_contents == ["model", "optimizer", "extra"]
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.trainer.device) == (2, 8, "cuda")
    assert config.model.override_config.attn_implementation == "flash_attention_2"


def test_configuration_needs_no_torch(tmp_path):
    """The plan's dry run composes verl's configuration without importing it."""
    import subprocess
    import sys

    modules = "sft_objectives.trainer.stage, sft_objectives.trainer.config"
    program = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'verl', 'ray')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=False).returncode == 0
