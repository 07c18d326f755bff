"""A cluster serves one verl run at a time: the others wait, whoever started them."""

import json
import subprocess
import sys

import pytest

from rl_stage.session import QUEUE, TURN

TURNS = """
import json, sys, threading, time
import ray
from rl_stage.session import require_cores, start_private_ray, take_turn
from rl_stage.demands import Demand
from common.errors import ConfigError

QUEUE, TURN = sys.argv[1:]
start_private_ray(cpus=4, gpus=0, object_store_memory=100 * 2**20)

def turn_in_background():
    got = []
    threading.Thread(target=lambda: got.append(take_turn(wait=0.05)), daemon=True).start()
    return got

def within(seconds, found):
    end = time.monotonic() + seconds
    while not found and time.monotonic() < end:
        time.sleep(0.05)
    return bool(found)

class Queue:
    def ready(self):
        return True

say = {}
first = take_turn(wait=0.05)
second = turn_in_background()
say["waits for the one whose turn it is"] = not within(2, second)
ray.kill(first)
say["is next when that one ends"] = within(60, second)
ray.kill(second.pop())
queue = ray.remote(num_cpus=0)(Queue).options(name=QUEUE, namespace="transfer_queue").remote()
ray.get(queue.ready.remote())
third = turn_in_background()
say["waits for a queue of somebody else's"] = not within(2, third)
ray.kill(queue)
say["goes on without it"] = within(60, third)
try:
    require_cores(Demand(devices=2, bundles=6, queue=2, placed=3))
except ConfigError as error:
    say["cores"] = str(error)
require_cores(Demand(devices=1, bundles=2, queue=1, placed=3))
print(json.dumps(say))
ray.shutdown()
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_a_second_run_waits_for_its_turn(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TURNS, QUEUE, TURN], capture_output=True, text=True, timeout=250
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    say = json.loads(ran.stdout.splitlines()[-1])
    assert say.pop("cores").startswith("rl.processes=2: verl reserves 9 cores of the Ray cluster, which has 4;")
    assert set(say.values()) == {True}, say
    assert "waiting for another verl run" in ran.stdout
