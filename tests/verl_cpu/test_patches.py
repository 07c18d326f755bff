"""The parts of ``patches`` that stand alone; the rest runs in test_plugin.py and test_vllm_extension.py."""

import mmap

from verl_cpu import patches


def test_only_unmapped_segments_are_removed(tmp_path):
    stale, live, other = (tmp_path / name for name in ("verl_weights_stale", "verl_weights_live", "psm_other"))
    for path in (stale, live, other):
        path.write_bytes(bytes(4096))
    with live.open("r+b") as stream, mmap.mmap(stream.fileno(), 4096):
        assert patches.remove_stale_weight_segments(tmp_path) == [stale]
    assert not stale.exists()
    assert live.exists()
    assert other.exists()


def test_sockets_of_two_clusters_differ(monkeypatch):
    handle = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
    monkeypatch.setenv("RAY_RAYLET_PID", "11")
    first = patches.private_socket(handle)
    assert first == patches.private_socket(handle)
    assert first.startswith(handle)
    monkeypatch.setenv("RAY_RAYLET_PID", "12")
    assert patches.private_socket(handle) != first
