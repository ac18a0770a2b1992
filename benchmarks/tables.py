"""Tables of the page that one benchmark fills, from the document that it saved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], n_words: int = 1, n_last: int = 0
) -> str:
    """Join cells to a table of Markdown.

    Parameters
    ----------
    head
        Names of the columns.
    rows
        Cells of each row.
    n_words, n_last
        So many first and last columns hold words and stand left; the others hold numbers.

    Returns
    -------
    str
        Lines without a last line end.

    Examples
    --------
    >>> print(table(["", "s"], [["w2", "1.06"]]))
    | | s |
    |---|--:|
    | w2 | 1.06 |
    """
    numbers = range(n_words, len(head) - n_last)
    rule = "|".join("--:" if k in numbers else "---" for k in range(len(head)))
    return "\n".join([_row(head), f"|{rule}|", *(_row(row) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    clean = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return "".join(f"| {cell} " if cell else "| " for cell in clean) + "|"


def plain(value: float | None, digits: int = 3) -> str:
    """A number as one reads it: so many digits, and no more decimals than they ask for.

    Examples
    --------
    >>> [plain(v) for v in (None, 0, 0.00712, 0.5, 1.2345, 18.79, 1250.3, 7.9e7)]
    ['', '0', '0.00712', '0.500', '1.23', '18.8', '1,250', '79,000,000']
    """
    if value is None:
        return ""
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    decimals = digits - 1
    while abs(value) < 1 and decimals < 12 and abs(value) * 10**decimals < 10 ** (digits - 1):
        decimals += 1
    while decimals and round(abs(value), decimals) >= 10 ** (digits - decimals):
        decimals -= 1
    return f"{value:.{decimals}f}"


def planning(document: Document) -> str:
    """Plans of many images under masks."""
    rows = [
        [
            f"{r['n_images']:,}",
            f"{r['n_chunks']:,}",
            f"{r['n_patches']:,}",
            *(plain(r[f"{name}_s"]) for name in ("open", "plan", "keep", "again", "free")),
            f"{r['reads']:,}",
            f"{r['mib']:.0f}",
        ]
        for r in document["records"]
    ]
    head = "images chunks patches open_s plan_s kept_s again_s no_mask_s mask_decodes MiB"
    return table([name.replace("_", " ") for name in head.split()], rows, n_words=0)


def mixing(document: Document) -> str:
    """How well shuffled plans mix."""
    rows = [
        [
            r["plan"],
            f"{r['n_images']}",
            f"{r['n_groups']:,}",
            f"{r['window']:.0%}",
            f"{r['image']:.3f}",
            f"{r['region']:.3f}",
            f"{r['groups_per_shard']:.1f}",
            f"{r['amplification']:.2f}",
        ]
        for r in document["records"]
    ]
    head = ("plan", "images", "groups", "window", "image", "region")
    return table([*head, "groups a shard", "reads a chunk"], rows)


def amplification(document: Document) -> str:
    """Decodes a needed chunk of what is counted from plans, by budget."""
    counted = [r for r in document["records"] if r["measured"] is None]
    budgets = sorted({r["budget"] for r in counted})
    rows = []
    for (case, shape), found in itertools.groupby(counted, lambda r: (r["case"], r["shape"])):
        some = {r["budget"]: r for r in found}
        target = f"{next(iter(some.values()))['target']:.2f}"
        for key, who in (
            ("threads_2", "2 threads"),
            ("threads_1", "1 thread"),
            ("cluster", "8 processes of 1 thread"),
        ):
            cells = [_decodes(some.get(budget), key) for budget in budgets]
            name = f"{case}, {'x'.join(map(str, shape))}, {who}"
            rows.append([name, *cells, target])
    heads = [f"{b >> 20} MiB" if b < 2**30 else f"{b >> 30} GiB" for b in budgets]
    return table(["by budget of a thread", *heads, "target at 1 GiB"], rows)


def _decodes(record: Mapping[str, Any] | None, key: str) -> str:
    if record is None:
        return ""
    return "refused" if record["refused"] else f"{record[key]:.2f}"


def graphs(document: Document) -> str:
    """What a petabyte asks of the client."""
    rows = [
        [
            r["case"]["name"],
            f"{r['bytes'] / 1e12:,.1f}",
            f"{r['cells']:,}",
            f"{r['n_shards']:,}",
            f"{r['n_tasks']:,}",
            plain(r["plan_cpu_s"]),
            plain(r["graph_cpu_s"], 2),
            plain(r["shared_bytes"] / 1e6),
            f"{r['bytes_a_task']:.0f}",
            f"{r['client_mib']:.0f}",
        ]
        for r in document["graphs"]
    ]
    head = ("plan", "TB", "chunks", "shards", "tasks", "plan, CPU s", "graph, CPU s")
    return table([*head, "shared by all tasks, MB", "a task, bytes", "client, MiB"], rows)


def simulated(document: Document) -> str:
    """Runs of tasks that sleep."""
    rows = [
        [
            f"{r['n_tasks']:,}",
            f"{r['wall_s']:.1f}",
            f"{r['wall_ms_a_task']:.1f}",
            f"{r['cpu_ms_a_task']:.1f}",
            f"{r['live']:,}",
            f"{r['client_mib']:.0f}",
        ]
        for r in document["runs"]
    ]
    head = ("tasks", "wall s", "wall ms a task", "CPU ms a task")
    return table([*head, "known to the scheduler at most", "client, MiB"], rows, n_words=0)


def plans(document: Document) -> str:
    """Plans of images far too large to look at."""
    rows = []
    for r in _strategies(document, "build"):
        ours = r["ours"]
        rows.append(
            [
                r["image"]["name"],
                f"`{r['strategy']}`",
                f"{ours['n_patches']:,}",
                f"{ours['seconds']:.2f}",
                f"{ours['cpu_seconds']:.2f}" if "cpu_seconds" in ours else "",
                f"{ours['mib']:.0f}",
                *_peers(r, document, lambda ours, peer: peer["seconds"] / ours["seconds"]),
            ]
        )
    head = ("image", "strategy", "patches", "s", "CPU s", "MiB", "CAREamics", "zarrdataset")
    return table(head, rows, n_words=2)


def specs(document: Document) -> str:
    """Corners a second."""
    rows = [
        [
            r["image"]["name"],
            f"`{r['strategy']}`",
            f"{r['ours']['rate'] / 1e6:.1f}",
            *_peers(r, document, lambda ours, peer: ours["rate"] / peer["rate"]),
            f"{r['ours']['loop_rate'] / 1e3:.1f}",
        ]
        for r in _strategies(document, "rate")
    ]
    head = ("image", "strategy", "million specs/s", "CAREamics", "zarrdataset")
    return table([*head, "one by one, thousand/s"], rows, n_words=2)


def _strategies(document: Document, task: str) -> Iterator[Mapping[str, Any]]:
    for record in document["records"]:
        if record["task"] == task and "stopped" not in record["ours"]:
            yield record


def _peers(
    record: Mapping[str, Any],
    document: Document,
    ratio: Callable[[Mapping[str, Any], Mapping[str, Any]], float],
) -> Iterator[str]:
    for name in ("careamics", "zarrdataset"):
        found = record["peers"].get(name)
        if found is None:
            yield "-"
        elif "stopped" not in found:
            yield plain(ratio(record["ours"], found), 2)
        elif "not done after" in found["stopped"]:
            yield f"> {document['peer_seconds']:.0f} s"
        else:
            yield found["stopped"]


def counting(document: Document) -> str:
    """Statistics of an image over decoding each chunk once."""
    codecs = {"lz4": "LZ4", "blosc-zstd": "Blosc Zstandard", "zstd": "Zstandard"}
    goals = {"fast": 1.3, "numpy": 2.0}
    found = {(r["image"], r["case"], r["codec"]): r["ratios"] for r in document["alone"]}
    rows = []
    for image, case in dict.fromkeys((r["image"], r["case"]) for r in document["alone"]):
        cells = []
        for codec, way in itertools.product(codecs, goals):
            ratios = found.get((image, case, codec), {})
            said = f"{ratios[way]['seconds']:.2f}" if way in ratios else ""
            met = way in ratios and ratios[way]["seconds"] <= goals[way]
            cells.append(f"**{said}**" if met else said)
        passes = case if image == "float32" or case != "exact" else ""
        rows.append([", ".join(filter(None, (image, passes))), *cells])
    ways = {"fast": "numba", "numpy": "NumPy"}
    heads = [f"{codecs[codec]}, {ways[way]}" for codec, way in itertools.product(codecs, goals)]
    return table(["", *heads], rows)


TABLES: Mapping[str, tuple[str, Callable[[Document], str]]] = {
    "planning": ("planning", planning),
    "mixing": ("mixing", mixing),
    "amplification": ("amplification", amplification),
    "graphs": ("scheduling", graphs),
    "simulated": ("scheduling", simulated),
    "plans": ("strategies", plans),
    "plans, quiet": ("strategies-quiet", plans),
    "specs": ("strategies", specs),
    "specs, quiet": ("strategies-quiet", specs),
    "statistics": ("statistics", counting),
}
"""By the name of a table: whose record it shows, and how."""
