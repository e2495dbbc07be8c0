"""What to run, and what a run left: jobs chosen by name, checked before anything starts, and their
executed notebooks.

Executed notebooks land in runs/<profile>/, an override's in runs/overrides/<profile>/; git ignores
both.
"""

import difflib
import fnmatch
import json
from dataclasses import dataclass, field

from hgcore.suite import backends, claims, figures, notebook, profiles, tidy

SIGNATURE = "hgcore"


class Refused(ValueError):
    """What was asked for cannot be run; nothing was started."""


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters."""

    name: str
    profile: str = "quick"
    backend: str = "torch"
    device: str = "cpu"
    seed: int = 0
    overrides: dict = field(default_factory=dict)

    def parameters(self):
        return {key: value for key, value in vars(self).items() if key != "name"}

    def target(self, root):
        """Where the executed notebook goes."""
        folder = root / "runs" / "overrides" if self.overrides else root / "runs"
        return folder / self.profile / f"{self.name}.ipynb"

    def done(self, root):
        return notebook.done(self.name, root=root, **self.parameters())


def aliases(root):
    """{notebook name: every name it answers to}: its own and its figures', with and without the
    paper.
    """
    known = {}
    for name in notebook.discover(root):
        figures = [
            f"{notebook.paper(name)}/{entry['figure']}" for entry in claims.entries(name, root)
        ]
        known[name] = {
            alias for full in [name, *figures] for alias in (full, full.rpartition("/")[2])
        }
    return known


def select(words, root):
    """Names of the notebooks that the words mean; all for no words; Refused for a word that means
    none.
    """
    known = aliases(root)
    chosen = [name for word in words for name in _meant(word, known)]
    return [name for name in known if not words or name in chosen]


def _meant(word, known):
    word = word.removeprefix("./").removeprefix("notebooks/").removesuffix(".ipynb")
    exact = [name for name, names in known.items() if word in names]
    loose = [
        name
        for name, names in known.items()
        if any(a.startswith(word) or fnmatch.fnmatchcase(a, word) for a in names)
    ]
    if exact or loose:
        return exact or loose
    close = difflib.get_close_matches(word, sorted(set().union(*known.values())), 3, 0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "there is nothing like it."
    raise Refused(
        f"no notebook or figure is called {word!r}; {hint} `python -m hgcore list` shows them all"
    )


def plan(names, root, **parameters):
    """A job for each name, or Refused with every reason why one cannot start."""
    if parameters.get("backend") == "autograd" and parameters.get("device", "cpu") != "cpu":
        raise Refused(
            f"backend autograd runs on the cpu only, got device {parameters['device']}; "
            "use --backend torch"
        )
    if parameters.get("device", "cpu") != "cpu":
        backends.make("torch", parameters["device"])  # ValueError if it is not there
    jobs = [Job(name, **parameters) for name in names]
    reasons = [reason for job in jobs if (reason := _reason(job, root))]
    if reasons:
        raise Refused("nothing was started\n  " + "\n  ".join(reasons))
    return jobs


def _reason(job, root):
    """Why this job cannot start, or None."""
    try:
        nb = notebook.read(job.name, root)
        if missing := job.parameters().keys() - notebook.parameters(nb).keys():
            return f"{job.name}: its parameters cell lacks {', '.join(sorted(missing))}"
        if job.overrides:
            profiles.apply(notebook.scale(nb), job.profile, job.overrides)
    except ValueError as error:
        return f"{job.name}: {error}"


def executed(name, profile, root):
    """The notebook of today with the outputs of its last run, or None if that failed, was cut short
    or ran other code.
    """
    try:
        ran = json.loads(Job(name, profile).target(root).read_text(encoding="utf-8"))
        signed = ran["metadata"][SIGNATURE]
        if signed["key"] != notebook.key(name, root=root, **signed["parameters"]):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    nb = notebook.read(name, root)
    new, old = _code(nb), _code(ran)
    if [_source(cell) for cell in new] != [_source(cell) for cell in old] or any(
        _unfinished(cell) for cell in old
    ):
        return None
    for cell, run_cell in zip(new, old, strict=True):
        cell.update(outputs=run_cell["outputs"], execution_count=run_cell["execution_count"])
    return nb


def sign(job, root):
    """Write into the executed notebook what it is a run of."""
    file = job.target(root)
    ran = json.loads(file.read_text(encoding="utf-8"))
    ran["metadata"][SIGNATURE] = {
        "parameters": job.parameters(),
        "key": notebook.key(job.name, root=root, **job.parameters()),
    }
    figures.write(file, json.dumps(ran, indent=1, ensure_ascii=False).encode())


def _code(nb):
    return [
        cell
        for cell in nb["cells"]
        if cell["cell_type"] == "code" and not tidy.DROPPED & tidy.tags(cell)
    ]


def _source(cell):
    return "".join(cell["source"])


def _unfinished(cell):
    failed = any(output["output_type"] == "error" for output in cell["outputs"])
    return failed or (cell["execution_count"] is None and _source(cell).strip() != "")


def update(name, root):
    """Write the outputs of the last quick run into notebooks/<name>.ipynb, normalised; say whether
    the file changed.
    """
    nb, path = executed(name, "quick", root), notebook.path(name, root)
    if nb is None:
        raise Refused(f"{name} has no complete quick run of today's code; run it first")
    before = path.read_bytes()
    notebook.write(notebook.normalise(nb), path)
    return path.read_bytes() != before
