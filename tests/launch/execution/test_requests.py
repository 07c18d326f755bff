from __future__ import annotations

import dataclasses
import json

import pytest
import toy

from launch.execution.requests import request_of
from launch.store import Store


def test_a_request_names_the_class_of_its_settings_and_the_models_from_outside(tmp_path):
    store = Store(tmp_path)
    models: dict[str, dict[str, str | None]] = {"model": {"revision": "main", "eos": None}}
    stage = toy.steps(platform={"env": {"TOY": "secret"}}, models=models)
    store.logs(stage).mkdir(parents=True)
    path = request_of(stage, 1, store, {"model": "org/model"}, stage.settings)
    request = json.loads(path.read_text())
    assert path == store.logs(stage) / "attempt-1.request.json" and path.stat().st_mode & 0o777 == 0o600
    assert request["settings"]["type"] == "toy_stages:ToySettings" and request["models"] == models
    assert request["settings"]["values"]["platform"]["env"] == {"TOY": "***"}
    assert request["inputs"] == {"model": "org/model"}


def test_a_stage_whose_settings_have_no_class_is_refused(tmp_path):
    stage = dataclasses.replace(toy.steps(), settings_type="")
    with pytest.raises(ValueError, match="stage sft toy has no settings_type"):
        request_of(stage, 1, Store(tmp_path), {}, stage.settings)
