"""The color behind transparent images.

    pixel = round((alpha color + (255 - alpha) background) / 255)

Imports nothing large, so that an invalid name is refused at once.
"""

from __future__ import annotations

import re

from scaledit.errors import UsageError

Color = tuple[int, int, int]

NAMED: dict[str, Color] = {"white": (255, 255, 255), "black": (0, 0, 0)}
DROP = "drop"
"""Drop the alpha channel, so that whatever color a file stores under its transparent pixels becomes visible.
Early versions did this; the option exists to resume their runs and encodings unchanged."""
DEFAULT = "white"
BACKGROUNDS = 'white, black, "#rrggbb", or drop (the alpha channel is ignored)'


def background_color(text: str) -> Color | None:
    """The color that one of BACKGROUNDS names; None for "drop"; white for "". Raises UsageError."""
    text = text or DEFAULT
    if text == DROP:
        return None
    if text in NAMED:
        return NAMED[text]
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
        raise UsageError(f"a background must be {BACKGROUNDS}; got {text!r}")
    value = int(text[1:], 16)
    return value >> 16, value >> 8 & 255, value & 255
