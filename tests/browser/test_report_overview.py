"""The first screen in a real browser: regions are chosen, their markers and neighbors appear, slices side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import answered
import numpy as np
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo.plot.palettes import in_order

pytestmark = pytest.mark.usefixtures("quiet_figures")
NAMES = [f"R{i} · SIM{i}" for i in range(1, 6)]
FIRST = "const o = document.getElementById('found').overview, row = o.openRows[0];"


@pytest.fixture(scope="session")
def pages(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, simulated: Any
) -> dict[str, Path]:
    """Write reports of one slice with histology, of two slices, and of one in which nothing was found."""
    folder = tmp_path_factory.mktemp("overview")
    one = answered.with_regions(simulated(300, 60, image=True, image_px=400), NAMES)
    one.obs["X_t3_domain"] = one.obs["terrazzo_region"].cat.codes.astype(str).astype("category")
    pair = [answered.with_regions(simulated(200, 60, seed=seed), NAMES) for seed in (0, 1)]
    seven = [answered.with_regions(simulated(60, 60, seed=seed), NAMES) for seed in range(7)]
    twelve = simulated(300, 60, n_regions=12)
    twelve = answered.with_regions(twelve, [f"R{i}" for i in range(1, 13)])
    twelve.uns["terrazzo_region_colors"] = in_order(12)
    bare = simulated(300, 60, image=True, image_px=400)
    options: dict[str, Any] = {"projection": "pca", "n_genes": 20, "progress": False}
    given: dict[str, tuple[list[AnnData], list[str]]] = {
        "one": ([one], ["mine"]),
        "two": (pair, ["left", "right"]),
        "seven": (seven, [f"section {i}" for i in range(7)]),
    }
    out = {"bare": tz.report.write(bare, folder / "bare.html", **options)}
    long = " ".join(["A long text before anything is shown."] * 25)
    out["long"] = tz.report.write(one, folder / "long.html", about=long, **options)
    out["twelve"] = tz.report.write(twelve, folder / "twelve.html", **options)
    for name, (slices, names) in given.items():
        answer = answered.answer_of(slices, names, NAMES)
        out[name] = tz.report.write(slices, folder / f"{name}.html", answer=answer, **options)
    return out


@pytest.fixture
def at(browser: Any, show: Callable[[Path], None], pages: dict[str, Path]) -> Any:
    """Open a page at a size, and scroll to its beginning; the size of the window is put back."""

    def go(name: str, width: int = 1400, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        show(pages[name])
        browser.execute_script("window.scrollTo(0, 0)")

    yield go
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def complaints(browser: Any) -> list[str]:
    lines = browser.get_log("browser")
    return [line["message"] for line in lines if "readback" not in line["message"]]


def region_button(browser: Any, number: int) -> Any:
    return browser.find_element(
        "css selector", f"article.found:not([hidden]) tr[data-region='{number}'] button"
    )


def detail(browser: Any) -> str:
    return browser.find_element("css selector", "article.found:not([hidden]) .detail").text


@pytest.mark.parametrize("name", ["one", "two", "seven", "bare", "long"])
def test_pictures_are_on_the_first_screen(at: Any, browser: Any, name: str) -> None:
    at(name)
    place = ".pictures .panel" if name != "bare" else "section.slice .panel"
    bottoms = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((p) => p.getBoundingClientRect().bottom)",
        place,
    )
    assert len(bottoms) == {"one": 2, "two": 4, "seven": 7, "bare": 1, "long": 2}[name]
    assert max(bottoms) <= 900
    if name != "bare":
        table = browser.find_element("css selector", "table.regions")
        assert table.rect["y"] + table.rect["height"] < 900


def test_a_region_is_chosen_in_the_table(
    at: Any, browser: Any, until: Any, photograph: Any
) -> None:
    at("one")
    region_button(browser, 1).click()
    until(lambda: "Marker genes" in detail(browser))
    said = detail(browser)
    assert NAMES[1] in said
    assert "reproducibility 0." in said
    assert "Neighbors" in said
    assert "SIM" in said
    shown = browser.execute_script(
        FIRST + "return [...row.planes[0].cells.colors].map((c) => c >>> 24)"
    )
    codes = browser.execute_script(FIRST + "return row.x.length && [...row.found.values]")
    assert {i for i, alpha in enumerate(shown) if alpha == 255} == {
        i for i, code in enumerate(codes) if code == 1
    }
    photograph("overview-region")
    gene = browser.find_element("css selector", ".detail table button")
    name = gene.text
    gene.click()
    until(lambda: browser.execute_script(FIRST + "return row.planes[1].field.name") == name)
    neighbor = browser.find_element("css selector", ".detail li button")
    neighbor.click()
    until(lambda: NAMES[1] not in detail(browser).splitlines()[0])
    until(
        lambda: (
            browser.execute_script(
                "return document.querySelector('section.slice').viewer.selected.size"
            )
            > 0
        )
    )
    browser.find_element("xpath", "//button[text()='Show all']").click()
    until(lambda: detail(browser) == "")
    assert complaints(browser) == []


def test_a_region_is_chosen_on_the_tissue(at: Any, browser: Any, until: Any) -> None:
    from selenium.webdriver import ActionChains

    at("one")
    place = browser.execute_script(
        FIRST
        + "const p = row.planes[0], i = p.bins.nearest(p.cx, p.cy, Infinity);"
        + "return [...p.toScreen(i), row.regionOf(i)]"
    )
    canvas = browser.find_element("css selector", ".pictures .front")
    x = round(place[0] - canvas.size["width"] / 2)
    y = round(place[1] - canvas.size["height"] / 2)
    ActionChains(browser).move_to_element_with_offset(canvas, x, y).click().perform()
    until(lambda: detail(browser).startswith(NAMES[place[2]]))
    assert region_button(browser, place[2]).get_attribute("aria-pressed") == "true"


def test_layers_beside_the_regions(at: Any, browser: Any, until: Any, photograph: Any) -> None:
    from selenium.webdriver.support.ui import Select

    at("one")
    found, _, beside = browser.find_elements("css selector", ".pictures select")
    layers = [option.text for option in Select(beside).options]
    assert layers == [
        "terrazzo_region",
        "region",
        "cell_type",
        "histology",
        "reproducibility",
        "nothing",
    ]
    assert Select(beside).first_selected_option.text == "region"
    Select(beside).select_by_visible_text("reproducibility")
    until(lambda: browser.execute_script(FIRST + "return row.planes[1].layer.kind") == "number")
    assert browser.execute_script(FIRST + "return row.planes[1].field.high") == 1
    Select(browser.find_elements("css selector", ".pictures select")[2]).select_by_visible_text(
        "histology"
    )
    until(lambda: browser.execute_script(FIRST + "return Boolean(row.planes[1].image)"))
    photograph("overview-histology")
    Select(browser.find_elements("css selector", ".pictures select")[2]).select_by_visible_text(
        "nothing"
    )
    until(lambda: browser.execute_script(FIRST + "return row.planes.length") == 1)
    Select(found).select_by_visible_text("X_t3_domain")
    until(lambda: browser.execute_script(FIRST + "return o.table.key") == "X_t3_domain")
    assert len(browser.find_elements("css selector", "article.found:not([hidden])")) == 1
    assert complaints(browser) == []


def test_slices_side_by_side_with_one_legend(
    at: Any, browser: Any, until: Any, photograph: Any
) -> None:
    at("two")
    figures = browser.find_elements("css selector", ".pictures figure")
    assert [figure.text.splitlines()[0] for figure in figures] == ["left", "right"]
    assert figures[0].rect["y"] == figures[1].rect["y"]
    region_button(browser, 2).click()
    until(lambda: "Share of each slice: left" in detail(browser))
    bright = "return o.openRows.map((r) => [...r.planes[0].cells.colors].filter((c) => c >>> 24 === 255).length)"
    assert min(browser.execute_script(FIRST + bright)) > 0
    photograph("overview-two")
    before = browser.execute_script(FIRST + "return row.planes[1].scale")
    browser.execute_script(FIRST + "row.planes[0].zoom(2)")
    after = browser.execute_script(
        FIRST + "return [row.planes[1].scale, o.openRows[1].planes[0].scale]"
    )
    assert after[0] == pytest.approx(2 * before)  # pictures of one slice move together
    assert after[1] != pytest.approx(2 * before) or before == 0


def test_a_gene_is_searched_beside_the_regions(at: Any, browser: Any, until: Any) -> None:
    at("two")
    box = browser.find_element("css selector", ".pictures input[type='search']")
    name = browser.execute_script(FIRST + "return row.slice.genes[3].name")
    box.send_keys(name.lower() + "\n")
    beside = "return o.openRows.map((r) => r.planes[1].field && r.planes[1].field.name)"
    until(lambda: browser.execute_script(FIRST + beside) == [name, name])
    ends = browser.execute_script(FIRST + "return o.openRows.map((r) => r.planes[1].field.high)")
    assert ends[0] == ends[1]  # one scale in both slices
    box.clear()
    box.send_keys("nonsense\n")
    until(
        lambda: "not in this file" in browser.find_element("css selector", ".pictures .keys").text
    )
    box.clear()
    box.send_keys("\n")
    until(lambda: browser.execute_script(FIRST + "return row.planes[1].layer.title") == "region")
    assert complaints(browser) == []


def test_shades_have_patterns(at: Any, browser: Any, photograph: Any) -> None:
    at("twelve")
    tones = browser.execute_script(
        FIRST
        + "const tones = new Map();"
        + "row.planes[0].base.forEach((color, i) => {"
        + "  const code = row.regionOf(i);"
        + "  if (!tones.has(code)) tones.set(code, new Set());"
        + "  tones.get(code).add(color);"
        + "});"
        + "return [...tones].sort((a, b) => a[0] - b[0]).map(([code, colors]) => colors.size);"
    )
    assert tones == [1] * 10 + [2] * 2
    photograph("overview-twelve")
    assert complaints(browser) == []


def test_the_first_screen_by_keyboard(at: Any, browser: Any, until: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    at("one")
    browser.execute_script("arguments[0].focus()", region_button(browser, 0))
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    until(lambda: detail(browser).startswith(NAMES[0]))
    ActionChains(browser).send_keys(Keys.TAB, Keys.SPACE).perform()
    until(lambda: detail(browser).startswith(NAMES[1]))
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    until(lambda: detail(browser) == "")
    names = browser.execute_script(
        "return [...document.querySelectorAll('#found canvas.front')].map((c) => c.getAttribute('aria-label'))"
    )
    assert len(names) == 2
    assert all("arrow keys" in name for name in names)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_no_page_is_wider_than_the_screen(
    at: Any, browser: Any, until: Any, photograph: Any, theme: str, width: int, height: int
) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for name in ("one", "two", "seven", "bare"):
        at(name, width, height)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, name
        browser.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )
        photograph(f"overview-{name}-{theme}-{width}")
    sizes = np.array(
        browser.execute_script(
            "return [...document.querySelectorAll('.panel')].map((p) => p.getBoundingClientRect().width)"
        )
    )
    assert sizes.max() <= width
