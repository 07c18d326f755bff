"""The trainer with a teacher of another padding: of Qwen2.5-Math the 1.5B has 151,936 ids and the 7B 152,064."""

import json

import pytest
import torch

from sft_objectives.trainer import stage

STUDENT, TEACHER = 151_936, 152_064


def write_model(directory, tokenizer, rows, seed):
    """A tiny untied model of that many rows; the padding of the wider head takes most of the probability."""
    from common.tiny_models import ends_of, random_model

    model = random_model("Llama", TEACHER, hidden=8, seed=seed, max_position_embeddings=256, **ends_of(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[STUDENT:] *= 50
        if rows < TEACHER:
            model.resize_token_embeddings(rows)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def curve(settings, inputs, root):
    output = root / "output"
    output.mkdir(parents=True)
    stage.run(settings, inputs, output, root / "scratch", lambda *_, **__: None)
    return [json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_padding_of_a_live_teacher_gets_no_probability_in_the_trainer(tiny_world, settings_of, tmp_path):
    """PriFT's Table 7: a run with the wide teacher is the run with that teacher cut to the student's ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_world["model"])
    student = write_model(tmp_path / "student", tokenizer, STUDENT, 0)
    teachers = {rows: write_model(tmp_path / f"teacher{rows}", tokenizer, rows, 1) for rows in (STUDENT, TEACHER)}
    settings = settings_of(objective={"name": "kd_decomposed"}, sft__steps=2, sft__batch_size=2)
    rows = {}
    for width, teacher in teachers.items():
        inputs = {"model": student, "teacher": teacher, "data": tiny_world["data"]}
        rows[width] = curve(settings, inputs, tmp_path / str(width))
    assert [row["loss"] for row in rows[TEACHER]] == pytest.approx([row["loss"] for row in rows[STUDENT]], rel=1e-5)
    assert rows[TEACHER][0]["loss"] < 50, "a teacher that puts its mass on padding would be far from any student"
