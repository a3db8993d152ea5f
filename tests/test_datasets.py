"""Public datasets: where slices are looked for, what a slice is told about itself, and downloads that are checked."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import anndata
import numpy as np
import pytest
from PIL import Image

import terrazzo as tz
from terrazzo import datasets
from terrazzo.errors import (
    ConfigError,
    DataMissing,
    DownloadError,
    InputError,
    OutputError,
    TerrazzoError,
)

CONTENT = b"counts"
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on the variables or the folder of the one who runs it."""
    monkeypatch.delenv("TERRAZZO_DATA", raising=False)
    monkeypatch.delenv("TERRAZZO_SHARED", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def put(data: Path, dataset: str, name: str, **uns: Any) -> anndata.AnnData:
    adata = anndata.AnnData(np.arange(12, dtype=np.float32).reshape(4, 3))
    adata.obsm["spatial"] = np.array([[0, 0], [100, 0], [0, 100], [100, 100]], dtype=float)
    adata.uns.update(uns)
    (data / dataset).mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(data / dataset / f"{name}.h5ad")
    return adata


def picture(data: Path, dataset: str, name: str, **said: Any) -> None:
    Image.fromarray(np.full((6, 8, 3), 200, np.uint8)).save(data / dataset / f"{name}.png")
    sheet = {"image": f"{name}.png", "scale": 0.5, "spot_diameter_fullres": None, **said}
    (data / dataset / f"{name}.json").write_text(json.dumps(sheet))


# the registry


def test_every_dataset_says_what_it_is() -> None:
    for name, one in datasets.registry().items():
        assert one.name == name
        assert all([one.title, one.slices, one.technology, one.citation, one.license, one.where])
        assert one.organism in ("human", "mouse")
        for file in one.files:
            assert file.url.startswith("https://raw.githubusercontent.com/")
            assert "{" not in file.url
            assert (
                len(file.url.split("/")[5]) == 40
            )  # a whole commit: what it points to never changes
            assert file.sha256 is None
            assert file.size is None
        assert len({f.file for f in one.files}) == len(one.files)


def test_table_has_a_row_a_dataset() -> None:
    table = datasets.table()
    assert list(table["dataset"]) == list(datasets.registry())
    assert table.set_index("dataset").loc["starmap_mpfc", "slices"] == "BZ5, BZ9"


def test_sources_stand_for_each_slice() -> None:
    files = {f.file: f.url for f in datasets.info("her2st").files}
    assert files["data/ST-cnts/B4.tsv.gz"].endswith(
        "85df7411b987a7dec3feff9718b869a7a82091ec/data/ST-cnts/B4.tsv.gz"
    )
    assert "data/ST-pat/lbl/B1_labeled_coordinates.tsv" in files
    assert "data/ST-pat/lbl/B4_labeled_coordinates.tsv" not in files  # B4 was not annotated
    assert datasets.info("hesta_embryo").files == ()


def test_an_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no dataset 'her2s'\. Did you mean 'her2st'"):
        datasets.info("her2s")


def test_every_slice_at_hand_is_in_the_registry_and_is_read(shared_dir: Path) -> None:
    for folder in sorted(p for p in (shared_dir / "data").iterdir() if p.is_dir()):
        assert {p.stem for p in folder.glob("*.h5ad")} <= set(datasets.info(folder.name).slices)


@pytest.mark.parametrize(
    ("dataset", "name", "scale"),
    [
        ("merfish_hypothalamus", "animal1_bregma-0.09", 1.0),
        ("cosmx_nsclc", "CosMx_subset", 0.18),
        ("st_mob", "MOB", 200),
    ],
)
def test_slices_at_hand_are_in_micrometers(
    shared_dir: Path, dataset: str, name: str, scale: float
) -> None:
    tissue = tz.Slice.from_anndata(datasets.load(dataset, name, shared_dir / "data"))
    assert tissue.unit == "um"
    assert tissue.coord_scale == pytest.approx(scale, rel=0.01)


def test_the_image_at_hand_is_found_by_slice(shared_dir: Path) -> None:
    tissue = tz.Slice.from_anndata(
        datasets.load("dlpfc", "151673", shared_dir / "data", image=True)
    )
    assert tissue.image is not None
    assert tissue.image.pixels.shape == (600, 600, 3)
    assert tissue.image.scale == pytest.approx(0.045004502)
    x, y = (tissue.native_coords * tissue.image.scale).T
    assert 0 < x.min() < x.max() < 600
    assert 0 < y.min() < y.max() < 600


# where slices are looked for


def test_the_folder_is_looked_for_in_this_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert datasets.folder() == Path("../shared/data")
    monkeypatch.setenv("TERRAZZO_SHARED", str(tmp_path / "s"))
    assert datasets.folder() == tmp_path / "s" / "data"
    monkeypatch.setenv("TERRAZZO_SHARED", str(tmp_path / "data"))  # the folder itself
    assert datasets.folder() == tmp_path / "data"
    monkeypatch.setenv("TERRAZZO_DATA", str(tmp_path / "d"))
    assert datasets.folder() == tmp_path / "d"
    assert datasets.folder(tmp_path / "given") == tmp_path / "given"


def test_a_slice_is_found_as_h5ad_or_zarr(tmp_path: Path) -> None:
    put(tmp_path / "shared" / "data", "mine", "a.1")
    assert datasets.find("mine", "a.1") == Path("../shared/data/mine/a.1.h5ad")
    adata = put(tmp_path, "mine", "a.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata announces another zarr format
        adata.write_zarr(tmp_path / "mine" / "b.zarr")
    assert datasets.find("mine", "b", tmp_path) == tmp_path / "mine" / "b.zarr"
    assert datasets.load("mine", "b", tmp_path).shape == (4, 3)


def test_a_missing_slice_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(
        DataMissing,
        match=r"at /nowhere/dlpfc/151673.h5ad \(or 151673.zarr\).*does not exist.*label",
    ):
        datasets.find("dlpfc", "151673", "/nowhere")
    put(tmp_path, "dlpfc", "151673")
    with pytest.raises(DataMissing, match=r"Slices there: 151673\. Did you mean '151673'"):
        datasets.find("dlpfc", "15673", tmp_path)
    with pytest.raises(DataMissing, match=r"Slices there: 151673\. It is Human") as raised:
        datasets.find("dlpfc", "151507", tmp_path)  # a slice of the study, not a slip
    assert isinstance(raised.value, InputError)
    assert isinstance(raised.value, TerrazzoError)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataMissing, match="Did you mean 'dlpfc'"):
        datasets.find("dlfpc", "151673", tmp_path)


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".", "..", "a\\b", "a\0b"])
def test_a_name_is_never_a_path(name: str, tmp_path: Path) -> None:
    for given in ((name, "a"), ("a", name)):
        with pytest.raises(ConfigError, match="cannot be the name of a"):
            datasets.find(*given, tmp_path)


# what a slice is told about itself


def test_the_technology_is_said_where_the_file_does_not(tmp_path: Path) -> None:
    put(tmp_path, "xenium_breast_idc", "silent")
    put(tmp_path, "xenium_breast_idc", "speaks", technology="MERSCOPE")
    put(tmp_path, "hesta_embryo", "own")  # the user's own: nobody knows its unit
    put(tmp_path, "mine", "own")
    assert datasets.load("xenium_breast_idc", "silent", tmp_path).uns["technology"] == "Xenium"
    assert datasets.load("xenium_breast_idc", "speaks", tmp_path).uns["technology"] == "MERSCOPE"
    for name in ("hesta_embryo", "mine"):
        assert "technology" not in datasets.load(name, "own", tmp_path).uns


def test_micrometers_are_said_where_the_technology_does_not(tmp_path: Path) -> None:
    put(tmp_path, "cosmx_nsclc", "CosMx_subset")
    tissue = tz.Slice.from_anndata(datasets.load("cosmx_nsclc", "CosMx_subset", tmp_path))
    assert (tissue.unit, tissue.coord_scale) == ("um", 0.18)
    assert tissue.image is None


def test_an_image_is_put_where_scanpy_puts_it(tmp_path: Path) -> None:
    put(tmp_path, "mine", "a")
    picture(tmp_path, "mine", "a", spot_diameter_fullres=65.0)
    assert "spatial" not in datasets.load("mine", "a", tmp_path).uns
    adata = datasets.load("mine", "a", tmp_path, image=True)
    entry = adata.uns["spatial"]["a"]
    assert entry["images"]["hires"].shape == (6, 8, 3)
    assert entry["scalefactors"] == {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 65.0}
    assert tz.Slice.from_anndata(adata).image.scale == 0.5


def test_no_image_is_no_error_and_a_library_is_kept(tmp_path: Path) -> None:
    library = {"lib": {"scalefactors": {"spot_diameter_fullres": 90.0}}}
    put(tmp_path, "mine", "a", spatial=library)
    assert list(datasets.load("mine", "a", tmp_path, image=True).uns["spatial"]) == ["lib"]
    picture(tmp_path, "mine", "a", spot_diameter_fullres=65.0)
    entry = datasets.load("mine", "a", tmp_path, image=True).uns["spatial"]["lib"]
    assert entry["scalefactors"] == {"spot_diameter_fullres": 90.0, "tissue_hires_scalef": 0.5}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"image": "../a.png"}, "must name a file of the same folder"),
        ({"image": "a.exe"}, "must name a file of the same folder"),
        ({"image": 3}, "must name a file of the same folder"),
        ({"image": "other.png"}, "No image file at"),
        ({"scale": -1}, "scale must be a positive finite number"),
        ({"scale": None}, "scale must be a positive finite number"),
    ],
)
def test_a_bad_sheet_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    put(tmp_path, "mine", "a")
    picture(tmp_path, "mine", "a", **said)
    with pytest.raises(InputError, match=message):
        datasets.load("mine", "a", tmp_path, image=True)
    (tmp_path / "mine" / "a.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        datasets.load("mine", "a", tmp_path, image=True)
    (tmp_path / "mine" / "a.json").write_text("[]")
    with pytest.raises(InputError, match="must name a file of the same folder"):
        datasets.load("mine", "a", tmp_path, image=True)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "mine", "a")
    picture(tmp_path, "mine", "a")
    file = tmp_path / "mine" / "a.png"
    start, _, rest = file.read_bytes().partition(b"IHDR")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + rest[8:13]
    file.write_bytes(start + header + struct.pack(">I", zlib.crc32(header)) + rest[17:])
    with pytest.raises(InputError, match="decompression bomb"):
        datasets.load("mine", "a", tmp_path, image=True)


# downloads, over HTTP from this machine


class Files(BaseHTTPRequestHandler):
    """Serves what it is told to: whole, cut short, or slow to refuse."""

    content: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    cut: ClassVar[bool] = False

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = self.content.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if content is not None:
            self.wfile.write(content[: len(content) // 2] if self.cut else content)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Files]]:
    """A server on this machine in GitHub's place, that has one file."""
    handler = type("Handler", (Files,), {"content": {}, "asked": [], "cut": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(datasets, "RAW", f"http://127.0.0.1:{server.server_address[1]}")
    handler.content = {"/" + datasets.info("st_mob").files[0].url.split("/", 3)[3]: CONTENT}
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_file_is_downloaded_once_and_checked(served: type[Files], tmp_path: Path) -> None:
    for _ in range(2):
        path = datasets.fetch("st_mob", "data/mOB.rda", tmp_path / "d", sha256=SUM.upper())
    assert path == tmp_path / "d" / "st_mob" / "data" / "mOB.rda"
    assert path.read_bytes() == CONTENT
    assert len(served.asked) == 1
    assert files_of(tmp_path / "d") == ["st_mob/data/mOB.rda"]


def test_a_part_of_a_file_is_downloaded_anew(served: type[Files], tmp_path: Path) -> None:
    place = tmp_path / "st_mob" / "data" / "mOB.rda"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[:3])
    assert datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256=SUM).read_bytes() == CONTENT
    assert len(served.asked) == 1


def test_the_cache_is_where_it_is_said_to_be(
    served: type[Files], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TERRAZZO_CACHE", str(tmp_path / "c"))
    assert (
        datasets.fetch("st_mob", "data/mOB.rda", sha256=SUM)
        == tmp_path / "c" / "st_mob" / "data" / "mOB.rda"
    )
    monkeypatch.delenv("TERRAZZO_CACHE")
    assert "terrazzo" in str(datasets.cache_folder())


def test_another_content_is_refused_and_what_was_there_stays(
    served: type[Files], tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match="does not have the sha256 0000"):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256="0" * 64)
    assert files_of(tmp_path) == []
    place = tmp_path / "st_mob" / "data" / "mOB.rda"
    place.write_bytes(b"mine")
    with pytest.raises(DownloadError):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256="0" * 64)
    assert place.read_bytes() == b"mine"
    assert files_of(tmp_path) == ["st_mob/data/mOB.rda"]


def test_a_download_that_is_cut_short_leaves_nothing(served: type[Files], tmp_path: Path) -> None:
    served.cut = True
    for options in ({"sha256": SUM}, {"unchecked": True}):
        with pytest.raises(DownloadError, match=r"could not be downloaded .*put it at") as told:
            datasets.fetch("st_mob", "data/mOB.rda", tmp_path, **options)
        assert "\n" not in str(told.value)
        assert files_of(tmp_path) == []
    served.cut = False
    assert datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256=SUM).read_bytes() == CONTENT


def test_an_interrupt_leaves_nothing(
    served: type[Files], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(self: Any, amount: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("terrazzo.progress.Stage.__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256=SUM)
    assert files_of(tmp_path) == []


def test_no_network_says_what_to_put_where(
    served: type[Files], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets, "RAW", "http://127.0.0.1:9")
    place = tmp_path / "st_mob" / "data" / "mOB.rda"
    with pytest.raises(
        DownloadError, match=r"http://127\.0\.0\.1:9/.*mOB\.rda could not be downloaded"
    ) as told:
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256=SUM)
    assert f"put it at {place}" in str(told.value)
    place.write_bytes(CONTENT)  # as it says
    assert datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256=SUM) == place


def test_a_file_that_is_gone_from_its_source(served: type[Files], tmp_path: Path) -> None:
    served.content = {}
    with pytest.raises(DownloadError, match="404"):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256=SUM)


def test_without_a_sum_nothing_is_downloaded(served: type[Files], tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"nobody has checked the sha256 of http.*pass sha256=.*unchecked=True"
    ):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path)
    with pytest.raises(ConfigError, match="must be 64 hexadecimal digits"):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256="abc")
    assert served.asked == []


def test_an_unchecked_file_is_held_to_its_first_sum(served: type[Files], tmp_path: Path) -> None:
    path = datasets.fetch("st_mob", "data/mOB.rda", tmp_path, unchecked=True)
    assert path.with_name("mOB.rda.sha256").read_text() == f"{SUM}  mOB.rda\n"
    path.unlink()
    assert (
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path).read_bytes() == CONTENT
    )  # the note is enough
    path.unlink()
    served.content = dict.fromkeys(served.content, b"other")
    with pytest.raises(DownloadError, match=SUM):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, unchecked=True)


def test_a_known_sum_needs_no_other_and_admits_none(
    served: type[Files], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = datasets.Source("a/b", "0" * 40, ["x.gz"], sha256={"x.gz": SUM}, size={"x.gz": 6})
    made = datasets.Dataset("t", ["s"], "ST", "mouse", "c", "l", "w", sources=[source], name="made")
    monkeypatch.setattr(datasets, "registry", lambda: {"made": made})
    served.content = {f"/a/b/{'0' * 40}/x.gz": CONTENT}
    assert made.files[0].size == 6
    assert datasets.fetch("made", "x.gz", tmp_path).read_bytes() == CONTENT
    with pytest.raises(ConfigError, match=r"sha256 of x\.gz is"):
        datasets.fetch("made", "x.gz", tmp_path, sha256="0" * 64)


def test_a_folder_that_cannot_be_written(
    served: type[Files], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pooch.retrieve", refuse)
    with pytest.raises(OutputError, match=r"cannot be written .*TERRAZZO_CACHE"):
        datasets.fetch("st_mob", "data/mOB.rda", tmp_path, sha256=SUM)


def test_a_file_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no public file 'data/mob\.rda'\. Did you mean 'data/mOB\.rda'"
    ):
        datasets.fetch("st_mob", "data/mob.rda", tmp_path, sha256=SUM)
    with pytest.raises(ConfigError, match="supplied by the user"):
        datasets.fetch("hesta_embryo", "x", tmp_path, sha256=SUM)
