from kernels.lora.triton.configs import BlockTable, Bounds, ExpandConfig, load_table
from tests.kernels.triton.tuner import Sample, sample_of, to_json, tune

TABLE = load_table()


def prefers_block_r_64(sample: Sample, table: BlockTable) -> float:
    if sample.kernel == "shrink":
        return 1.0
    height = 16 if sample.num_tokens == sample.num_adapters else 64
    return 2.0 - table.expand(height, 1, sample.rank).block_r / 64


def test_the_fastest_block_sizes_win_and_a_tie_keeps_what_is_committed():
    tuned, tried = tune(TABLE, prefers_block_r_64, clock=lambda: 0.0, deadline=1.0)
    assert tuned.shrink_rows == TABLE.shrink_rows
    unbounded = dict(tuned.expand_rows)[Bounds(64)]
    assert unbounded == ExpandConfig(block_n=64, block_r=64, num_warps=4, num_stages=2)
    assert len(tried) == len(TABLE.shrink_rows) + len(TABLE.expand_rows)


def test_every_row_has_a_share_of_the_time_and_none_is_left_out():
    now = 0.0

    def takes_a_second(sample: Sample, table: BlockTable) -> float:
        nonlocal now
        now += 1.0
        return 1.0

    rows = len(TABLE.shrink_rows) + len(TABLE.expand_rows)
    _, tried = tune(TABLE, takes_a_second, clock=lambda: now, deadline=5.0 * rows)
    assert len(tried) == rows
    assert all(4 <= row["num_tried"] <= 6 for row in tried)


def test_after_the_deadline_the_table_stays():
    tuned, tried = tune(TABLE, prefers_block_r_64, clock=lambda: 2.0, deadline=1.0)
    assert (tuned, tried) == (TABLE, [])


def test_what_is_written_is_what_is_read(tmp_path):
    file = tmp_path / "table.json"
    file.write_text(to_json(TABLE))
    assert load_table(file) == TABLE


def test_a_sample_is_within_the_bounds_of_its_row():
    for kernel, rows in (("shrink", TABLE.shrink_rows), ("expand", TABLE.expand_rows)):
        for bounds, config in rows:
            sample = sample_of(kernel, bounds)
            per_adapter = -(-sample.num_tokens // sample.num_adapters)
            tiles = sample.num_adapters * -(-per_adapter // bounds.tile_height)
            if kernel == "expand":
                assert TABLE.expand(bounds.tile_height, tiles, sample.rank) == config
            else:
                columns = sample.rank * len(sample.widths)
                assert TABLE.shrink(bounds.tile_height, tiles, columns, sample.in_features) == config
