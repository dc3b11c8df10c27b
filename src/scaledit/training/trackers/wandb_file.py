"""How far a .wandb file tells of a run: the log that W&B keeps in the run's folder, online or not.

    7 bytes of header, then LevelDB's log format: blocks of 32 KiB, pieces of records in them
    piece = CRC (4 bytes), size (2), kind (1 whole; 2, 3, 4 the first, middle, last of a record), bytes

No piece crosses the end of a block; where its head would not fit, the block's rest is empty. W&B has a reader
of its own, which comes and goes with its versions and is not public.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, HEAD = 32768, 7, 7


def last_step(path: Path) -> int:
    """The last step of the history in a .wandb file, -1 for none; a kill may have cut the file short."""
    last = -1
    for record in _records(path.read_bytes()):
        for item in record.history.item:
            if "_step" in (item.key, *item.nested_key):
                last = max(last, math.floor(float(item.value_json)))
    return last


def _records(data: bytes) -> Iterator[Any]:
    """wandb_internal_pb2.Record after Record, up to the end or the first that is not whole."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    at, pieces = HEADER, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + HEAD : at + HEAD + size]
        if kind not in (1, 2, 3, 4) or len(piece) < size:
            return
        pieces, at = pieces + piece, at + HEAD + size
        if kind in (1, 4):
            try:
                yield Record.FromString(pieces)
            except DecodeError:
                return
            pieces = b""
