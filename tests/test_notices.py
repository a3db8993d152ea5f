"""Warnings of a long job: each once, with the name of its slice."""

from __future__ import annotations

import logging
import warnings

import pytest

from terrazzo.errors import TerrazzoWarning
from terrazzo.notices import Notices


def test_a_warning_is_shown_once_with_its_slice() -> None:
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *args, **kwargs: shown.append(str(message))
        notices = Notices()
        with notices.once():
            for text in ("slice_1: 3 genes", "slice_2: 3 genes", "slice_1: 4 genes"):
                warnings.warn(text, TerrazzoWarning, stacklevel=1)
            for _ in range(2):
                with notices.about("slice_6"):
                    warnings.warn("few domains", TerrazzoWarning, stacklevel=1)
                    warnings.warn("slice_6: few genes", TerrazzoWarning, stacklevel=1)
            warnings.warn("of another library", UserWarning, stacklevel=1)
    assert shown == [
        "slice_1: 3 genes",
        "slice_2: 3 genes",
        "slice_6: few domains",
        "slice_6: few genes",
        "of another library",
    ]


def test_log_messages_are_shown_once_with_their_slice(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("terrazzo.models.base")
    notices = Notices()
    with notices.once():
        for name in ("a.h5ad", "b.h5ad", "a.h5ad"):
            with notices.about(name):
                logger.warning("%s: %d cells have no counts", "slice", 2)
                logger.warning("%s: %d cells have no counts", "slice", 3)
        logger.warning("one more")
    logger.warning("after it")
    assert [record.getMessage() for record in caplog.records] == [
        "a.h5ad: 2 cells have no counts",
        "b.h5ad: 2 cells have no counts",
        "one more",
        "after it",
    ]
    assert logging.getLogger("terrazzo").propagate
