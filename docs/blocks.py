"""Runs a page's code blocks as a reader would: in an empty directory, one after another.

python docs/blocks.py docs/own-data.md ...      (make docs-check: all of them)

A `sh` block goes to bash and a `python` block to Python; what `export` sets, later blocks see. A block with a caption
is a file of that name. Output goes where it would; the first block that fails ends the page, and is named.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(?:\{code-block\} )?(sh|python|toml|json)\n(?::caption: (\S+)\n\n)?(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """One fenced block of a page."""

    line: int
    language: str
    file: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Every block that is a file, or is to be run."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        yield Block(text[: found.start()].count("\n") + 1, *found.groups())


def run(page: Path) -> None:
    """Raises SystemExit where a block fails."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks(page):
            where = f"{page}, line {block.line}"
            if block.file:
                (Path(folder) / block.file).write_text(block.text)
                continue
            print(f"---- {where}", flush=True)
            if block.language == "python":
                done = subprocess.run([sys.executable, "-"], input=block.text, text=True, cwd=folder, env=env)
            else:
                script = f"set -euo pipefail\n{block.text}\nenv -0 > .exported\n"
                done = subprocess.run(["bash", "-c", script], cwd=folder, env=env)
            if done.returncode:
                raise SystemExit(f"{where}: the block failed ({done.returncode}).")
            if block.language == "sh":
                words = (Path(folder) / ".exported").read_bytes().split(b"\0")
                env = dict(word.decode().split("=", 1) for word in words if word)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
