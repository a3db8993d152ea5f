"""What the tests of the report share: a page, taken apart as a browser does."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Page(HTMLParser):
    """The tags of a page with their attributes, its visible text, and the content of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = str(dict(attrs).get("id", tag)) if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        elif data.strip():
            self.words.append(data.strip())

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads."""
        return json.loads(self.scripts["data"])

    def unpack(self, field: dict[str, Any]) -> Any:
        """Return an array or a list of texts, as the script does."""
        content = zlib.decompress(base64.b64decode(self.scripts[field["block"]]))
        return (
            json.loads(content)
            if field["kind"] == "json"
            else np.frombuffer(content, f"<{field['kind']}")
        )

    def named(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        """Return the attributes of the tags of a name that have these values."""
        return [
            a
            for name, a in self.tags
            if name == tag and all(a.get(k) == v for k, v in wanted.items())
        ]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Page]:
    """Write a report and return it as a page; without its still pictures, which take a second, unless asked."""

    def make(sources: Any, *, stills: bool = False, **options: Any) -> Page:
        from terrazzo import report
        from terrazzo.report import page as pages

        if not stills:
            monkeypatch.setattr(pages, "still", lambda sheet: "data:image/png;base64,")
        options = {"projection": "pca", "progress": False, **options}
        return Page(
            report.write(sources, tmp_path / "page" / "report.html", **options).read_text(
                encoding="utf-8"
            )
        )

    return make
