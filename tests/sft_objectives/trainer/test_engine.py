"""The objectives inside verl's engine: gradients do not depend on how a batch is split and equal those without verl."""

import json
from pathlib import Path

import pytest
import torch
from rank_processes import run_script
from safetensors.torch import load_file

import sft_objectives
from common.ports import free_port
from common.settings import describe

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
BATCH = 8
TOLERANCE = 1e-6
DATASET_CONSTANTS = {
    "flow": {"temperature": 1.3, "mean_weight": 0.4},
    "sed_sft": {"threshold": 0.4},
}
VARIANTS = {
    "dft@ema": {"name": "dft", "source": "ema", "momentum": 0.5},
    "eaft@base": {"name": "eaft", "source": "base"},
    "talr@base": {"name": "talr", "source": "base"},
    "talr@ema": {"name": "talr", "source": "ema"},
    "talr normalized": {"name": "talr", "normalize": True},
    "token_selection entropy": {"name": "token_selection", "statistic": "entropy", "normalizer": "kept"},
    "beyond_log kept": {"name": "beyond_log", "threshold": 0.02, "normalizer": "kept"},
    "lp_sft full": {"name": "lp_sft", "scope": "full"},
    "lp_sft kl": {"name": "lp_sft", "kl_from_base": True},
    "psft base": {"name": "psft", "inner_updates": 0},
}
CASES = {name: {"name": name} for name in sft_objectives.names()} | VARIANTS
for case in CASES.values():
    if case["name"] in DATASET_CONSTANTS:
        case["dataset_constants"] = DATASET_CONSTANTS[case["name"]]
SPLITS = {
    "packed_1": {"packed": True, "micro_batches": 1, "tokens": None},
    "packed_2": {"packed": True, "micro_batches": 2, "tokens": None},
    "packed_4": {"packed": True, "micro_batches": 4, "tokens": None},
    "packed_dynamic": {"packed": True, "micro_batches": None, "tokens": 100},
    "padded_1": {"packed": False, "micro_batches": 1, "tokens": None},
    "padded_4": {"packed": False, "micro_batches": 4, "tokens": None},
    "padded_dynamic": {"packed": False, "micro_batches": None, "tokens": 100},
    "fused_packed_2": {"packed": True, "micro_batches": 2, "tokens": None, "fused": True},
    "fused_padded_dynamic": {"packed": False, "micro_batches": None, "tokens": 100, "fused": True},
}
TWO_RANKS = ("packed_2", "packed_dynamic", "padded_4", "fused_packed_2", "fused_padded_dynamic")


def run_ranks(
    world, settings, out: Path, *, ranks: int, splits, port: int, model: str = "model", expected=False, **job
):
    """Run `engine_matrix.py` on `ranks` processes; returns `out`."""
    out.mkdir(parents=True)
    references = {"base": str(world["untied"]), "teacher": str(world["other"]), "checkpoint": str(world["other"])}
    job = {
        "settings": describe(settings),
        "inputs": {name: str(world[name]) for name in ("data",)} | {"model": str(world[model])},
        "references": references,
        "batch_size": BATCH,
        "cases": CASES,
        "unchecked": {},
        "splits": splits,
        "out": str(out),
        "expected": expected,
        **job,
    }
    (out / "cases.json").write_text(json.dumps(job["cases"]))
    (out / "job.json").write_text(json.dumps(job))
    run_script("engine_matrix.py", out / "job.json", settings, ranks=ranks, port=port, timeout=900)
    return out


def gradients(out: Path, label: str, split: str) -> torch.Tensor:
    tensors = load_file(out / label / f"{split}.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def metrics(out: Path, label: str, split: str) -> dict:
    return json.loads((out / label / f"{split}.json").read_text())


@pytest.fixture(scope="module")
def one_rank(tiny_world, settings_of, tmp_path_factory):
    settings = settings_of(sft__batch_size=BATCH)
    out = tmp_path_factory.mktemp("matrix") / "one"
    return run_ranks(tiny_world, settings, out, ranks=1, splits=SPLITS, port=free_port(), expected=True)


@pytest.fixture(scope="module")
def two_ranks(tiny_world, settings_of, tmp_path_factory):
    settings = settings_of(sft__batch_size=BATCH, sft__processes=2)
    splits = {name: SPLITS[name] for name in TWO_RANKS}
    out = tmp_path_factory.mktemp("matrix") / "two"
    return run_ranks(tiny_world, settings, out, ranks=2, splits=splits, port=free_port())


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference relative to the norm, which must not be 0; rounding of p near 1 adds an absolute 3e-8."""
    assert wanted.norm() > 0
    difference = (found - wanted).double().norm().item()
    return max(difference - 3e-8, 0.0) / wanted.double().norm().item()


@pytest.mark.parametrize("label", CASES)
def test_gradient_equals_that_without_verl(one_rank, label):
    assert distance(gradients(one_rank, label, "packed_1"), gradients(one_rank, label, "expected")) < TOLERANCE


@pytest.mark.parametrize("label", CASES)
def test_gradient_does_not_depend_on_micro_batches_or_padding(one_rank, label):
    wanted = gradients(one_rank, label, "packed_1")
    errors = {split: distance(gradients(one_rank, label, split), wanted) for split in SPLITS}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("label", CASES)
def test_gradient_and_metrics_do_not_depend_on_ranks(one_rank, two_ranks, label):
    wanted, means = gradients(one_rank, label, "packed_1"), metrics(one_rank, label, "packed_1")
    for split in TWO_RANKS:
        assert distance(gradients(two_ranks, label, split), wanted) < TOLERANCE
        found = metrics(two_ranks, label, split)
        assert found.keys() == means.keys()
        for name, value in means.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_metrics_are_those_of_the_tokens(one_rank):
    assert metrics(one_rank, "dft", "packed_4")["mean_weight"] < 1
    assert 0 < metrics(one_rank, "dft", "packed_4")["effective_tokens"] < 1
    assert 0 <= metrics(one_rank, "lp_sft", "packed_4")["empty_set"] < 1
    assert metrics(one_rank, "lp_sft kl", "packed_4")["kl_from_base"] > 0
    assert metrics(one_rank, "sft", "packed_4")["loss"] == pytest.approx(
        metrics(one_rank, "sft", "packed_4")["cross_entropy"]
    )


# losses in the output head, in arrangements that the matrix above does not have

FUSED_CASES = ("sft", "talr", "eaft", "sft_kl", "lp_sft kl", "dft@ema")
SHARDED = {"sft__processes": 2, "sft__verl": {"engine": {"fsdp_size": 2}}, "sft__gradient_checkpointing": True}
ARRANGEMENTS = {
    "sharded_tied": {"changes": SHARDED, "ranks": 2},
    "sharded_untied": {"changes": SHARDED, "ranks": 2, "model": "untied"},
    "bfloat16": {"changes": {}, "unchecked": {"model": {"dtype": "bfloat16"}}, "ranks": 1, "tolerance": 1e-2},
    "lora": {
        "changes": {"sft__lora": {"rank": 4, "alpha": 8, "target_modules": "all-linear"}},
        "ranks": 1,
        "cases": ("sft", "talr", "lp_sft kl"),
    },
    # without flash attention each rank attends to its own share, with and without the fused head alike
    "sequence_parallel": {
        "changes": {"sft__processes": 2},
        "unchecked": {"sft": {"sequence_parallel": 2}},
        "ranks": 2,
        "cases": ("sft", "talr", "eaft", "lp_sft kl", "dft@ema"),
        "splits": ("packed_2",),
    },
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_fused_head_gives_gradients_and_metrics_of_whole_logits(arrangement, tiny_world, settings_of, tmp_path):
    how = ARRANGEMENTS[arrangement]
    tolerance = how.get("tolerance", TOLERANCE)
    cases = {label: dict(CASES[label]) for label in how.get("cases", FUSED_CASES)}
    splits = {
        "packed_2": {"packed": True, "micro_batches": 2, "tokens": None},
        "padded_2": {"packed": False, "micro_batches": 2, "tokens": None},
    }
    splits = {name: splits[name] for name in how.get("splits", splits)}
    out = run_ranks(
        tiny_world,
        settings_of(sft__batch_size=BATCH, **how["changes"]),
        tmp_path / "out",
        ranks=how["ranks"],
        splits=splits | {f"fused_{name}": split | {"fused": True} for name, split in splits.items()},
        port=free_port(),
        model=how.get("model", "model"),
        cases=cases,
        unchecked=how.get("unchecked", {}),
    )
    for label in cases:
        for split in splits:
            error = distance(gradients(out, label, f"fused_{split}"), gradients(out, label, split))
            assert error < tolerance, (label, split)
            found, wanted = metrics(out, label, f"fused_{split}"), metrics(out, label, split)
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                assert found[name] == pytest.approx(value, rel=max(1e-5, tolerance), abs=1e-6), (label, split, name)
