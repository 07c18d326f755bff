"""Parquet files that are read in order, some rows at a time."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pyarrow.parquet as pq


def streamed(file: str | Path | IO[bytes], metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A file whose batches take the memory of a row group, however many there are.

    pyarrow reads ahead by default, and then keeps the bytes of every row group that was read until the file is closed.
    """
    return pq.ParquetFile(file, metadata=metadata, pre_buffer=False)
