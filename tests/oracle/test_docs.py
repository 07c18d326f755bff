"""The objective of docs/extend.md runs as it stands; tests/e2e/test_extend.py runs the rest of that page."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_worked_example_runs(tmp_path):
    page = (ROOT / "docs" / "extend.md").read_text()
    found = re.findall(r"```python\n# ([\w.]+)\n(.*?)```", page, re.DOTALL)
    blocks = [block for block in found if block[0] in ("focal.py", "try_it.py")]
    assert [name for name, _ in blocks] == ["focal.py", "try_it.py"]
    assert len(blocks[0][1].strip().splitlines()) <= 20
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "try_it.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    printed = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert printed and done.stdout == printed[1]
    command = re.search(r"```bash\nPYTHONPATH=\. python (.*focal.*)\n```", page)
    assert command
    planned = subprocess.run(
        [sys.executable, *command[1].split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.startswith("microworld: 1 branch")


def test_every_objective_is_in_the_table():
    import sft_objectives

    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "objectives.md").read_text(), re.MULTILINE)
    assert rows == sft_objectives.names()
