"""One prompt's trace, for a person: tables to print, a heat map to keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from markupsafe import Markup

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.html import line
from nanogpt_edit.report.pictures import save_picture
from nanogpt_edit.tracing.config import Site
from nanogpt_edit.tracing.tracing import Traced

if TYPE_CHECKING:
    from nanogpt_edit.report.canvas import Picture


@dataclass(frozen=True)
class Trace:
    """Where in the network one prompt's answer is recalled. Printed, it is a table per site; `save` draws one."""

    traced: Traced

    def __str__(self) -> str:
        return "\n\n".join([self.head, *(self._table(site) for site in self.traced.effect)])

    def _repr_html_(self) -> str:
        """The heat maps of all sites, for a notebook."""
        own = crc32(str(self).encode())  # a notebook may show many
        pictures = (self.picture(site, f"trace-{own:08x}-{site}") for site in self.traced.effect)
        return line(self.head) + Markup("").join(Markup(picture._repr_html_()) for picture in pictures)

    @property
    def head(self) -> str:
        """What was followed, and what the corruption costs."""
        found = self.traced
        return f"p({found.target!r}) is {found.clean_p:.1%}, {found.corrupted_p:.1%} with the subject corrupted."

    def _table(self, site: Site) -> str:
        """Points of probability that restoring one token's state at one layer brings back."""
        found = self.traced
        grid = found.effect[site].tolist()
        corner = f"{site}, layer"
        wide = max(len(corner), *(len(repr(token)) + 1 for token in found.tokens))
        lines = [f"{corner:<{wide}}" + "".join(f"{layer:>7}" for layer in range(len(grid[0])))]
        for place, (token, row) in enumerate(zip(found.tokens, grid, strict=True)):
            mark = "*" if found.subject_first <= place <= found.subject_last else " "
            lines.append(f"{mark}{token!r:<{wide - 1}}" + "".join(f"{100 * cell:>7.1f}" for cell in row))
        return "\n".join(lines)

    @checked
    def save(self, path: str | Path, *, site: Site = "resid_post") -> None:
        """Draw the heat map of one site (resid_post, mlp_out, attn_out), as an SVG or (by the file's ending) a PNG."""
        if site not in self.traced.effect:
            raise UserError(f"{site} was not traced; it was {', '.join(self.traced.effect)}.")
        save_picture(self.picture(site, Path(path).stem), Path(path))

    def picture(self, site: Site, name: str) -> Picture:
        """The heat map of one site; `name` is unique on the page it is for."""
        from nanogpt_edit.report.plots_edits import example_picture  # here, for it loads matplotlib

        return example_picture(name, self.traced.as_example(), site)
