"""A picture as a file of its own, for those who ask for one outside a report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import atomic_file, check_writable

if TYPE_CHECKING:
    from nanogpt_edit.report.canvas import Picture  # it loads matplotlib


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture under its title and legend, as .svg or .png. Raises UserError for any other ending."""
    check_picture(path)
    with atomic_file(path) as temporary:
        temporary.write_bytes(picture.saved("png" if path.suffix == ".png" else "svg"))


def save_pictures(pictures: Iterable[Picture], folder: Path) -> None:
    """Write every picture as .svg and as .png into `folder`, made where it is not there.

    Raises UserError where a file cannot be written there.
    """
    for picture in pictures:
        for kind in ("svg", "png"):
            save_picture(picture, folder / f"{picture.name}.{kind}")


def check_picture(path: Path) -> None:
    """Raise UserError where no picture can be written at `path`: another ending, a folder there, none to be made."""
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"{path}: pictures are written as .svg or .png; give the file one of these endings.")
    check_writable(path)
