"""Named as `model.external_lib`, so that verl imports it in every process that reads the model's configuration.

Registers with verl only what the process at hand can use: importing verl's engines costs seconds.
"""

import sys

from verl_cpu import plugin

if plugin.requested() and "verl.workers.engine_workers" in sys.modules:
    import verl_cpu.engine  # noqa: F401
