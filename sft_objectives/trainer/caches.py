"""The reference caches of a training run: compared with their checksums once on every node, not in every process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist

from common.errors import ConfigError
from common.verified import is_verified
from data_prep.reference.reader import ReferenceCache


def verify_caches(directories: Iterable[Path]) -> None:
    """Read every file of the caches once on this node, shared out among its ranks; every rank of the run calls this.

    A cache that the process above has verified on this node is not read. Raises ConfigError, the same in all ranks,
    that names the damaged files.
    """
    rank, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    for directory in directories:
        cache, problem = None, None
        damaged: list[str] = []
        try:
            cache = ReferenceCache(directory)
            damaged = [] if is_verified(directory) else cache.damaged(rank, ranks)
        except ConfigError as error:
            problem = str(error)
        found: list = [None] * dist.get_world_size()
        dist.all_gather_object(found, (problem, damaged))
        for told, _ in found:
            if told is not None:
                raise ConfigError(told)
        assert cache is not None
        cache.refuse({name for _, names in found for name in names})
