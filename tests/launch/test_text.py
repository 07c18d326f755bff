from launch.text import bytes_text, metrics_text, seconds_text


def test_units():
    assert [seconds_text(s) for s in (0.04, 59.9, 61, 7380)] == ["0.0 s", "59.9 s", "1 min 01 s", "2 h 03 min"]
    assert [bytes_text(b) for b in (5e6, 1.5e9)] == ["5 MB", "1.50 GB"]


def test_metrics_that_are_not_finite_are_said():
    assert metrics_text({"loss": None, "lr": 1e-5, "entropy": 0.12345}) == "loss=nan lr=1e-05 entropy=0.1235"


def test_a_score_is_shown_with_its_interval():
    shown = metrics_text({"high": 0.4712, "low": 0.3888, "target/pass@1": 0.4301})
    assert shown == "target/pass@1 0.43 (0.39 to 0.47)"
    assert metrics_text({"low": 0.1, "loss": 2.0}) == "low=0.1 loss=2"
