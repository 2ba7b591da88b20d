"""Readers of raw data sets: one class per layout, chosen by ``data.source``."""

from difflib import get_close_matches

from semivid.data.readers.base import RawFrame, Reader
from semivid.data.readers.camvid import CamVidOriginalReader, CamVidReader
from semivid.data.readers.cityscapes import CityscapesReader, StreetReader
from semivid.data.readers.folder import FolderReader
from semivid.data.readers.mapillary import MapillaryReader
from semivid.errors import UserError

__all__ = ["READERS", "RawFrame", "Reader", "get_reader"]

READERS: dict[str, type[Reader]] = {
    "street": StreetReader,
    "cityscapes": CityscapesReader,
    "camvid": CamVidReader,
    "camvid_original": CamVidOriginalReader,
    "mapillary": MapillaryReader,
    "folder": FolderReader,
}


def get_reader(data: dict) -> Reader:
    """The reader for the params' block `data`. UserError for an unknown source or paths that do not exist."""
    source = data["source"]
    if source not in READERS:
        near = get_close_matches(str(source), READERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(READERS)}"
        raise UserError(f"data.source: {source!r} is unknown; {hint}")
    return READERS[source](data)
