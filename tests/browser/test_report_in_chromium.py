"""The report in a real browser: it draws, answers pointer and keyboard, links its pictures, prints, and stays quiet."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import terrazzo as tz

pytestmark = pytest.mark.usefixtures("quiet_figures")
DIGEST = """
const bytes = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
let [n, digest] = [0, 0];
for (let i = 0; i < bytes.length; i++) { digest = (digest * 31 + bytes[i]) | 0; n += i % 4 === 3 && bytes[i] > 0; }
return [n, digest];
"""
PIXEL = """
const plane = viewer.tissue, [x, y] = arguments[0].map((value) => value * plane.density);
return [...plane.back.getContext("2d").getImageData(x, y, 1, 1).data];
"""
SLIDE = """
const slider = document.querySelectorAll("input[type=range]")[arguments[0]];
slider.value = arguments[1];
slider.dispatchEvent(new Event("input"));
"""
FETCHED = (
    "return performance.getEntriesByType('resource')"
    ".map((e) => e.name).filter((name) => !name.startsWith('data:'))"
)
HOSTILE = "</script><img src=x onerror=alert(1)>"
LOG = "step,epoch,train/own,val/own,val/own_slice_mean\n0,0,1.0,0.9,0.8\n10,0,0.7,0.75,0.8\n20,1,0.6,0.62,0.8\n"


@pytest.fixture(scope="session")
def small(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, simulated: Any
) -> tuple[Path, AnnData]:
    """Write a report of a slice with histology, two embeddings, domains, hostile names, results and losses."""
    folder = tmp_path_factory.mktemp("report")
    adata = simulated(300, 60, image=True, image_px=400)
    for name in ("pca", "t3"):
        tz.Baseline(name, n_components=10).embed(adata)
    adata.obs["X_t3_domain"] = pd.Categorical(np.where(adata.obsm["X_t3"][:, 0] > 0, "0", "1"))
    adata.obs["hostile"] = pd.Categorical(np.where(np.arange(300) % 2, HOSTILE, "plain"))
    adata.obs["score"] = np.linspace(0, 1, 300)
    image = np.array(next(iter(adata.uns["spatial"].values()))["images"]["hires"])
    image[: len(image) // 2], image[len(image) // 2 :] = (255, 0, 0), (0, 0, 255)
    next(iter(adata.uns["spatial"].values()))["images"]["hires"] = image
    (folder / "own.csv").write_text(LOG)
    pd.DataFrame({"embedding": ["PCA", HOSTILE], "ARI": [0.5, 0.25]}).to_csv(
        folder / "scores.csv", index=False
    )
    given = [adata, folder / "own.csv", folder / "scores.csv"]
    return tz.report.write(given, folder / "report.html", projection="pca", n_genes=20), adata


@pytest.fixture
def opened(
    small: tuple[Path, AnnData], show: Callable[[Path], None], browser: Any, run: Any, until: Any
) -> AnnData:
    show(small[0])
    assert "300 cells, colored by X_t3_domain." in status(browser)
    run("viewer.colorBy(viewer.columns.find((field) => field.name === 'region'))")
    until(lambda: "300 cells, colored by region." in status(browser))
    return small[1]


def canvases(browser: Any) -> tuple[Any, Any]:
    """Return the canvases of tissue and embedding that take the pointer."""
    return tuple(browser.find_elements("css selector", "section.slice .panel .front")[:2])


def offset(browser: Any, canvas: Any, place: list[float]) -> tuple[int, int]:
    """Return a place of a canvas as the driver wants it: from the middle of what is in sight, which must be all."""
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas
    )
    size = canvas.size
    return round(place[0] - size["width"] / 2), round(place[1] - size["height"] / 2)


def point_at(browser: Any, canvas: Any, place: list[float]) -> None:
    """Move the pointer to a place of a canvas, in pixels from its upper left."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element_with_offset(
        canvas, *offset(browser, canvas, place)
    ).perform()


def drag(browser: Any, canvas: Any, path: list[list[float]], *, shift: bool = False) -> None:
    """Drag the pointer along a path of a canvas."""
    from selenium.webdriver import ActionChains, Keys

    offsets = [offset(browser, canvas, place) for place in path]
    chain = ActionChains(browser, duration=20).move_to_element_with_offset(canvas, *offsets[0])
    if shift:
        chain = chain.key_down(Keys.SHIFT)
    chain = chain.click_and_hold()
    for place in offsets[1:]:
        chain = chain.move_to_element_with_offset(canvas, *place)
    chain = chain.release()
    (chain.key_up(Keys.SHIFT) if shift else chain).perform()


def tooltip(browser: Any) -> str:
    return "".join(
        tip.text for tip in browser.find_elements("css selector", ".tip") if tip.is_displayed()
    )


def status(browser: Any) -> str:
    return browser.find_element("css selector", ".status").text


def complaints(browser: Any) -> list[str]:
    """Return what the console says; not what it says of the tests' reading of pixels."""
    return [
        line["message"] for line in browser.get_log("browser") if "readback" not in line["message"]
    ]


def painted(run: Callable[..., Any], plane: str) -> tuple[int, int]:
    """Return how many pixels of the cells are painted, and a digest of them all."""
    return tuple(run(f"const c = viewer.{plane}.middle;" + DIGEST))


def test_it_draws_without_a_word(opened: AnnData, browser: Any, run: Any, photograph: Any) -> None:
    assert complaints(browser) == []
    assert browser.execute_script(FETCHED) == []
    assert min(painted(run, plane)[0] for plane in ("tissue", "embedding")) > 3000
    assert "300 cells, colored by region." in status(browser)
    photograph("report-small")


def test_y_grows_downwards_over_the_histology(opened: AnnData, run: Any) -> None:
    tissue = tz.Slice.from_anndata(opened)
    upper, lower = int(tissue.coords[:, 1].argmin()), int(tissue.coords[:, 1].argmax())
    left, right = int(tissue.coords[:, 0].argmin()), int(tissue.coords[:, 0].argmax())
    places = {
        cell: run(f"return viewer.tissue.toScreen({cell})") for cell in (upper, lower, left, right)
    }
    assert places[upper][1] < places[lower][1]
    assert places[left][0] < places[right][0]

    # its upper half is red, its lower half blue, and so is what lies under the uppermost and the lowest cell
    red, blue = run(PIXEL, places[upper]), run(PIXEL, places[lower])
    assert (red[0] > 180, red[2] < 80) == (True, True)
    assert (blue[2] > 180, blue[0] < 80) == (True, True)


@pytest.mark.parametrize("plane", [0, 1])
def test_pointing_at_a_cell_tells_of_it(
    opened: AnnData, browser: Any, run: Any, until: Any, plane: int
) -> None:
    name = ("tissue", "embedding")[plane]
    cell = run(f"const p = viewer.{name}; return p.bins.nearest(p.cx, p.cy, Infinity)")
    point_at(browser, canvases(browser)[plane], run(f"return viewer.{name}.toScreen({cell})"))
    said = until(lambda: tooltip(browser))
    found = opened.obs.iloc[list(opened.obs_names).index(said.splitlines()[0])]
    assert f"region: {found['region']}" in said
    assert f"cell_type: {found['cell_type']}" in said
    assert f"X_t3_domain: {found['X_t3_domain']}" in said
    assert run(
        "return viewer.tissue.marked === viewer.embedding.marked && viewer.tissue.marked >= 0"
    )
    point_at(browser, canvases(browser)[plane], [2, 2])
    until(lambda: not tooltip(browser) or run(f"return viewer.{name}.radius() > 20"))


def test_color_by_label_number_and_gene(
    opened: AnnData, browser: Any, run: Any, until: Any, photograph: Any
) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    before = painted(run, "tissue"), painted(run, "embedding")
    picker = Select(browser.find_element("css selector", "section.slice .controls select"))
    groups = browser.find_elements("css selector", "section.slice .controls select optgroup")
    assert [group.get_attribute("label") for group in groups[:3]] == [
        "Found",
        "Labels",
        "Numbers",
    ]
    for name, legend in (("score", "0.005"), ("X_t3_domain", "1"), ("hostile", HOSTILE)):
        picker.select_by_visible_text(name)
        until(lambda name=name: f"colored by {name}." in status(browser))
        assert legend in browser.find_element("css selector", "section.slice .legend").text
    assert painted(run, "tissue") != before[0]
    assert painted(run, "embedding") != before[1]
    assert not browser.find_elements("css selector", "img[src='x']")
    kept = run("return viewer.slice.genes.map((gene) => gene.name)")
    box = browser.find_element("css selector", "section.slice input[list]")
    box.send_keys(kept[3].lower(), Keys.ENTER)
    until(lambda: f"colored by {kept[3]}, log1p" in status(browser))
    cell = run("const p = viewer.tissue; return p.bins.nearest(p.cx, p.cy, Infinity)")
    counts = opened[:, kept[3]].X.toarray().ravel()
    shown = np.log1p(counts[cell] / opened.X[cell].sum() * 1e4)
    assert run(f"return viewer.field.value({cell})") == pytest.approx(shown, rel=1e-4)
    point_at(browser, canvases(browser)[0], run(f"return viewer.tissue.toScreen({cell})"))
    until(lambda: f"(count {int(counts[cell])})" in tooltip(browser))
    photograph("report-gene")
    assert picker.first_selected_option.text == kept[3]  # not blank while a gene shows
    picker.select_by_visible_text("score")
    until(lambda: "colored by score." in status(browser))
    picker.select_by_visible_text(kept[3])
    until(lambda: f"colored by {kept[3]}, log1p" in status(browser))
    other = next(gene for gene in opened.var_names if gene not in kept)
    for text, answer in (
        (other, "is not in this file: write the report again with --gene"),
        ("nothing", "no gene"),
    ):
        box.clear()
        box.send_keys(text, Keys.ENTER)
        until(
            lambda answer=answer: answer in status(browser).replace("its values are not", "is not")
        )
    assert complaints(browser) == []


def test_brushing_links_the_two_pictures(
    opened: AnnData, browser: Any, run: Any, until: Any, photograph: Any
) -> None:
    places = np.array(
        run("return Array.from({length: viewer.n}, (_, i) => viewer.embedding.toScreen(i))")
    )
    low, middle = places.min(axis=0) - 5, np.median(places, axis=0)
    corners = [low, [middle[0], low[1]], middle, [low[0], middle[1]], low]
    wanted = set(np.flatnonzero((places < middle).all(axis=1)).tolist())
    before = painted(run, "tissue")
    drag(
        browser, canvases(browser)[1], [list(map(float, corner)) for corner in corners], shift=True
    )
    until(lambda: "cells selected" in status(browser))
    found = set(run("return [...viewer.selected]"))
    edge = {
        i for i in range(len(places)) if np.abs(places[i] - middle).min() < 1.5
    }  # pointers know whole pixels
    assert found - edge == wanted - edge
    assert len(found) > 10
    assert f"{len(found)} of 300 cells selected: region_" in status(browser)
    until(lambda: painted(run, "tissue") != before)
    photograph("report-brushed")
    alpha = "const d = viewer.cells.colors; return Array.from(d, (c) => c >>> 24)"
    shown = np.array(run(alpha))
    assert set(np.flatnonzero(shown == 255).tolist()) == found
    browser.find_element("css selector", "button[aria-label='Clear the selection']").click()
    until(lambda: "colored by region." in status(browser))
    assert set(run(alpha)) == {255}


def test_dragging_moves_and_the_wheel_zooms(
    opened: AnnData, browser: Any, run: Any, until: Any
) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    canvas, (cx, cy, scale) = (
        canvases(browser)[0],
        run("const p = viewer.tissue; return [p.cx, p.cy, p.scale]"),
    )
    drag(browser, canvas, [[200, 200], [240, 170]])
    until(lambda: run("return viewer.tissue.cx") == pytest.approx(cx - 40 / scale, rel=1e-3))
    assert run("return viewer.tissue.cy") == pytest.approx(cy + 30 / scale, rel=1e-3)
    ActionChains(browser).scroll_from_origin(
        ScrollOrigin.from_element(canvas, 50, 50), 0, -100
    ).perform()
    until(lambda: run("return viewer.tissue.scale") > scale)
    for label, check in (
        ("Zoom in", lambda s: s > scale),
        ("Show all cells", lambda s: s == pytest.approx(scale)),
    ):
        browser.find_element("css selector", f"button[aria-label='{label}']").click()
        until(lambda check=check: check(run("return viewer.tissue.scale")))


def test_everything_is_reached_by_keyboard(
    opened: AnnData, browser: Any, run: Any, until: Any
) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    seen: list[str] = []
    browser.execute_script("document.body.focus(); window.scrollTo(0, 0)")
    for _ in range(100):
        press(Keys.TAB)
        active = browser.switch_to.active_element
        named = active.accessible_name
        assert named, active.get_attribute("outerHTML")[:120]
        width = browser.execute_script(
            "const s = getComputedStyle(arguments[0]); return s.outlineStyle + s.outlineWidth",
            active,
        )
        assert width == "solid3px", f"{named} shows no focus: {width}"
        seen.append(named)
        if named.startswith("region_1"):
            break
    for control in (
        "Color by",
        "Gene",
        "Find a cell",
        "Embedding",
        "Histology",
        "Zoom in",
        "Select by drawing around cells",
    ):
        assert any(name.startswith(control) for name in seen), f"{control} is not among {seen}"
    press(Keys.ENTER)
    until(lambda: "cells selected: region_1 100 %" in status(browser))
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"
    canvas = canvases(browser)[0]
    browser.execute_script("arguments[0].focus()", canvas)
    cx, cy, scale = run("const p = viewer.tissue; return [p.cx, p.cy, p.scale]")
    press(Keys.ARROW_RIGHT)
    until(lambda: run("return viewer.tissue.cx") > cx)
    press(Keys.ARROW_UP)
    until(lambda: run("return viewer.tissue.cy") < cy)
    press("+")
    until(lambda: run("return viewer.tissue.scale") > scale)
    press("-", "-")
    until(lambda: run("return viewer.tissue.scale") < scale)
    press("0")
    until(lambda: run("return viewer.tissue.cx") == pytest.approx(cx))
    press(Keys.ESCAPE)
    until(lambda: "colored by region." in status(browser))


def test_find_a_cell(opened: AnnData, browser: Any, run: Any, until: Any) -> None:
    from selenium.webdriver import Keys

    name = opened.obs_names[42]
    browser.find_elements("css selector", "section.slice input[type=search]")[1].send_keys(
        name, Keys.ENTER
    )
    until(lambda: status(browser).startswith(f"{name}; region: {opened.obs['region'].iloc[42]}"))
    assert run("return [viewer.tissue.marked, viewer.embedding.marked]") == [42, 42]
    assert run("return viewer.tissue.toScreen(42)")[0] == pytest.approx(
        run("return viewer.tissue.width / 2"), abs=1
    )


def test_the_other_embedding_and_the_sliders(
    opened: AnnData, browser: Any, run: Any, until: Any
) -> None:
    from selenium.webdriver.support.ui import Select

    before = run("return Array.from(viewer.embedding.x.slice(0, 3))")
    layouts = browser.find_elements("css selector", "section.slice .controls select")[1]
    Select(layouts).select_by_visible_text("X_t3")
    until(lambda: run("return Array.from(viewer.embedding.x.slice(0, 3))") != before)
    assert (
        "X_t3: first two principal components"
        in browser.find_element("css selector", ".stage").text
    )
    browser.execute_script(SLIDE, 0, 0)
    assert run("return viewer.tissue.back.style.opacity") == "0"
    radius = run("return viewer.tissue.radius()")
    browser.execute_script(SLIDE, 2, 2)
    until(lambda: run("return viewer.tissue.radius()") == pytest.approx(2 * radius))


def test_dark_and_light(opened: AnnData, browser: Any, photograph: Any) -> None:
    def luminance(color: str) -> float:
        parts = np.array([float(v) for v in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    shades = {}
    for theme in ("dark", "light"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": theme}]},
        )
        page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        for part in ("body", ".facts", "button", "td", ".legend .cells", "a"):
            text = browser.execute_script(
                "return getComputedStyle(document.querySelector(arguments[0])).color", part
            )
            pair = sorted([luminance(page), luminance(text)])
            contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
            assert contrast > 4.5, f"{part} in {theme}: {contrast:.1f}"
        shades[theme] = luminance(page)
        photograph(f"report-{theme}")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert shades["dark"] < 0.05 < 0.9 < shades["light"]


def test_on_paper(opened: AnnData, browser: Any, until: Any, photograph: Any) -> None:
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    n_open = "return document.querySelectorAll('details[open]').length"
    before = browser.execute_script(n_open)
    assert browser.execute_script(shown, ".still") == "none"
    pdf = base64.b64decode(
        browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    )
    assert pdf.startswith(b"%PDF")
    until(
        lambda: browser.execute_script(
            "return document.querySelector('.view img').src.startsWith('data:image/png')"
        )
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(shown, ".still") == "block"
    assert browser.execute_script(shown, ".viewer") == "none"
    assert "colored by region" in browser.find_element("css selector", ".view figcaption").text
    assert "region_1" in browser.find_element("css selector", ".view .legend").text
    photograph("report-print")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert browser.execute_script(n_open) == before


def test_results_and_losses_are_on_the_page(opened: AnnData, browser: Any, photograph: Any) -> None:
    for name in ("#results", "#losses"):
        browser.find_element("css selector", f"nav a[href='{name}']").click()
    results = browser.find_element("css selector", "#results")
    assert HOSTILE in results.text
    losses = browser.find_element("css selector", "#losses")
    assert "held out 0.62" in losses.text
    assert "slice mean 0.8" in losses.text
    browser.execute_script("arguments[0].scrollIntoView()", losses)
    photograph("report-losses")


def test_an_old_browser_gets_still_pictures(
    small: tuple[Path, AnnData], browser: Any, until: Any
) -> None:
    old = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete window.DecompressionStream"}
    )
    try:
        browser.get(small[0].as_uri())
        until(
            lambda: "too old" in browser.find_element("css selector", "section.slice .problem").text
        )
        assert browser.find_element("css selector", "#found table").is_displayed()
        assert browser.find_element("css selector", ".still img").is_displayed()
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", old)


@pytest.fixture(scope="session")
def large(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnnData]:
    """Write a report of 100,000 cells."""
    rng, n = np.random.default_rng(0), 100_000
    coords = rng.uniform(0, 8000, (n, 2))
    counts = sparse.csr_matrix(rng.poisson(0.3, (n, 20)).astype(np.float32))
    adata = AnnData(
        counts, obsm={"spatial": coords, "X_mine": rng.normal(size=(n, 8)).astype(np.float32)}
    )
    adata.var_names = [f"GENE{i}" for i in range(20)]
    adata.obs["region"] = pd.Categorical(
        np.where(coords[:, 0] < 2000, "west", np.where(coords[:, 1] < 4000, "north", "south"))
    )
    adata.uns["technology"] = "Xenium"
    return tz.report.write(adata, tmp_path_factory.mktemp("large") / "report.html"), adata


@pytest.mark.slow
def test_a_hundred_thousand_cells(
    large: tuple[Path, AnnData], show: Any, browser: Any, run: Any, until: Any, photograph: Any
) -> None:
    path, adata = large
    assert path.stat().st_size < 8e6
    show(path)
    assert run("return viewer.n") == 100_000
    assert (
        "UMAP of 100,000 cells would take long"
        in browser.find_element("css selector", ".stage").text
    )
    tissue, _ = canvases(browser)
    for _ in range(3):
        drag(browser, tissue, [[200, 200], [260, 220]])
    browser.find_element("css selector", "button[aria-label='Zoom in']").click()
    cell = run("const p = viewer.tissue; return p.bins.nearest(p.cx, p.cy, Infinity)")
    near = ((adata.obsm["spatial"] - adata.obsm["spatial"][cell]) ** 2).sum(axis=1)
    assert np.argsort(near)[0] == cell
    point_at(browser, tissue, run(f"return viewer.tissue.toScreen({cell})"))
    until(lambda: f"region: {adata.obs['region'].iloc[cell]}" in tooltip(browser))
    from selenium.webdriver import Keys

    browser.find_element("css selector", "section.slice input[list]").send_keys("GENE7", Keys.ENTER)
    until(lambda: "colored by GENE7" in status(browser))
    run("viewer.colorBy(viewer.columns[0])")
    until(lambda: "colored by region" in status(browser))
    browser.find_element("css selector", "section.slice .legend button").click()
    until(
        lambda: (
            f"{(adata.obs['region'] == 'north').sum():,} of 100,000 cells selected: north 100 %"
            in status(browser)
        )
    )
    photograph("report-100000")
    assert complaints(browser) == []
