from __future__ import annotations

import pytest
import toy

from launch.store import Store, StoreError
from launch.store.explain import explain_difference


def test_explain_names_the_fields_that_differ(tmp_path):
    store = Store(tmp_path)
    one, two = toy.steps("one", count=3), toy.steps("two", count=4)
    toy.published(store, one)
    toy.published(store, two, text="other")
    text = explain_difference(store, f"sft/{store.directory(one).name}", f"sft/{store.directory(two).name}")
    assert "settings.toy.steps: 3 -> 4" in text
    assert "toy.seed" not in text and "payload deep/a.txt" in text and "packages: no difference" in text
    with pytest.raises(StoreError, match="holds no artifact"):
        explain_difference(store, "sft/x", "sft/y")
