"""What the matrices of a written GGUF file may be stored as. (A file of its own without torch: `--help` shows it.)"""

from __future__ import annotations

from typing import Literal

FileType = Literal["f32", "f16", "bf16", "q8_0"]
