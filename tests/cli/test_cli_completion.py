"""``terrazzo completion``: scripts that name verbs and options, where they go, and what a real bash makes of one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from terrazzo.cli.app import app

VERBS = [name for name in app if not name.startswith("-")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_verbs_and_options(call: Any, shell: str) -> None:
    code, script, err = call("completion", shell)
    assert (code, err) == (0, "")
    assert "terrazzo" in script
    assert [verb for verb in VERBS if verb not in script] == []
    for word in ("verify", "recipes", "gene-dictionaries", "use-rep", "overwrite", "leiden"):
        assert word in script, word


def test_bash_completes(call: Any, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    script = tmp_path / "terrazzo.bash"
    script.write_text(call("completion", "bash")[1])
    ask = f"""
source {script}
spec=$(complete -p terrazzo); function=${{spec##*-F }}; function=${{function%% *}}
complete_words() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()
    "$function" terrazzo "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"; echo "${{COMPREPLY[@]}}"
}}
complete_words terrazzo emb
complete_words terrazzo corpus v
complete_words terrazzo domains --use
"""
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["embed", "verify", "--use-rep"], done.stderr


def test_it_is_installed(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    code, out, err = call("completion", "fish", "--install")
    assert (code, err) == (0, "")
    (script,) = tmp_path.rglob("terrazzo.fish")
    assert str(script) in out
    assert "embed" in script.read_text()


def test_a_place_that_cannot_be_written(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    code, out, err = call("completion", "fish", "--install")
    assert (code, out) == (2, "")
    assert "leave out --install" in err
