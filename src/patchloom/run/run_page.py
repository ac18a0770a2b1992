"""Run page: one self-contained HTML file, and JSON, about what a run was asked, did and made."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import StoreError
from patchloom.location import Location
from patchloom.run.account import Account, says
from patchloom.run.contact_sheet import contact_sheet
from patchloom.run.histograms import drawn_channels, histograms_section
from patchloom.run.markup import bars, document, many, named, pair, table, tiles, times
from patchloom.run.reports import RunReport
from patchloom.run.stats_rows import exactness, over_what, rows_of, told
from patchloom.run.timeline import Timeline
from patchloom.run.timeline_drawing import duration, phase_legend, timeline_drawing
from patchloom.run.wording import as_bytes, worded

__all__ = ["run_json", "run_page", "write_run_page"]

_SAMPLES = 12
_IMAGES = 20
"""Images of which numbers are told, and that are counted by a bar each."""
_SOURCES = 100
_ELSEWHERE = {"seconds", "url", "started", "scheduler", "skipped", "shuffle", "faults"}
"""Figures that have a place of their own on the page."""
_MEMORY = {"requests_again", "peak_memory", "projected_memory", "resident_memory"}


def write_run_page(
    report: RunReport,
    path: str | os.PathLike[str] | None,
    *,
    title: str | None = None,
    job: str | None = None,
    command: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """The page of a run, written to a path or URL if one is given; as of `RunReport.to_html`."""
    made = run_page(Account.of(report), title=title, job=job, command=command)
    if path is not None:
        Location.of(path, storage_options).write("", made.encode("utf-8", "replace"))
    return made


def run_json(
    report: RunReport,
    path: str | os.PathLike[str] | None,
    *,
    title: str | None = None,
    job: str | None = None,
    command: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """What the page tells, as JSON; as of `RunReport.to_json`."""
    account = Account.of(report)
    again = {name: text for name, text, _ in _commands(account, command)}
    known = {"title": title, "job": job, "again": again}
    told = {k: v for k, v in known.items() if v} | account.to_document()
    made = json.dumps(told, indent=1, default=_jsonable)
    if path is not None:
        Location.of(path, storage_options).write("", made.encode("utf-8", "replace"))
    return made


def run_page(
    account: Account,
    *,
    title: str | None = None,
    job: str | None = None,
    command: str | None = None,
) -> str:
    """A page with all that is known of a run.

    Parameters
    ----------
    account
        What is known.
    title
        Its heading.
    job
        Text of the job, fit to be shown.
    command
        What to type to do it again; None shows Python.

    Returns
    -------
    str
        HTML without scripts that refers to nothing outside itself.
    """
    heading = title or "Run report"
    parts = [
        _head(heading, account),
        _tiles(account),
        _timeline(account),
        pair(_asked(account), _done(account)),
        pair(_memory(account), _faults(account)),
        _skipped(account),
        *_counts(account),
        _shuffle(account),
        _samples(account),
        *_statistics(account),
        _provenance(account),
        _again(account, job, command),
        _runs(account),
        "</main><footer>Times are of the machines that worked. This page refers to nothing outside "
        "itself.</footer>",
    ]
    return document(heading, parts)


# -- the parts ----------------------------------------------------------------------------


def _head(title: str, account: Account) -> str:
    report, told = account.report, account.store.attributes
    size = times(told["patch_shape"])
    state = "The store is complete." if report.complete else "The store is not complete."
    if report.n_tasks == 0:
        did = "This run found everything done."
    elif report.already_done:
        did = (
            f"This run went on with a store that had {many(report.already_done, 'finished shard')}."
        )
    else:
        did = "This run began the store."
    return (
        f'<header><p class="brand">patchloom {escape(report.versions.get("patchloom", ""))}</p>'
        f"<h1>{escape(title)}</h1><p>{report.n_patches:,} patches of {size} "
        f"({escape(str(told['axes']))}) written into <code>{escape(account.store.url)}</code>, "
        f"begun {escape(report.started.replace('T', ' ').replace('+00:00', ' UTC'))}. {did} "
        f"<strong>{state}</strong></p></header><main>"
    )


def _tiles(account: Account) -> str:
    report = account.report
    lost = sum(one["n_patches"] for one in report.skipped)
    seconds = max(report.seconds, 1e-9)
    shards = report.n_shards + report.already_done
    total = f"of {int(account.store.attributes['n_patches']):,} in the store"
    use = report.peak_memory / report.projected_memory if report.projected_memory else 0.0
    shown = [
        (
            f"{report.n_patches:,}",
            "patches written",
            f"{total}; {report.n_shards:,} of {many(shards, 'shard')}",
        ),
        (
            duration(report.seconds),
            "for the run",
            f"{many(report.n_tasks, 'task')}, {report.n_patches / seconds:,.3g} patches a second",
        ),
        (
            f"{report.read_amplification:.2f}",
            "decodes a needed chunk",
            f"{report.chunk_reads:,} for {many(report.chunks_needed, 'chunk')}",
        ),
        (
            as_bytes(report.bytes_read),
            "read",
            f"{many(report.requests, 'request')}; {as_bytes(report.bytes_written)} written",
        ),
        (
            as_bytes(report.peak_memory),
            "most memory of a task",
            f"{use:.0%} of the {as_bytes(report.projected_memory)} projected",
        ),
        (
            f"{lost:,}",
            "patches skipped",
            "what they need could not be read" if lost else "everything could be read",
        ),
    ]
    return tiles(shown)


def _timeline(account: Account) -> str:
    report = account.report
    found, phases, whose = report.timeline, report.phases, ""
    if found is None:
        nothing = f"No task ran: every shard was finished before ({duration(report.seconds)})."
        worked = [(name, told) for name, told in account.runs.items() if told.get("timeline")]
        if not worked:
            return f"<section><h2>Timeline</h2><p>{nothing}</p></section>"
        name, told = worked[-1]
        found, phases = Timeline(**told["timeline"]), told["phases"]
        whose = f"<p>{nothing} This is {escape(name)}, the last run that worked.</p>"
    if found.tasks:
        drawn = "One bar a task, one row a thread; rest on a bar to read its numbers."
        if any(found.tasks["retried"]):
            drawn += " Orange: requests of the task were tried again."
        hidden = found.n_lanes - 48
        if hidden > 0:
            drawn += f" {hidden:,} more threads worked and are not drawn."
    else:
        drawn = (
            f"{many(found.n_tasks, 'task')} in {many(found.n_lanes, 'thread')} are too many to be "
            "drawn one by one: only what they did together is."
        )
    names = {"least": "shortest", "median": "median", "p95": "95 of 100 within", "most": "longest"}
    quantiles = [[label, duration(found.task_seconds[key])] for key, label in names.items()]
    slow = [
        [
            escape(str(one["where"])),
            duration(float(one["start"])),
            duration(float(one["seconds"])),
            f"{one['patches']:,}",
        ]
        for one in found.slowest
    ]
    head = ["where", "began at", "took", "patches"]
    tables = pair(
        f"<div>{table('Time of a task', quantiles)}</div>",
        f"<div>{table('The tasks that took longest', slow, head)}</div>",
    )
    return (
        f"<section><h2>Timeline</h2>{whose}<figure>{timeline_drawing(found, phases)}<figcaption>"
        f"{phase_legend(phases)}<p>{drawn} What a task moved is spread evenly over its time.</p>"
        f"</figcaption></figure><details><summary>Tasks in numbers</summary>{tables}</details>"
        "</section>"
    )


def _asked(account: Account) -> str:
    rows = [[escape(key), _text(key, value)] for key, value in account.asked.items()]
    shown = table("Settings of the plan and of the run, but for those that say nothing", rows)
    told = {
        k: v for k, v in account.planned.items() if k not in _MEMORY | {"memory", "fingerprint"}
    }
    if told:
        planned = [[named(key, label), text] for key, label, text in worded(told)]
        shown += table("The whole plan, known before any pixel was read", planned)
    return f"<section><h2>What was asked</h2>{shown}</section>"


def _done(account: Account) -> str:
    report = account.report.to_dict()
    told = {k: v for k, v in report.items() if k not in _ELSEWHERE | _MEMORY}
    rows = [[named(key, label), text] for key, label, text in worded(told)]
    shown = table("What this run did, counted on the workers", rows)
    return f"<section><h2>What was done</h2>{shown}</section>"


def _memory(account: Account) -> str:
    report = account.report
    allowed = account.planned.get("memory")
    found = report.timeline
    levels = [
        *([("allowed (memory=)", int(allowed))] if allowed else []),
        ("projected by the plan", report.projected_memory),
        ("largest task", report.peak_memory),
        *([("median task", int(found.task_memory["median"]))] if found is not None else []),
    ]
    most = max(1, *(n for _, n in levels))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="bar"><i style="width:'
        f'{100 * n / most:.2f}%"></i></td><td>{as_bytes(n).replace(" ", "&nbsp;")}</td></tr>'
        for name, n in levels
    )
    caption = "Pixels and encoded patches that a task holds at once"
    rest = (
        f"A process held at most {as_bytes(report.resident_memory)} in all since it began: Python, "
        "its packages, and all of its threads."
        if report.resident_memory
        else ""
    )
    return (
        f'<section><h2>Memory</h2><p>{caption}</p><div class="scroll" tabindex="0">'
        f'<table class="bars" aria-label="{caption}"><tbody>{rows}</tbody></table></div>'
        f'<p class="after">{rest}</p></section>'
    )


def _faults(account: Account) -> str:
    report = account.report
    rows = [
        ["requests tried again", f"{report.requests_again:,}"],
        ["shards that others had committed meanwhile", f"{report.n_passed:,}"],
        ["tasks that failed and were tried again", f"{_n(report, 'task failed'):,}"],
        ["workers lost", f"{_n(report, 'worker lost'):,}"],
        ["shards that are not complete", f"{sum(s['n_shards'] for s in report.skipped):,}"],
    ]
    shown = table("What went wrong while the run went on", rows)
    if report.faults:
        items = "".join(
            f"<li><b>{escape(fault.kind)}</b> {escape(fault.where)}: {escape(fault.told)}</li>"
            for fault in report.faults[:_SOURCES]
        )
        shown += f'<ul class="reasons" aria-label="Each of them">{items}</ul>'
    if report.scheduler != "distributed":
        shown += (
            '<p class="after">On this scheduler the first error of a task ends the run; clusters '
            "try again.</p>"
        )
    return f"<section><h2>Retries and faults</h2>{shown}</section>"


def _n(report: RunReport, kind: str) -> int:
    return sum(fault.kind == kind for fault in report.faults)


def _skipped(account: Account) -> str:
    if not account.report.skipped:
        return ""
    items = "".join(
        f"<li><b>{_patches(one['n_patches'])}</b> of {many(one['n_shards'], 'shard')}, rows "
        f"{_examples(one['rows'], one['n_patches'])}: {escape(str(one['reason']))}</li>"
        for one in account.report.skipped
    )
    return (
        "<section><h2>Skipped</h2><p>Patches that are missing because something could not be "
        f'read</p><ul class="reasons">{items}</ul><p class="after">All of them stand in '
        "<code>skipped.parquet</code> of the store. The same run fills them in once what it needs "
        "can be read.</p></section>"
    )


def _patches(n: int) -> str:
    return "1 patch" if n == 1 else f"{n:,} patches"


def _examples(rows: Sequence[int], n: int) -> str:
    more = ", ..." if len(rows) < n else ""
    return ", ".join(f"{row:,}" for row in rows) + more


def _counts(account: Account) -> list[str]:
    counts = account.counts
    over = (
        "Patches in the store"
        if account.is_whole
        else f"Of {account.rows.num_rows:,} patches, those of shards that are spread evenly"
    )
    names = (("split", "Splits"), ("class", "Classes"))
    first = [
        bars(heading, f"{over}, by {name}", _most(counts[name]))
        for name, heading in names
        if counts.get(name)
    ]
    images = counts.get("image", {})
    parts = [pair(*first)]
    if len(images) > 1:
        parts.append(bars("Images", f"{over}, by image", _most(images)))
    return parts


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    """The largest counts, the others as one."""
    found = dict(list(counts.items())[:_IMAGES])
    rest = list(counts.values())[_IMAGES:]
    return {**found, f"{len(rest):,} others": sum(rest)} if rest else found


def _shuffle(account: Account) -> str:
    mixed = account.report.shuffle
    if not mixed:
        return ""
    rows = [
        [
            escape(kind),
            f"{one['relative']:.1%}",
            f"{one['entropy']:.3f}",
            f"{one['permuted']:.3f}",
        ]
        for kind, one in mixed.items()
        if isinstance(one, Mapping)
    ]
    head = ["of", "of a full shuffle", "bits in a batch", "bits of a full shuffle"]
    caption = (
        f"How mixed batches of {mixed['batch']:,} consecutive patches are, measured on "
        f"{mixed['n_batches']:,} of {mixed['of_batches']:,}"
    )
    groups = mixed.get("groups_per_shard")
    more = f'<p class="after">{groups:,.1f} groups of chunks meet in a shard.</p>' if groups else ""
    return f"<section><h2>Shuffle quality</h2>{table(caption, rows, head)}{more}</section>"


def _samples(account: Account) -> str:
    rows = account.rows
    if not rows.num_rows:
        return ""
    chosen = rows.take(pa.array(_spread(rows)))
    labelled = ", with their labels over them" if account.store.labels is not None else ""
    sheet = contact_sheet(account.store, chosen.to_pydict())
    return (
        f'<section class="contacts"><h2>Patches from the store</h2><p>{chosen.num_rows:,} of '
        f"{account.store.n_patches:,}, read back from the store{labelled}; contrast from the "
        f"store's own percentiles.</p>{sheet}</section>"
    )


def _spread(rows: pa.Table) -> list[int]:
    """Positions of rows that stand for all: evenly, and one of each split and class at least."""
    n = rows.num_rows
    names = [name for name in ("split", "class") if name in rows.column_names]
    order = pc.sort_indices(rows, [(name, "ascending") for name in [*names, "row"]]).to_numpy()
    even = np.unique(np.linspace(0, n - 1, min(n, _SAMPLES)).round().astype(np.int64))
    found = dict.fromkeys(order[even].tolist())
    for name in names:
        code = pc.dictionary_encode(rows[name]).combine_chunks().indices
        first = np.unique(code.to_numpy(zero_copy_only=False), return_index=True)[1]
        for place in first.tolist()[:_SAMPLES]:
            shown = rows[name].take(pa.array(list(found))).to_pylist()
            if rows[name][place].as_py() not in shown:
                found[place] = None
    return sorted(found)


def _statistics(account: Account) -> list[str]:
    store = account.store
    try:
        found = store.statistics
    except StoreError:
        return []
    over = f"Over {over_what(found.attrs['over'], found.attrs['each'])}"
    head, rows = told(rows_of(found.isel(image=slice(_IMAGES))))
    cells = [[escape(first), *rest] for first, *rest in rows]
    images = found.sizes["image"]
    hidden = f"; the first {_IMAGES} of {images:,} images" if images > _IMAGES else ""
    numbers = (
        f"<section><h2>Statistics</h2>{table(f'{over}; {exactness(found)}{hidden}', cells, head)}"
        "</section>"
    )
    try:
        kept = store.summaries()
    except StoreError:  # of an older version, which kept numbers only
        return [numbers]
    q = [float(f"{100 * q:.12g}") for q in found["quantile"].values.tolist()]
    drawn = histograms_section(drawn_channels(kept, q, found.attrs["method"]), over)
    return [drawn, numbers]


def _provenance(account: Account) -> str:
    report, told = account.report, account.store.attributes
    rows = [
        ["store", account.store.url],
        ["plan fingerprint", account.store.fingerprint],
        ["seed", f"{told['seed']}"],
        ["store begun by", f"patchloom {told['patchloom_version']}"],
        ["began", report.started],
        ["scheduler", report.scheduler],
        ["arrays", ", ".join(told["arrays"])],
        ["channels", ", ".join(told["channels"])],
        ["versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())],
    ]
    sources = account.sources
    images = [
        [
            escape(str(one["id"])),
            str(one.get("uri") or "in memory"),
            f"{one['axes']} {times(one['shape'])}",
            str(one["dtype"]),
            times(one["chunks"]),
        ]
        for one in sources[:_SOURCES]
    ]
    n = len(told["images"])
    caption = "Where pixels come from" + (
        f"; the first {_SOURCES} of {n:,}" if n > _SOURCES else ""
    )
    head = ["image", "address", "shape", "type", "chunks"]
    made = table("What it was done with", [[escape(a), b] for a, b in rows])
    return (
        f'<section class="wordy"><h2>Provenance</h2>{made}'
        f"<details{' open' if len(images) <= 8 else ''}><summary>{many(n, 'image')}</summary>"
        f"{table(caption, images, head)}</details></section>"
    )


def _again(account: Account, job: str | None, command: str | None) -> str:
    parts = "".join(
        f"<h3>{escape(heading)}</h3><pre><code>{escape(text)}</code></pre>"
        for _, text, heading in _commands(account, command)
    )
    shown = f"<h3>The job</h3><pre><code>{escape(job)}</code></pre>" if job else ""
    return (
        f"<section><h2>Do it again</h2><p>The same call makes only what is missing, and the same "
        f"plan makes the same bytes. This plan's fingerprint is "
        f"<code>{escape(account.store.fingerprint)}</code>.</p>{parts}{shown}</section>"
    )


def _runs(account: Account) -> str:
    runs = account.runs
    if len(runs) < 2:
        return ""
    rows = [
        [
            escape(name),
            str(told.get("started") or "-").replace("T", " ").replace("+00:00", ""),
            f"{told['n_patches']:,}",
            f"{told['n_tasks']:,}",
            duration(told["seconds"]),
            f"{told['read_amplification']:.2f}",
            "complete" if told["complete"] else "not complete",
        ]
        for name, told in runs.items()
    ]
    head = ["run", "began (UTC)", "patches", "tasks", "took", "decodes a chunk", "left the store"]
    caption = f"The last {len(runs):,} that wrote into it, this one included"
    return f"<section><h2>Runs of this store</h2>{table(caption, rows, head)}</section>"


def _commands(account: Account, command: str | None) -> list[tuple[str, str, str]]:
    """Key, text and heading of what to type."""
    url = account.store.url
    again = command or _python(account)
    found = [("run", again, "Resume, or repeat it")] if again else []
    return [
        *found,
        ("verify", f"patchloom verify {shlex.quote(url)}", "Check what was written"),
        (
            "read",
            f"import patchloom\n\nstore = patchloom.open_patches({url!r})",
            "Read it in Python",
        ),
    ]


def _python(account: Account) -> str:
    """The calls that made it; how images were opened is only known as far as they tell."""
    plan, told = account.plan, account.store.attributes["job"]
    if plan is None:
        return ""
    settings = {
        k: v
        for k, v in plan.settings.items()
        if k not in ("patching", "padding", "window_rows", "classes") and says(v)
    }
    if "min_coverage" in settings:
        settings["min_coverage"] = float(plan.min_coverage)
    if settings.get("min_coverage") == 0:
        del settings["min_coverage"]
    shown = [str(one.get("uri") or "...") for one in account.sources[:3]]
    more = ", ..." if len(account.sources) > 3 else ""
    roles = sorted({name for image in plan.images for name in image.roles})
    if any(image.metadata for image in plan.images):
        roles.append("sample")
    if any(image.nodata is not None for image in plan.images):
        roles.append("nodata")
    opened = "".join(f", {name}=..." for name in roles)
    asked = {k: v for k, v in told.items() if k in _RUN and v not in (None, False, _RUN[k])}
    if account.report.made is not None and account.report.made.on_error != "raise":
        asked["on_error"] = account.report.made.on_error
    lines = [
        "import patchloom",
        "",
        f"images = patchloom.open_images([{', '.join(map(repr, shown))}{more}]{opened})",
        "plan = patchloom.plan(",
        "    images,",
        f"    {_bare(plan.settings['patching'])!r},",
        *(f"    {name}={_bare(value)!r}," for name, value in settings.items()),
        ")",
        f"assert plan.fingerprint == {plan.fingerprint!r}",
        "patchloom.materialize(",
        "    plan,",
        f"    {account.store.url!r},",
        *(f"    {name}={value!r}," for name, value in asked.items()),
        ")",
    ]
    return "\n".join(lines)


_RUN = {
    "percentiles": [1.0, 99.0],
    "normalize": None,
    "over": "patches",
    "each": "once",
    "exact": False,
    "method": "linear",
    "codec": "blosc-zstd",
}
"""What `materialize` was asked for, and what it does unless it is."""


def _bare(config: Any) -> Any:
    """A setting without what it would be anyway."""
    if not isinstance(config, Mapping):
        return config
    return {k: _bare(v) for k, v in config.items() if says(v) or k == "overlaps"}


def _text(key: str, value: Any) -> str:
    if key in ("memory",):
        return as_bytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(str(k), v)}" for k, v in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        flat = all(isinstance(v, int | float | str) for v in value)
        return (
            ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
            if flat
            else (json.dumps(value, default=_jsonable))
        )
    return str(value)


def _jsonable(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
