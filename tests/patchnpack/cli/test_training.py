from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from patchnpack.cli.main import app
from patchnpack.cli.options.run_file import read_run_file
from patchnpack.models import NaViT
from patchnpack.trainer import Classification, load_checkpoint

Shards = Callable[..., str]
SMALL = [
    "--width=24",
    "--depth=1",
    "--heads=2",
    "--seq-len=64",
    "--device=cpu",
    "--precision=float32",
    "--patch-size=8",
]


def ran(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def run(shards: Shards, tmp_path: Path) -> Path:
    """The checkpoint of a short run at native:resize, patch size 8."""
    ran("train", shards(), *SMALL, "--resolution=native:resize", "--epochs=1", "-o", tmp_path / "run")
    return tmp_path / "run" / "checkpoint.pt"


def test_run_toml_reproduces_the_run(shards: Shards, tmp_path: Path, run: Path) -> None:
    losses = torch.load(run, weights_only=True)["state"]["losses"]
    ran("train", "--config", tmp_path / "run" / "run.toml", "-o", tmp_path / "again")
    again = torch.load(tmp_path / "again" / "checkpoint.pt", weights_only=True)["state"]["losses"]
    assert torch.equal(again, losses)
    texts = [(tmp_path / name / "run.toml").read_text() for name in ("run", "again")]
    assert texts[0] == texts[1].replace("/again", "/run")


def test_run_toml_holds_no_credentials(shards: Shards, tmp_path: Path) -> None:
    given = ["--epochs=1", "--storage-options", "secret=hunter2", "-o", tmp_path / "run"]
    ran("train", shards(), *SMALL, "--resolution=native:resize", *given)
    for path in (tmp_path / "run").iterdir():
        assert b"hunter2" not in path.read_bytes()


def test_eval_writes_each_image_once_with_its_logits(shards: Shards, tmp_path: Path, run: Path) -> None:
    out = tmp_path / "predictions.parquet"
    printed = ran("eval", run, shards("v.tar", images=20, broken=2), "-o", out, "--device=cpu", "--precision=float32")
    table = pq.read_table(out)
    assert table.column_names == ["key", "row", "label", "prediction", "logits"]
    assert table["row"].to_pylist() == list(range(2, 20)), "bad images are excluded"
    assert table["key"].to_pylist() == [f"{i:03d}" for i in range(2, 20)]
    assert table["label"].to_pylist() == [i % 2 for i in range(2, 20)]
    logits = torch.tensor(table["logits"].to_pylist())
    assert logits.shape == (18, 2)
    assert logits.argmax(-1).tolist() == table["prediction"].to_pylist()
    hits = sum(x == y for x, y in zip(table["label"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    assert f"accuracy: {hits / 18:.4f} on 18 labelled images" in printed
    assert "18 images, 2 bad images" in printed
    one_bad = ran("eval", run, shards("w.tar", images=2, broken=1), "-o", out, "--device=cpu")
    assert "1 image, 1 bad image, 0 skipped" in one_bad
    assert re.search(r"accuracy: [01]\.0000 on 1 labelled image\n", one_bad)


def test_features_are_the_input_of_the_head(shards: Shards, tmp_path: Path, run: Path) -> None:
    out = tmp_path / "features.parquet"
    flags = ["--device=cpu", "--precision=float32"]
    ran("features", run, shards("v.tar"), "-o", out, *flags)
    ran("eval", run, shards("v.tar"), "-o", tmp_path / "p.parquet", *flags)
    table, logits = pq.read_table(out), torch.tensor(pq.read_table(tmp_path / "p.parquet")["logits"].to_pylist())
    assert table.column_names == ["key", "row", "feature"]
    features = torch.tensor(table["feature"].to_pylist())
    head = load_checkpoint(run).model.head
    assert isinstance(head, torch.nn.Linear)
    torch.testing.assert_close(
        torch.nn.functional.linear(features, head.weight, head.bias), logits, rtol=1e-4, atol=1e-5
    )


def test_eval_defaults_to_the_packing_of_the_run(shards: Shards, tmp_path: Path, run: Path) -> None:
    v, outs = shards("v.tar"), [tmp_path / f"{i}.parquet" for i in range(3)]
    flags = ["--device=cpu", "--precision=float32"]
    ran("eval", run, v, "-o", outs[0], *flags)
    ran("eval", run, v, "-o", outs[1], *flags, "--resolution=native:resize", "--seq-len=64")
    ran("eval", run, v, "-o", outs[2], *flags, "--resolution=fit:4")
    default, explicit, other = (pq.read_table(out)["logits"].to_pylist() for out in outs)
    assert default == explicit
    assert default != other


def test_sweep_reports_accuracy_and_tokens_per_resolution(shards: Shards, tmp_path: Path, run: Path) -> None:
    out, plot = tmp_path / "sweep.csv", tmp_path / "sweep.png"
    printed = ran(
        "sweep", run, shards("v.tar"), "--resolutions=fit:4,fit:16", "-o", out, "--plot", plot, "--device=cpu"
    )
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert [line[:2] for line in lines] == [["patch_size", "resolution"], ["8", "fit:4"], ["8", "fit:16"]]
    tokens = [float(line[2]) for line in lines[1:]]
    assert 2 < tokens[0] <= 4 < tokens[1] <= 16
    assert "tokens per image" in printed
    with Image.open(plot) as picture:
        assert picture.width == 900


def test_tensorboard_receives_training_loader_and_validation_scalars(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--epochs=2", "--tensorboard", "--log-steps=1", "--validation", shards("v.tar"), "-o", out]
    ran("train", shards(), *SMALL, *flags)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for tag in ("loss", "accuracy", "lr", "gradient_norm"):
        assert f"train/{tag}" in tags
    for tag in ("images_per_s", "tokens_per_s", "padding", "wait_s", "bad_images", "cache_hits", "skipped_oversize"):
        assert f"loader/{tag}" in tags
    assert {"validation/loss", "validation/accuracy"} <= tags
    losses = torch.load(out / "checkpoint.pt", weights_only=True)["state"]["losses"]
    assert [event.value for event in events.Scalars("train/loss")] == losses.tolist()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, len(losses) + 1))


def test_missing_tensorboard_raises_with_the_extra(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'patchnpack[tensorboard]'")):
        ran("train", shards(), *SMALL, "--epochs=1", "--tensorboard", "-o", tmp_path / "run")


def test_a_student_learns_from_a_teacher_of_another_patch_size(shards: Shards, tmp_path: Path, run: Path) -> None:
    flags = [*SMALL[:-1], "--patch-size=4", "--resolution=native:crop", "--steps=3", "--seq-len=512"]
    ran("train", shards(), *flags, "--teacher", run, "--temperature=2", "-o", tmp_path / "student")
    student: NaViT = load_checkpoint(tmp_path / "student" / "checkpoint.pt").model
    assert student.config.patch_size == 4
    with pytest.raises(ValueError, match=r"an image has \d+ of its \d+ tokens"):
        ran("train", shards(), *flags, "--teacher", run, "--token-drop=0.5", "-o", tmp_path / "dropped")


def test_init_starts_from_a_checkpoint(shards: Shards, tmp_path: Path, run: Path) -> None:
    rest = ["--seq-len=64", "--patch-size=8", "--device=cpu", "--steps=1", "--lr=1e-12", "--init", run]
    ran("train", shards(), *rest, "-o", tmp_path / "tuned", "--num-classes=3")
    old, new = (load_checkpoint(path).model for path in (run, tmp_path / "tuned" / "checkpoint.pt"))
    assert (new.config.width, new.config.num_classes) == (24, 3)
    torch.testing.assert_close(new.patch_embed.weight, old.patch_embed.weight, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"width is 48, but .* has 24; leave it out, or give other weights"):
        ran("train", shards(), *rest, "--width=48", "-o", tmp_path / "wide")


def test_image_text_training_runs(shards: Shards, tmp_path: Path) -> None:
    flags = ["--text=cls", "--epochs=2", "--validation", shards("v.tar"), "-o", tmp_path / "run"]
    with pytest.raises(ValueError, match=r"member 'cls' holds bytes, not text"):
        ran("train", shards(), *SMALL, *flags)
    import tarfile

    shard = Path(shards("texts.tar"))
    renamed = shard.with_name("renamed.tar")
    with tarfile.open(shard) as old, tarfile.open(renamed, "w") as new:
        for member in old:
            data = old.extractfile(member)
            member.name = member.name.replace(".cls", ".txt")
            new.addfile(member, data)
    flags = ["--text=txt", "--epochs=2", "--validation", str(renamed), "-o", str(tmp_path / "run")]
    assert "accuracy" in ran("train", renamed, *SMALL, *flags)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint.model.config.num_classes == 0
    assert checkpoint.state["objective"]["name"] == "Contrastive"
    with pytest.raises(ValueError, match=r"the model has no classes, so it cannot predict any"):
        ran("eval", tmp_path / "run" / "checkpoint.pt", renamed, "-o", tmp_path / "p.parquet", "--label=")
    ran("features", tmp_path / "run" / "checkpoint.pt", renamed, "-o", tmp_path / "absent" / "f.parquet")
    assert (tmp_path / "absent" / "f.parquet").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text=txt", "--mixup=0.2"], r"mixup is 0.2 and text is given, but image-text training has no classes"),
        (["--text=txt", "--num-classes=3"], r"num_classes is 3 and text is given"),
        (["--underlying=32"], r"underlying is 32, but patch_size is 8; underlying needs several patch sizes"),
        (["--resolution=side:16:32"], r"draws sizes, so validation would differ each time; give eval_resolution"),
        (["--augment=9"], r"augment is '9'; it must be COUNT:MAGNITUDE"),
        (["--init=absent.pt"], r"absent\.pt"),
    ],
)
def test_contradicting_options_raise_before_training(
    flags: list[str], message: str, shards: Shards, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ran("train", shards(), *SMALL, "--epochs=1", "--validation", shards("v.tar"), "-o", tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "run.toml").exists()


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("eval", ["-o", "p.csv"], r"--out is 'p\.csv'; it must end in \.parquet"),
        ("eval", ["--resolution=crop:16"], r"which draws sizes; use one that does not"),
        ("eval", ["--patch-size=8,16"], r"evaluate one, or compare several with `patchnpack sweep`"),
        ("features", ["-o", "p.csv"], r"must end in \.parquet"),
        ("sweep", ["-o", "s.txt"], r"must end in \.csv"),
        ("sweep", ["--plot", "s.pdf"], r"must end in \.png"),
    ],
)
def test_invalid_evaluation_options_raise(
    command: str, flags: list[str], message: str, shards: Shards, run: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ran(command, run, shards("v.tar"), *flags)


def test_train_resumes_an_existing_run(shards: Shards, tmp_path: Path, run: Path) -> None:
    content = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    printed = ran("train", "--config", tmp_path / "run" / "run.toml", "--resume")
    assert f"loss: {content['loss']:.4g}" in printed
    with pytest.raises(ValueError, match=r"with lr 0.0002, but this run has 0.1"):
        ran("train", "--config", tmp_path / "run" / "run.toml", "--lr=0.1")
    ran("train", "--config", tmp_path / "run" / "run.toml", "--lr=0.1", "--no-resume")
    assert load_checkpoint(run).train_config["lr"] == 0.1


def test_a_finished_run_is_extended_by_more_epochs(shards: Shards, tmp_path: Path, run: Path) -> None:
    steps = load_checkpoint(run).step
    ran("train", "--config", tmp_path / "run" / "run.toml", "--epochs=3")
    extended = load_checkpoint(run)
    assert (extended.step, extended.train_config["epochs"]) == (3 * steps, 3)
    assert [row["epoch"] for row in extended.state["history"]] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"with epochs 3, but this run has 1"):
        ran("train", "--config", tmp_path / "run" / "run.toml", "--epochs=1")


def test_max_grid_and_position_are_flags_stored_in_run_toml(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["train", shards(), *SMALL, "--steps=1", "-o", out]
    with pytest.raises(ValueError, match=r"patches per side, .* end at max_grid 3; raise max_grid to at least [4-9]"):
        ran(*common, "--max-grid=3")
    ran(*common, "--max-grid=9")
    assert read_run_file(out / "run.toml")["max_grid"] == 9
    assert load_checkpoint(out / "checkpoint.pt").model.config.max_grid == 9
    ran(*common, "--position=fractional", "--max-grid=3", "-o", tmp_path / "second")
    assert load_checkpoint(tmp_path / "second" / "checkpoint.pt").model.config.position == "fractional"


def test_skipped_steps_are_printed(shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, steps = Classification.outcome, iter((1.0, math.nan, 1.0))

    def poisoned(self: Classification, *inputs: Any) -> Any:
        found = outcome(self, *inputs)
        return found._replace(total=found.total * next(steps)) if torch.is_grad_enabled() else found

    monkeypatch.setattr(Classification, "outcome", poisoned)
    printed = ran("train", shards(), *SMALL, "--steps=3", "-o", tmp_path / "out", "--skip-bad-steps=1")
    assert "skipped steps: 1\n" in printed
