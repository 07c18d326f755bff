"""Parquet files read in order: memory does not grow with the file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.parquet import streamed

GROUPS, ROWS = 48, 2**17  # of 1 MiB


def test_batches_take_the_memory_of_few_row_groups(tmp_path):
    values = np.random.default_rng(0).random((GROUPS, ROWS))  # nothing that could be compressed
    with pq.ParquetWriter(tmp_path / "rows.parquet", pa.schema([("x", pa.float64())])) as writer:
        for group in values:
            writer.write_table(pa.table({"x": group}))
    before, peak, place = pa.total_allocated_bytes(), 0, 0
    for batch in streamed(tmp_path / "rows.parquet").iter_batches(ROWS // 4):
        found = batch.column("x").to_numpy()
        assert np.array_equal(found, values.reshape(-1)[place : place + len(found)])
        place += len(found)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert place == values.size and peak < GROUPS // 4 * 2**20
