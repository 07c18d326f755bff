"""All eight analyses of the papers on a small micro-world: each leaves its picture and its sentence in the report."""

from __future__ import annotations

import pytest
from small_world import SMALL

from common.files import read_json
from launch.commands.line import call

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

NAMES = ("plateaus", "targets", "drift", "exploration", "difficulty", "alignment", "trade_off", "tokens")
# an objective with a teacher, for `alignment`, and one with the base's cache; a checkpoint on the way, for `drift`
CHOSEN = ("objective=target_sft,lp_sft", "sft.publish_steps=[3]", f"analyses=[{','.join(NAMES)}]")
TEACHER = ("hidden=64", "layers=2", "heads=2", "steps=40")  # as small as the base of the small world


def test_the_report_shows_every_analysis_with_its_picture_and_sentence(tmp_path):
    root = tmp_path / "runs"
    teacher = [f"model.teacher.pretrain.{size}" for size in TEACHER]
    given = [*SMALL, *teacher, *CHOSEN, f"run.root={root}", "rl.enabled=false", "eval.held_out_chats=8"]
    assert call(["run", "microworld", *given]) == 0
    (page,) = root.glob("microworld/*/report.html")
    text, markdown = page.read_text(), page.with_suffix(".md").read_text()
    for name in NAMES:
        (artifact,) = root.glob(f"analyse/{name}-*/findings.json")
        findings = read_json(artifact)
        assert findings["sentence"] and findings["sentence"] in markdown, name
        assert findings["figures"], name
        for figure in findings["figures"]:
            drawn = artifact.parent / "figures" / f"{figure}.svg"
            assert drawn.stat().st_size > 2000 and drawn.with_suffix(".png").stat().st_size > 2000, figure
            assert any(page.parent.glob(f"figures/analyse-{name}-*-{figure}.svg")), f"{figure} is not in the report"
    shown = sum(len(read_json(artifact)["figures"]) for artifact in root.glob("analyse/*/findings.json"))
    assert text.count('src="data:image/svg+xml,') == shown >= len(NAMES) and "too large to stand here" not in text
    assert len(list(root.glob("analyse/tokens-*/pages/tokens.html"))) == 1
    assert len(list(page.parent.glob("pages/analyse-tokens-*.html"))) == 1
