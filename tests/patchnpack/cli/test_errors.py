from __future__ import annotations

import sys

import pytest
import typer

from patchnpack.cli import main as cli
from patchnpack.cli.errors import flags_of, in_flags


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("report", "seq_len is 0; it must be at least 1", "--seq-len is 0; it must be at least 1"),
        (
            "report",
            "tokens 9, more than seq_len 4; raise seq_len or patch_size",
            "--seq-len 4; raise --seq-len or --pat",
        ),
        ("report", "use Square(3), raise seq_len, or choose oversize='drop'", "or choose --oversize drop"),
        ("report", "choose oversize='shrink', 'drop' or 'skip'", "choose --oversize 'shrink', 'drop' or 'skip'"),
        (
            "report",
            "give storage_options={'a': {'b': ...}, 'c': True}",
            "give --storage-options a.b=... --storage-options c=",
        ),
        (
            "train",
            "give exactly one of epochs, steps and minutes",
            "give exactly one of --epochs, --steps and --minutes",
        ),
        (
            "train",
            "give another `out`, or resume=False to delete it",
            "give another --out, or --no-resume to delete it",
        ),
        ("report", "Packing(seq_len=64, fill='trim'); choose fill='none'", "fill='trim'); choose --fill none"),
        ("train", "tensorboard=True needs the extra `tensorboard`", "--tensorboard needs the extra `tensorboard`"),
        ("train", "width 25 is not a multiple of heads 2", "--width 25 is not a multiple of --heads 2"),
        ("train", "or give label=None", "or give --label ''"),
        ("pack", "or give label=None", "or leave out --label"),
        ("pack", "give label=, classes=, or the number itself", "give --label, --classes, or the number itself"),
    ],
)
def test_arguments_become_flags(command: str, message: str, expected: str) -> None:
    assert expected in in_flags(message, flags_of(_parameters(command)))


@pytest.mark.parametrize(
    "message",
    [
        "shard '/data/batch_size/x.tar' does not exist",
        "seq_len.tar cannot be read",
        "label 7 is not among the 3 classes",
        "label 'cat' (of 'cls') is not a number",
        "an image is damaged; leave the shard out",
        "give the loader extras=['txt']",
        "use Packing(token_drop=NoDrop())",
        "pk was packed with Packing(seq_len=64, patch_size=PatchSizes(sizes=(8, 16), weights=None), oversize='drop')",
    ],
)
def test_words_that_are_not_arguments_stay(message: str) -> None:
    assert in_flags(message, flags_of(_parameters("train"))) == message


def test_a_library_error_reaches_the_user_with_the_flags_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["patchnpack", "-q", "report", "absent.tar", "--max-images", "0"])
    with pytest.raises(SystemExit):
        cli.run()
    assert capsys.readouterr().err == "error: --max-images is 0; it must be at least 1\n"


def _parameters(command: str) -> list[object]:
    return list(typer.main.get_command(cli.app).commands[command].params)  # type: ignore[attr-defined]
