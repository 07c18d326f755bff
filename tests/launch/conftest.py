from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# the children import `toy_stages` as they import a stage's package
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session", autouse=True)
def _children_find_toy_stages():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE)])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def ray_session(_children_find_toy_stages):
    """A Ray of two logical devices for all drivers of this session: starting one takes seconds."""
    import ray

    from launch.execution.cluster import start_ray

    temporary = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    start_ray(temporary, cpus=4, gpus=2)
    yield
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
