"""Named as `model.external_lib`: verl imports it wherever it reads the model's configuration.

Registers with verl only what the process at hand can use, because importing verl's engines costs seconds.
"""

import sys

from verl_cpu import plugin

if plugin.requested() and "verl.workers.engine_workers" in sys.modules:
    import verl_cpu.engine  # noqa: F401

if "verl.workers.engine_workers" in sys.modules:
    import common.varlen_attention  # noqa: F401  (a name in transformers' registry, whatever the recipe says)

if "verl.experimental.agent_loop.agent_loop" in sys.modules:
    import rl_stage.agent_loop  # noqa: F401
