from hypothesis import given
from hypothesis import strategies as st

from data_plane.kv_cache.prefix import chain_key, root_key
from data_plane.kv_cache.tables import BlockTable, BlockTables

A, B = "sha256:a", "sha256:b"
PROMPT = list(range(10))


def computed(tables: BlockTables, digest: str, tokens: list[int]) -> BlockTable:
    table = tables.open(digest, tokens)
    assert table is not None
    tables.publish(table, tokens, len(tokens))
    return table


def test_a_prefix_is_found_again_under_its_digest_and_no_other():
    tables = BlockTables(16, 4)
    first = computed(tables, A, PROMPT)
    same, other = tables.open(A, PROMPT), tables.open(B, PROMPT)
    assert same.blocks[:2] == first.blocks[:2]
    assert same.num_published == 2
    assert set(other.blocks).isdisjoint(first.blocks)


def test_equal_blocks_behind_different_prefixes_are_not_shared():
    key = chain_key(root_key(A), [1, 2])
    assert chain_key(key, [5, 6]) != chain_key(chain_key(root_key(A), [3, 4]), [5, 6])


def test_the_last_token_is_always_left_to_compute():
    tables = BlockTables(16, 4)
    computed(tables, A, PROMPT[:8])
    assert tables.open(A, PROMPT[:8]).num_published == 1
    assert tables.open(A, PROMPT[:9]).num_published == 2


def test_blocks_that_are_not_computed_yet_are_not_shared():
    tables = BlockTables(16, 4)
    table = tables.open(A, PROMPT)
    tables.publish(table, PROMPT, 7)
    assert tables.open(A, PROMPT).num_published == 1


def test_a_closed_tables_prefix_is_found_until_its_blocks_are_reused():
    tables = BlockTables(4, 4)
    tables.close(computed(tables, A, PROMPT))
    assert tables.num_free == 4
    found = tables.open(A, PROMPT)
    assert found.num_published == 2
    tables.close(found)
    tables.close(tables.open(B, list(range(16))))
    assert tables.open(A, PROMPT).num_published == 0


def test_the_end_of_a_prefix_is_reused_before_its_beginning():
    tables = BlockTables(4, 4)
    tables.close(computed(tables, A, list(range(16))))
    tables.close(tables.open(B, [1]))
    assert tables.open(A, list(range(16))).num_published == 3


def test_a_sealed_table_publishes_nothing():
    tables = BlockTables(16, 4)
    table = tables.open(A, PROMPT)
    table.seal()
    tables.publish(table, PROMPT, 10)
    assert tables.open(A, PROMPT).num_published == 0


def test_without_sharing_nothing_is_found():
    tables = BlockTables(16, 4, share_prefixes=False)
    computed(tables, A, PROMPT)
    assert tables.open(A, PROMPT).num_published == 0


def test_what_does_not_fit_changes_nothing():
    tables = BlockTables(4, 4)
    first = computed(tables, A, PROMPT)
    assert tables.open(A, list(range(30))) is None
    assert tables.num_free == 1
    assert not tables.grow(first, 17)
    tables.check()


def test_a_fork_shares_full_blocks_and_goes_on_publishing_behind_them():
    tables = BlockTables(16, 4)
    table = computed(tables, A, PROMPT)
    twin = tables.fork(table, 2)
    tables.grow(twin, 12)
    other = [*PROMPT[:8], 70, 71, 72, 73]
    tables.publish(twin, other, 12)
    tables.close(table)
    tables.check()
    assert tables.open(A, [*other, 1]).num_published == 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ogfc"), st.integers(0, 5), st.lists(st.integers(0, 1), min_size=1, max_size=14)
        ),
        max_size=40,
    )
)
def test_tables_account_for_every_block_under_any_sequence(operations):
    tables = BlockTables(12, 2)
    live: list[tuple[BlockTable, list[int]]] = []
    for kind, index, tokens in operations:
        if kind == "o":
            table = tables.open(A if index % 2 else B, tokens)
            if table is not None:
                tables.publish(table, tokens, len(tokens))
                live.append((table, tokens))
        elif live:
            table, held = live[index % len(live)]
            if kind == "g" and tables.grow(table, len(held) + len(tokens)):
                held += tokens
                tables.publish(table, held, len(held))
            elif kind == "f":
                shared = (len(held) - 1) // 2
                live.append((tables.fork(table, shared), held[: shared * 2] or [0]))
            elif kind == "c":
                live.remove((table, held))
                tables.close(table)
        tables.check()
    for table, _ in live:
        tables.close(table)
    assert tables.num_free == 12
