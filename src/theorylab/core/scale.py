"""The one dial of a run: how much computation a study may spend."""

from __future__ import annotations

from enum import StrEnum


class Scale(StrEnum):
    """How large a study runs; its config at each scale is part of its registration."""

    TINY = "tiny"  # the tests: a second or two
    SMALL = "small"  # a laptop: about ten seconds a study
    LARGE = "large"  # a GPU or a cluster: the setting of the paper
