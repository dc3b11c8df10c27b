"""Writes the table of docs/concepts/what-helps.md from the verdicts in docs/studies.

python docs/site/what_helps.py
"""

from __future__ import annotations

from pathlib import Path

from scaledit.report.what_helps import page_of

if __name__ == "__main__":
    docs = Path(__file__).parent.parent
    (docs / "concepts" / "what-helps.md").write_text(page_of(docs), encoding="utf-8")
