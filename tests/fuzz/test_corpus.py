"""Inputs that a fuzzer kept, as each reached another place: a result or one message each."""

from tests.fuzz.fuzz_readers import CORPUS, Fuzzer, kept_corpus


def test_every_kept_input_is_read_or_refused(tmp_path):
    assert CORPUS.stat().st_size < 200_000
    fuzzer, inputs = Fuzzer(tmp_path / "out", tmp_path), kept_corpus()
    for data in inputs:
        fuzzer.run(data)
    assert fuzzer.found == {}
    assert fuzzer.runs == len(inputs) > 100
    assert 0 < fuzzer.accepted < fuzzer.runs
