from __future__ import annotations

import json
from importlib import metadata

from typer.testing import CliRunner

from patchnpack.cli import app
from patchnpack.doctor import diagnose, findings

run = CliRunner().invoke


def test_version_is_the_installed_one() -> None:
    result = run(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"patchnpack {metadata.version('patchnpack')}\n")


def test_doctor_prints_every_finding_within_80_columns() -> None:
    result = run(app, ["doctor"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
    words = " ".join(result.output.split())
    for subject, finding in findings(diagnose()):
        assert subject in words
        assert all(word in words for word in finding.split())


def test_doctor_prints_extras_in_square_brackets_as_they_are() -> None:
    result = run(app, ["doctor"], env={"COLUMNS": "200"})
    assert diagnose().missing["ray"] == () or "'patchnpack[ray]'" in result.output


def test_doctor_json_holds_the_diagnosis() -> None:
    result = run(app, ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["versions"] == diagnose().versions
    assert found["missing"].keys() == diagnose().missing.keys()


def test_an_unknown_verb_is_refused_by_name() -> None:
    result = run(app, ["diagnose"])
    assert result.exit_code == 2
    assert "No such command 'diagnose'" in result.output
