from common.nested import flat


def test_nested_and_dotted_keys_are_one():
    assert flat({"a": {"b": 1, "c": {}}, "d.e": [2]}) == {"a.b": 1, "d.e": [2]}
