"""Protocols on two processes."""

from fastseg import evaluate


def test_two_processes_give_the_same_file(run_of_networks, tmp_path, launch, capsys):
    """To the last digit; batches of one, since products of other shapes may round elsewhere."""
    weights = str(run_of_networks / "student.safetensors")
    command = ["--checkpoint", weights, "--batch-size", "1", "--resamples", "4", "--protocols"]
    command += ["rmm", "nm", "conditions"]
    both = launch(["-m", "fastseg.evaluate", *command, "--out", str(tmp_path / "two.csv")])
    codes, printed, said = both.finish(timeout=200)
    assert codes == [0, 0], said
    assert evaluate.main([*command, "--out", str(tmp_path / "one.csv")]) == 0
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
    assert capsys.readouterr().out == printed
