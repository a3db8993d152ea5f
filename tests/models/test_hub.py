"""Checkpoints on the hub, over HTTP to a stand-in on this machine: pushed, fetched, pinned, offline, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_stand_in import Hub, Repo, serve

import terrazzo as tz
from terrazzo.cli import main
from terrazzo.errors import CheckpointError, OutputError
from terrazzo.models.hub import FILES, is_hub_name, locate

NAME = "someone/tiny-stofm"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in, and a cache and token of its own; nothing else can be reached."""
    from huggingface_hub import constants

    with serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            running.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", running.allowed)
        yield running


@pytest.fixture
def pushed(hub: Hub, tiny_model: Any) -> str:
    return tiny_model().push_to_hub(NAME)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# there and back


def test_what_is_pushed_comes_back(hub: Hub, pushed: str, tiny_model: Any, simulated: Any) -> None:
    model = tiny_model()
    assert hub.repos[NAME].private
    sha = hub.repos[NAME].refs["main"]
    assert pushed == f"{NAME}@{sha}"
    assert sorted(hub.repos[NAME].commits[sha]) == sorted(FILES)
    for loaded in (tz.load(NAME), tz.SToFM.from_pretrained(NAME), tz.load(pushed)):
        assert loaded.fingerprint() == model.fingerprint()
        assert loaded.provenance == {**model.provenance, "hub": NAME, "hub_commit": sha}
    adata = tz.load(NAME).embed(simulated(50), progress=False)
    np.testing.assert_array_equal(
        adata.obsm["X_stofm"], model.embed(simulated(50), progress=False).obsm["X_stofm"]
    )
    record = adata.uns["terrazzo"]["X_stofm"]
    assert (record["hub"], record["hub_commit"]) == (NAME, sha)
    assert "hub" not in model.embed(simulated(50), progress=False).uns["terrazzo"]["X_stofm"]


def test_the_commit_stays_with_a_copy(pushed: str, tmp_path: Path) -> None:
    copy = tz.load(NAME).save_pretrained(tmp_path / "copy")
    assert tz.load(copy).provenance["hub_commit"] == pushed.partition("@")[2]
    assert pushed.partition("@")[2] in (copy / "README.md").read_text()


def test_a_revision_is_what_it_was(hub: Hub, pushed: str, tiny_model: Any) -> None:
    first, other = tiny_model(), tiny_model(subslice_size=55)
    hub.repos[NAME].refs["v1"] = pushed.partition("@")[2]  # a tag
    second = other.push_to_hub(NAME)
    assert second != pushed
    assert tz.load(NAME).fingerprint() == other.fingerprint()
    for old in (
        tz.load(pushed),
        tz.load(NAME, revision="v1"),
        tz.load(f"{NAME}@v1"),
        tz.load(NAME, revision=pushed[-40:]),
    ):
        assert old.fingerprint() == first.fingerprint()
        assert old.provenance["hub_commit"] == pushed[-40:]
    with pytest.raises(CheckpointError, match="revision= another one"):
        tz.load(f"{NAME}@v1", revision="v2")


def test_a_branch_is_made(hub: Hub, pushed: str, tiny_model: Any) -> None:
    other = tiny_model(subslice_size=55)
    assert (
        other.push_to_hub(NAME, revision="try", message="another split")
        == f"{NAME}@{hub.repos[NAME].refs['try']}"
    )
    assert tz.load(NAME).fingerprint() == tiny_model().fingerprint()
    assert tz.load(f"{NAME}@try").fingerprint() == other.fingerprint()
    assert other.push_to_hub(NAME, revision="try").startswith(
        NAME
    )  # there already, and nothing new


def test_a_public_repository_stays_public(hub: Hub, tiny_model: Any) -> None:
    hub.repos[NAME] = Repo(private=False)
    hub.repos[NAME].commit({".gitattributes": b"*.safetensors filter=lfs"})
    tiny_model().push_to_hub(NAME)
    assert not hub.repos[NAME].private
    tiny_model().push_to_hub("someone/open", private=False)
    assert not hub.repos["someone/open"].private


def test_the_card_goes_with_it(hub: Hub, tiny_model: Any) -> None:
    model = tz.SToFM(tiny_model().config, tiny_model().vocabulary)
    sha = model.push_to_hub(NAME, license="CC-BY-4.0").partition("@")[2]
    card = hub.repos[NAME].commits[sha]["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "terrazzo"
    assert front["license"] == "cc-by-4.0"
    assert "stofm" in front["tags"]
    assert f'tz.load("{NAME}")' in card
    assert (
        json.loads(hub.repos[NAME].commits[sha]["config.json"])["provenance"]["license"]
        == "CC-BY-4.0"
    )


def test_only_what_is_needed_is_fetched_and_once(hub: Hub, pushed: str) -> None:
    hub.repos[NAME].commit({"notes.txt": b"x" * 1000})
    tz.load(NAME)
    fetched = [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    assert sorted(p.rsplit("/", 1)[1] for p in fetched) == sorted(FILES)
    hub.asked.clear()
    tz.load(NAME)
    assert not [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]


def test_the_command_line_takes_hub_names(
    hub: Hub, pushed: str, simulated: Any, tmp_path: Path
) -> None:
    import anndata

    simulated(60).write_h5ad(tmp_path / "a.h5ad")
    assert (
        main(["embed", str(tmp_path / "a.h5ad"), "--model", pushed, "--out", str(tmp_path / "out")])
        == 0
    )
    assert (
        anndata.read_h5ad(tmp_path / "out" / "a.h5ad").uns["terrazzo"]["X_stofm"]["hub_commit"]
        == pushed[-40:]
    )
    assert main(["info", str(tmp_path / "a.h5ad"), "--model", NAME]) == 0


# without a network


def test_offline_reads_the_cache(
    hub: Hub, pushed: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tz.load(NAME)
    hub.asked.clear()
    offline(monkeypatch)
    loaded = tz.load(NAME)
    assert loaded.fingerprint() == tiny_model().fingerprint()
    assert loaded.provenance["hub_commit"] == pushed[-40:]
    assert tz.load(pushed).fingerprint() == tiny_model().fingerprint()
    assert hub.asked == []
    with pytest.raises(
        CheckpointError,
        match=r"HF_HUB_OFFLINE is set, and someone/other is not complete in the cache",
    ) as told:
        tz.load("someone/other")
    assert str(tmp_path / "cache") in one_line(told)
    with pytest.raises(CheckpointError, match="at revision v7 is not complete"):
        tz.load(f"{NAME}@v7")
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE"):
        tiny_model().push_to_hub(NAME)


def test_the_cache_serves_when_the_hub_is_down(hub: Hub, pushed: str, tiny_model: Any) -> None:
    tz.load(NAME)
    hub.fail = "/api/models"
    assert tz.load(NAME).fingerprint() == tiny_model().fingerprint()


def test_nothing_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: Hub, tiny_model: Any
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"http://127\.0\.0\.1:9 cannot be reached.*pass their folder"
    ) as told:
        tz.load(NAME)
    one_line(told)
    with pytest.raises(OutputError, match="could not be written on the hub") as told:
        tiny_model().push_to_hub(NAME)
    one_line(told)


# refused


def test_what_is_not_there_is_said(hub: Hub, pushed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CheckpointError, match=r"is not a local folder.*someone/none is not on http"
    ) as told:
        tz.load("someone/none")
    assert "hf auth login" in one_line(told)
    with pytest.raises(CheckpointError, match="has no revision 'v9'") as told:
        tz.load(NAME, revision="v9")
    one_line(told)
    hub.gated.add(NAME)
    with pytest.raises(CheckpointError, match="accept their terms") as told:
        tz.load(NAME)
    one_line(told)


def test_a_repository_that_is_no_checkpoint(hub: Hub) -> None:
    hub.repos["someone/bert"] = Repo()
    hub.repos["someone/bert"].commit({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(
        CheckpointError,
        match=r"not a terrazzo checkpoint: it lacks model\.safetensors, vocab\.parquet",
    ):
        tz.load("someone/bert")


def test_a_push_that_is_refused(hub: Hub, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="is not a name on the hub"):
        tiny_model().push_to_hub("stofm")
    model = tz.SToFM(tiny_model().config, tiny_model().vocabulary)
    with pytest.raises(OutputError, match=r"license.* must be one of") as told:
        model.push_to_hub(NAME, license="my own")
    one_line(told)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(OutputError, match="hf auth login") as told:
        tiny_model().push_to_hub("someone/new")
    one_line(told)


def test_the_hub_is_down(hub: Hub, tiny_model: Any) -> None:
    hub.fail = "/api"
    with pytest.raises(CheckpointError, match="someone/tiny-stofm") as told:
        tz.load(NAME)
    one_line(told)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/b", True),
        ("a/b@v1", True),
        ("a/b@refs/pr/3", True),
        ("a", False),
        ("./b", False),
        ("../b", False),
        ("/a/b", False),
        ("a/b/c", False),
        ("~/b", False),
        ("a/b c", False),
    ],
)
def test_which_words_mean_the_hub(
    source: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(source) is expected
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not is_hub_name("a/b")
    assert locate("a/b").folder == Path("a/b")


@pytest.mark.slow
def test_as_a_user_has_it(hub: Hub, pushed: str, tmp_path: Path) -> None:
    """The variables of the environment, in a process of its own: fetched, then offline from the cache."""
    code = f"import terrazzo as tz; print(tz.load({NAME!r}).provenance['hub_commit'])"
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": hub.allowed,
    }
    for more in ({}, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**env, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == pushed[-40:]
