"""Draw which packages of Segue import which, as ARCHITECTURE.md shows it.

python scripts/draw_rooms.py            writes docs/pictures/rooms.svg
python scripts/draw_rooms.py --check    exits 1 if that picture is not what the imports give

The imports are read from the source by `ast`, those inside functions too; what stands under `if TYPE_CHECKING:` is left
out. A room stands one row above the highest room that it imports. An arrow goes from a room to one that it imports, and
is left out where a longer way leads there as well (the transitive reduction): what one may import is all that the
arrows reach. The output depends on the imports alone.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src/segue"
PICTURE = ROOT / "docs/pictures/rooms.svg"

WHAT = {
    "cli": "the command line",
    "report": "tables, curves, the page",
    "sweeps": "many runs",
    "deploy": "a policy leaves: export, film",
    "runs": "one run in its directory",
    "tasks": "names, recipes, budgets",
    "training": "phases, the loop, jit",
    "methods": "one method, one file",
    "replay": "how batches are drawn",
    "data": "logged data",
    "policies": "policies as files",
    "results": "records and statistics",
    "nn": "networks and actors",
    "envs": "environments in lockstep",
    "core": "the nouns",
    "system": "files, machine, signals",
    "losses": "pure functions",
    "errors": "what a user can mend",
    "predict": "a policy by NumPy alone",
}

Graph = Mapping[str, frozenset[str]]

WIDTH, HEIGHT, GAP, RISE, EDGE = 168, 44, 22, 40, 16
"""A box, the room between two of a row and between two rows, and the picture's margin."""


def room_of(module: str) -> str | None:
    """`segue.data.flat` -> `data`; None for `segue` itself and for what is not Segue's."""
    parts = module.split(".")
    return parts[1] if parts[0] == "segue" and len(parts) > 1 and parts[1] not in ("__main__", "__version__") else None


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []))
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        yield from imports(node)


def graph(package: Path = PACKAGE) -> Graph:
    """Which rooms each room imports. A room is a folder of the package, or a file that lies beside them."""
    files = [path for path in sorted(package.rglob("*.py")) if path.parent != package or path.stem[:2] != "__"]
    found: dict[str, set[str]] = {path.relative_to(package).parts[0].removesuffix(".py"): set() for path in files}
    for path in files:
        room = path.relative_to(package).parts[0].removesuffix(".py")
        found[room] |= {other for module in imports(ast.parse(path.read_text())) if (other := room_of(module)) in found}
        found[room].discard(room)
    return {room: frozenset(others) for room, others in sorted(found.items())}


def levels(rooms: Graph) -> dict[str, int]:
    """How many imports lie between a room and the bottom, the longest way. Raises ValueError if there is a circle."""
    known: dict[str, int] = {}

    def level(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(f"These rooms import each other: {' -> '.join((*above, room))}.")
        if room not in known:
            known[room] = max((level(other, (*above, room)) + 1 for other in rooms[room]), default=0)
        return known[room]

    return {room: level(room, ()) for room in rooms}


def reached(rooms: Graph, room: str) -> frozenset[str]:
    return frozenset().union(*({other} | reached(rooms, other) for other in rooms[room]))


def arrows(rooms: Graph) -> list[tuple[str, str]]:
    """The imports that no longer way implies."""
    return [
        (room, other)
        for room, others in rooms.items()
        for other in sorted(others)
        if not any(other in reached(rooms, way) for way in others - {other})
    ]


def places(rooms: Graph) -> tuple[dict[str, tuple[float, float]], float, float]:
    """The centre of each box, and the picture's size; in a row, rooms stand near those that import them."""
    heights, drawn = levels(rooms), arrows(rooms)
    rows = [[room for room in rooms if heights[room] == n] for n in range(max(heights.values()), -1, -1)]
    width = 2 * EDGE + max(len(row) for row in rows) * (WIDTH + GAP) - GAP
    where: dict[str, tuple[float, float]] = {}
    for n, row in enumerate(rows):
        above = {room: [where[a][0] for a, b in drawn if b == room and a in where] or [width / 2] for room in row}
        row.sort(key=lambda room: (sum(above[room]) / len(above[room]), room))
        left = (width - len(row) * (WIDTH + GAP) + GAP) / 2
        for k, room in enumerate(row):
            where[room] = (left + k * (WIDTH + GAP) + WIDTH / 2, EDGE + n * (HEIGHT + RISE) + HEIGHT / 2)
    return where, width, 2 * EDGE + len(rows) * (HEIGHT + RISE) - RISE


def picture(rooms: Graph) -> str:
    """The SVG."""
    where, width, height = places(rooms)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" text-anchor="middle">',
        "<title>The rooms of Segue and what imports what</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#777"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
    ]
    for room, other in arrows(rooms):
        (x, y), (u, v) = where[room], where[other]
        y, v = y + HEIGHT / 2, v - HEIGHT / 2 - 1
        bend = RISE * 0.9
        lines.append(
            f'<path d="M{x:.1f},{y:.1f} C{x:.1f},{y + bend:.1f} {u:.1f},{v - bend:.1f} {u:.1f},{v:.1f}" '
            'fill="none" stroke="#777" stroke-width="1.2" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in where.items():
        lines.append(
            f'<rect x="{x - WIDTH / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            'fill="#eef4fa" stroke="#0072B2"/>'
        )
        lines.append(f'<text x="{x:.1f}" y="{y - 3:.1f}" font-size="14" font-weight="600">{escape(room)}</text>')
        lines.append(
            f'<text x="{x:.1f}" y="{y + 14:.1f}" font-size="11" fill="#444">{escape(WHAT.get(room, ""))}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="The rooms of Segue, drawn from its imports.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the picture is stale")
    parser.add_argument("--out", type=Path, default=PICTURE)
    asked = parser.parse_args()
    new = picture(graph())
    if asked.check:
        if not asked.out.exists() or asked.out.read_text() != new:
            sys.exit(f"{asked.out} is stale: run python scripts/draw_rooms.py.")
        return
    asked.out.write_text(new)
    print(asked.out)


if __name__ == "__main__":
    main()
