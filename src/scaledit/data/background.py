"""What is seen where an image is transparent.

    pixel = round((alpha color + (255 - alpha) background) / 255)

Imports nothing large, so that a wrong word is refused at once.
"""

from __future__ import annotations

import re

from scaledit.errors import UsageError

Color = tuple[int, int, int]

NAMED: dict[str, Color] = {"white": (255, 255, 255), "black": (0, 0, 0)}
DROP = "drop"
"""What scaledit did before it composited: the alpha channel is dropped, and whatever color a file keeps under
its transparent pixels is seen. Only there to continue runs and encodings begun then without a change."""
DEFAULT = "white"
BACKGROUNDS = 'white, black, "#rrggbb", or drop (the alpha channel is ignored)'


def background_color(text: str) -> Color | None:
    """What a word of BACKGROUNDS means: a color, or None for "drop"; "" is white. Raises UsageError."""
    text = text or DEFAULT
    if text == DROP:
        return None
    if text in NAMED:
        return NAMED[text]
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
        raise UsageError(f"a background is {BACKGROUNDS}; got {text!r}")
    value = int(text[1:], 16)
    return value >> 16, value >> 8 & 255, value & 255
