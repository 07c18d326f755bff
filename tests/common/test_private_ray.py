"""A private Ray that does not start."""

import sys
from types import SimpleNamespace

import pytest

from common import ray_session


@pytest.mark.parametrize(
    ("error", "raised", "tries"),
    [
        (Exception("The current node timed out during startup"), RuntimeError, ray_session.START_TRIES),
        (TimeoutError("rl.step_timeout: start-up took longer than 5 s"), TimeoutError, 1),
    ],
)
def test_what_fails_is_tried_again_but_the_callers_time_limit_holds(error, raised, tries, monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        raise error

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    with pytest.raises(raised, match=str(error)):
        ray_session.start_private_ray(cpus=2, gpus=1, log_to_driver=True)
    assert len(calls) == tries
    assert (calls[0]["num_cpus"], calls[0]["num_gpus"], calls[0]["log_to_driver"]) == (2, 1, True)
    assert (calls[0]["address"], calls[0]["_node_ip_address"]) == ("local", "127.0.0.1")
