from __future__ import annotations

import json

import pytest

from common.errors import ConfigError
from data_prep.reference.layout import predict_bytes
from launch import stages
from launch.bench import fill
from launch.graph.builder import make_plan
from launch.graph.estimate import disk_forecast, estimate_plan, parameters
from launch.graph.show import plan_json, print_plan
from launch.store import Store
from launch.store.leases import Heartbeat


def planned(tmp_path, *overrides):
    return make_plan("microworld", [*overrides, f"run.root={tmp_path}"])


def only(plan, kind):
    (found,) = [stage for stage in plan.stages.values() if stage.kind == kind]
    return found


def publish(store, stage, files, seconds=1.0):
    with Heartbeat(store, "toy") as beat:
        store.acquire(stage, beat.run)
        attempt = store.begin(stage)
        for name, text in files.items():
            (store.temporary(stage, attempt) / name).write_text(text)
        store.publish(stage, attempt, beat.run, started=0.0, seconds=seconds, peak_memory_bytes=1)
        store.release(stage, beat.run)


def test_parameters_follow_the_published_sizes():
    """Qwen2.5-1.5B's own card: 1.54 billion parameters, 1.31 billion of them not embeddings."""
    config = {
        "hidden_size": 1536, "num_hidden_layers": 28, "vocab_size": 151_936, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True,
    }  # fmt: skip
    assert parameters(config) == pytest.approx(1.54e9, rel=0.01)
    assert parameters(config) - 151_936 * 1536 == pytest.approx(1.31e9, rel=0.01)


def test_costs_grow_with_the_work(tmp_path):
    def sft(*overrides):
        plan = planned(tmp_path, *overrides)
        return estimate_plan(plan, Store(plan.root))[only(plan, "sft").fingerprint]

    one = sft("rl.enabled=false", "eval.enabled=false")
    three = sft("rl.enabled=false", "eval.enabled=false", "sft.epochs=3")
    assert three.flops == pytest.approx(3 * one.flops)
    assert one.source == "guess" and not one.exact_bytes
    published = sft("rl.enabled=false", "eval.enabled=false", "sft.publish_steps=[1,2]")
    assert published.bytes == pytest.approx(3 * one.bytes)
    kept = sft("rl.enabled=false", "eval.enabled=false", "sft.keep_checkpoints=4")
    assert kept.scratch_bytes == 4 * one.scratch_bytes


def test_a_cache_is_sized_from_the_counts_that_prepare_published(tmp_path):
    plan = planned(tmp_path, "objective=lp_sft")
    store, cache = Store(tmp_path), only(plan, "cache")
    assert not estimate_plan(plan, store)[cache.fingerprint].exact_bytes
    summary = {"tokens": {"sft_train": {"chats": 900, "tokens": 30_000, "response_tokens": 21_000}}}
    publish(store, plan.stages[str(cache.inputs["data"].stage)], {"summary.json": json.dumps(summary)})
    found = estimate_plan(plan, store)[cache.fingerprint]
    assert found.exact_bytes and found.bytes == predict_bytes(summary, cache.settings["cache"])


def test_a_finished_stage_costs_what_it_took_and_teaches_its_speed(tmp_path):
    plan = planned(tmp_path, "seed=1,2", "eval.enabled=false", "rl.enabled=false")
    store = Store(tmp_path)
    first, second = [stage for stage in plan.stages.values() if stage.kind == "sft"]
    publish(store, first, {"a.txt": "hello"}, seconds=77.0)
    found = estimate_plan(plan, store)
    assert (found[first.fingerprint].source, found[first.fingerprint].seconds) == ("record", 77.0)
    assert found[first.fingerprint].bytes == 5
    assert found[second.fingerprint].source == "records"
    assert found[second.fingerprint].seconds == pytest.approx(77.0)
    longer = planned(tmp_path, "seed=3", "eval.enabled=false", "rl.enabled=false")
    store.finish(first, 1, {"outcome": "ok", "seconds": 77.0, "flops": found[first.fingerprint].flops})
    other = estimate_plan(longer, store)[only(longer, "sft").fingerprint]
    assert other.source == "records" and other.seconds == pytest.approx(77.0)


def test_totals_count_what_is_missing_and_what_sharing_saves(tmp_path, capsys):
    plan = planned(tmp_path, "objective=sft,dft", "eval.enabled=false")
    total = plan_json(plan)["total"]
    rows = {row["fingerprint"]: row["estimate"] for row in plan_json(plan)["stages"]}
    assert total["missing"] == len(rows) == 8
    assert total["device_hours"] == pytest.approx(sum(row["device_hours"] for row in rows.values()))
    pretrain = rows[only(plan, "pretrain").fingerprint]["device_hours"]
    assert total["device_hours_without_sharing"] - total["device_hours"] == pytest.approx(pretrain)
    print_plan(plan)
    assert "8 to run" in capsys.readouterr().out
    fill(plan)
    assert plan_json(plan)["total"]["missing"] == 0
    assert disk_forecast(estimate_plan(plan, Store(plan.root)), 1) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"eval\.gpu_memory=0\.6: vLLM needs 63 GB .* may take 48 .*eval\.dtype=bfloat16, eval\.tensor_parallel=2"),
        (("eval.dtype=bfloat16",), None),
        (("eval.tensor_parallel=2", "platform.gpus_per_node=2", "eval.held_out_chats=0"), None),
        (("eval.gpu_memory=0.9", "eval.held_out_chats=0"), None),
        (("eval.gpu_memory=0.9",), r"eval\.held_out_chats=256: the model and its base take 122 GB on one device"),
        (("eval.dtype=bfloat16", "platform.device_memory=24"), r"platform\.device_memory=24"),
    ],
)
def test_a_model_that_its_device_cannot_hold_is_refused_when_planned(tmp_path, overrides, message):
    """Qwen3-14B, by the sizes of its own config.json, on 80 GB."""
    config = {
        "hidden_size": 5120, "num_hidden_layers": 40, "vocab_size": 151_936, "num_attention_heads": 40, "head_dim": 128,
        "num_key_value_heads": 8, "intermediate_size": 17_408, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert parameters(config) == pytest.approx(14.8e9, rel=0.01)
    given = (f"model.path={tmp_path / 'model'}", "model.pretrain=null", "platform=gpu", "rl.enabled=false")
    given += ("sft.lora={rank: 8}", "sft.gradient_checkpointing=true", "sft.tokens_per_micro_batch=512")
    plan = planned(tmp_path, *given, *overrides)
    if message is None:
        estimates = estimate_plan(plan, Store(plan.root))
        placed = [stage.placement["gpus_per_node"] for stage in plan.stages.values() if stage.kind == "generate"]
        assert set(placed) == {plan.branches[0].recipe.eval.tensor_parallel} and estimates
        return
    with pytest.raises(ConfigError, match=message):
        estimate_plan(plan, Store(plan.root))


def test_forward_passes_share_no_process_with_vllm_on_a_gpu(tmp_path):
    for platform, apart in (("cpu", False), ("gpu", True)):
        plan = planned(tmp_path, f"platform={platform}", "rl.enabled=false")
        kind = stages.load("generate")
        engines = {
            stage.settings["held_out"]: json.dumps(kind.engine(stage.settings), sort_keys=True)
            for stage in plan.stages.values()
            if stage.kind == "generate"
        }
        assert (engines[True] != engines[False]) is apart


def test_an_engine_of_the_cpu_platform_spans_no_devices(tmp_path):
    with pytest.raises(ValueError, match=r"eval\.tensor_parallel=2: .*; set eval\.replicas instead"):
        planned(tmp_path, "eval.tensor_parallel=2")


def test_of_a_stage_that_reads_many_the_plan_names_a_few(tmp_path, capsys):
    plan = planned(tmp_path, "objective=sft,dft,lp_sft,eaft", "rl.enabled=false", "analyses=[trade_off]")
    row = next(row for row in plan_json(plan)["stages"] if row["stage"] == "analyse")
    print_plan(plan)
    shown = "".join(capsys.readouterr().out.split())
    assert len(row["inputs"]) > 6 and f"and{len(row['inputs']) - 6}more" in shown.replace("│", "")
