"""One rank that verifies caches (not a test): RANK=.. WORLD_SIZE=.. python verify_ranks.py <cache>...

Prints a line of JSON: the files that this rank has read, and what it raised.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from common.errors import ConfigError
from data_prep.reference import reader
from sft_objectives.trainer.caches import verify_caches

dist.init_process_group("gloo")
read, checksum = [], reader.file_checksum
reader.file_checksum = lambda path: read.append(path.name) or checksum(path)
refused = ""
try:
    verify_caches(map(Path, sys.argv[1:]))
except ConfigError as error:
    refused = str(error)
# one write: lines of two ranks come into one file
sys.stdout.write(json.dumps({"read": read, "refused": refused}) + "\n")
dist.destroy_process_group()
