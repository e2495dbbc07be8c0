"""The README's table, made of nothing but the records, the ledger and the notebooks."""

from collections import Counter

from hgcore.suite import figures, notebook, report

BEGIN, END = "<!-- table -->", "<!-- /table -->"


def table(root):
    """Verdicts at profile paper as Markdown: by notebook, the tally, what does not hold, and,
    folded, every claim under its figure.
    """
    said, records = report.verdicts(root, "paper"), report.latest(root)
    linked = _links(records, root)
    books = [(linked[name], _pictures(name, records, root), _counts(name, said)) for name in linked]
    bad = [
        (f"[{name}](notebooks/{name}.ipynb)", _statement(entry), verdict)
        for name, entry, verdict in said
        if verdict in ("REFUTED", "FAILS")
    ]
    return "\n".join(
        [
            *_rows("notebook | figures | claims", books),
            "",
            report.tally(said),
            "",
            *(_rows("what does not hold | claim | verdict", bad) if bad else []),
            "",
            "<details><summary>Every claim</summary>",
            "",
            *_rows("figure | notebook | claim | verdict", _every(said, linked, root)),
            "",
            "</details>",
        ]
    )


def _rows(head, rows):
    cells = head.split(" | ")
    return [
        f"| {head} |",
        "| " + " | ".join("---" for _ in cells) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _every(said, linked, root):
    """(figure, notebook, claim, verdict) of all claims by figure; the first two once only."""
    places, before = list(dict.fromkeys((name, entry["figure"]) for name, entry, _ in said)), None
    for name, entry, verdict in sorted(
        said, key=lambda row: places.index((row[0], row[1]["figure"]))
    ):
        where = name, entry["figure"]
        shown = (
            ("", "") if where == before else (_linked(name, entry["figure"], root), linked[name])
        )
        yield *shown, _statement(entry), verdict
        before = where


def _statement(entry):
    return " ".join(entry["statement"].split()).replace("|", "\\|")


def _links(records, root):
    """{notebook: a link to it, with what it took at profile paper where that is minutes, and
    whether its code has changed since}
    """
    ran = [record for (_, profile), record in records.items() if profile == "paper"]
    return {
        name: f"[{name}](notebooks/{name}.ipynb)"
        + _remark([record for record in ran if record["notebook"] == name], root)
        for name in notebook.discover(root)
    }


def _remark(records, root):
    took = max((record["seconds"] for record in records), default=0)
    changed = not all(notebook.fresh(record, root, record.get("versions")) for record in records)
    told = [report.duration(took)] * (took >= 120) + ["changed since"] * changed
    return f" ({', '.join(told)})" if told else ""


def _pictures(name, records, root):
    return ", ".join(
        _linked(name, figure.rpartition("/")[2], root)
        for figure in report.figures_of(name, records, root)
    )


def _counts(name, said):
    """`11 HOLDS, 1 REFUTED`"""
    counts = Counter(verdict for book, _, verdict in said if book == name)
    return ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in report.VERDICTS if counts[verdict]
    )


def _linked(name, figure, root):
    picture = f"figures/{notebook.paper(name)}/{figure}.png"
    return f"[{figure}]({picture})" if (root / picture).exists() else figure


def revised(root):
    """(README.md as it is, as it should be); ValueError without the markers."""
    file = root / "README.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} needs the lines {BEGIN} and {END}; the table goes between them")
    return text, f"{head}{BEGIN}\n{table(root)}\n{END}{tail}"


def write(root):
    """Put the table of today's records between the README's markers."""
    before, after = revised(root)
    if after != before:
        figures.write(root / "README.md", after.encode())
