"""From records to figures to pages: `write` turns what studies stored into one page that opens from disk."""

from theorylab.report.page import write

__all__ = ["write"]
