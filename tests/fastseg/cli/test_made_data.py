"""Where a training renders its synthetic data, and where it never writes."""

from dataclasses import replace

from fastseg.config.presets.registry import get_preset
from fastseg.config.sections import SyntheticData
from fastseg.train import main, make_data


def asked(root, dataset="deliver"):
    config = get_preset("debug")
    return replace(
        config,
        data=replace(config.data, root=root, dataset=dataset),
        synthetic=SyntheticData(train=1, val=1, size=64),
    )


def test_only_the_synthetic_set_is_rendered(tmp_path):
    root = tmp_path / "mine"
    make_data(asked(root, "mfnet"))
    assert not root.exists()
    make_data(asked(root))
    assert (root / "manifest.json").is_file()


def test_a_folder_of_real_data_is_never_written_into(tmp_path, capsys):
    image = tmp_path / "img" / "cloud" / "train" / "MAP_1_point1" / "100000_rgb_front.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    make_data(asked(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert "holds other files, such as img" in capsys.readouterr().err


def test_another_data_set_is_listed_not_rendered(tmp_path, capsys):
    root = tmp_path / "mine"
    root.mkdir()
    arguments = ["--preset", "debug", "--data.dataset", "mfnet", "--data.root", str(root)]
    assert main([*arguments, "--out", str(tmp_path / "runs"), "--device", "cpu"]) == 2
    assert str(root) in capsys.readouterr().err
    assert list(root.iterdir()) == []
