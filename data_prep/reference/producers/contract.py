"""What a producer of a cache's rows offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Heartbeat = Callable[[int], None]  # called with the number of tokens done since the last call


class Producer(Protocol):
    """Computes the rows of given positions of given chats."""

    vocab_size: int

    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Heartbeat
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yields (indices of some chats, statistics of their positions concatenated in that order)."""
        ...
