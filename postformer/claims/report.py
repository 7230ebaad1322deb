"""Run claims, keep what they find, and write the page: `report.json` is the result, `index.html` a pure function of it.

Every step of a claim is journaled under the report's folder, so that the same command continues a run that was stopped or
killed. After each claim both files are written anew, whole or not at all.
"""

import json
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from postformer.claims.ledger import Claim, Context, Finding, NotMeasurable, Real, Result, digest
from postformer.claims.progress import Reporter, reporter
from postformer.claims.stamp import closed, code_sha256, libraries, machine, stamp, usable_cores
from postformer.claims.words import span
from postformer.config import ConfigError, UserError, parse, plain
from postformer.files import durable_directory, write_durably

SCHEMA = "postformer-report-1"


class Outcome(NamedTuple):
    """Where the page is and what the command should exit with: 0, 1 when a claim failed, 2 when it failed for a mistake of the
    user's, 130 when it was interrupted."""

    page: Path
    exit_code: int
    failures: tuple[str, ...] = ()
    """Each failed claim and why."""


def run_report(
    claims: Sequence[Claim],
    out: Path,
    *,
    budget_s: Real,
    text: Path | None = None,
    seeds: Sequence[int] = (0,),
    threads: int | None = None,
    command: Sequence[str] | None = None,
    console: Console | None = None,
) -> Outcome:
    """Run the claims, each with its weight's share of the budget (seconds), and write the report into `out`.

    Raises UserError when `out` is something else than a report's folder, another process writes there, or the text is not there.
    """
    from postformer.data.prose import PEPYS_FILE, data_folder
    from postformer.ops._cpu import LEVEL
    from postformer.train.process import lock

    page = _page()
    check_folder(out)
    if text is not None and not text.exists():
        raise UserError(f"--text {text}: no such file or folder")
    threads = threads or usable_cores()
    settings = {
        "budget_s": budget_s,
        "text": fingerprint(read) if (read := text or data_folder(PEPYS_FILE)) else None,
        "seeds": list(seeds),
        "threads": threads,
        "code_sha256": code_sha256(),
        "kernels": LEVEL,
        "machine": machine(),
        "libraries": libraries(),
    }
    weights = [getattr(claim, "weight", 1.0) for claim in claims]
    shares = [budget_s * weight / sum(weights) for weight in weights]
    asked = digest(
        {**settings, "claims": [(claim.id, claim.rule.sha256, *getattr(claim, "given", {}).values()) for claim in claims]}
    )
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "settings": {"budget_s": budget_s, "text": str(text) if text else None},
        "stamp": stamp(command=command or sys.argv, seeds=seeds, threads=threads, hashes={"settings": asked}),
        "claims": [_pending(claim) for claim in claims],
    }

    def write() -> None:
        report["stamp"] = closed(report["stamp"])
        write_durably(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_durably(out / "index.html", page(report))

    codes = [0]
    with lock(out, "writing a report"), reporter(console) as show:
        if kept := _keep_finished(out, asked):
            show.line(f"The finished report of other settings is kept: {kept}")
        show.plan([(c.id, c.plan(share, len(seeds))) for c, share in zip(claims, shares, strict=True)], budget_s)
        write()
        try:
            for i, claim in enumerate(claims):
                ctx = _context(claim, out, {**settings, "budget_s": shares[i]}, text, show)
                report["claims"][i], code = _run(claim, ctx, show)
                codes.append(code)
                write()
        except KeyboardInterrupt:
            write()
            show.line(
                f"Stopped. The page so far: {out / 'index.html'}. The same command continues: {report['stamp']['command']}"
            )
            return Outcome(out / "index.html", 130)
        report["complete"] = True
        write()
        show.line(f"The page: {out / 'index.html'}")
    failures = (f"{c['id']}: {c['reason']}" for c in report["claims"] if c["status"] == "failed")
    return Outcome(out / "index.html", max(codes), tuple(failures))


def render_file(path: Path) -> Path:
    """Write the page of an existing `report.json` beside it, as `postformer report --render` does. Raises UserError."""
    page = _page()
    report = read_report(path)
    try:
        html = page(report)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except KeyError as e:
        raise UserError(f"{path}: not a whole {SCHEMA}: {e} is missing") from e
    except (TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path}: not a whole {SCHEMA}: {_line(e)}") from e
    write_durably(path.with_name("index.html"), html)
    return path.with_name("index.html")


def read_report(path: Path) -> dict[str, Any]:
    """The report in a file. Raises UserError when it is not one of this version."""
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read as a report: {getattr(e, 'strerror', None) or e}") from e
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        found = report.get("schema") if isinstance(report, dict) else None
        raise UserError(f'{path}: expected a report with "schema": "{SCHEMA}", got {found!r}')
    return report


def check_folder(out: Path) -> None:
    """Refuse a folder that holds something else than a report. Raises UserError."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a new folder or the folder of an earlier report")
    inside = [p.name for p in out.iterdir() if p.name != "lock" and not p.name.startswith(".report.json.")]
    if not inside:
        return
    try:
        read_report(out / "report.json")
    except UserError:
        raise UserError(
            f"--out {out}: holds {sorted(inside)[0]!r} but no report.json of postformer's; "
            "name a new folder or the folder of an earlier report"
        ) from None


def _keep_finished(out: Path, settings: str) -> Path | None:
    """Copy a finished report of other settings into `earlier/<when it ended>/`, and return where its page is then."""
    if not (out / "report.json").exists():
        return None
    before = read_report(out / "report.json")
    stamped = before.get("stamp", {})
    if not any(c.get("status") == "done" for c in before.get("claims", ())):
        return None
    if not before.get("complete") or stamped.get("hashes", {}).get("settings") == settings:
        return None
    folder = out / "earlier" / re.sub(r"[^0-9T]", "", str(stamped.get("ended")))
    while folder.exists():
        folder = folder.with_name(folder.name + "-")
    folder.parent.mkdir(exist_ok=True)
    with durable_directory(folder) as temporary:
        for name in ("report.json", "index.html"):
            if (out / name).exists():
                shutil.copy2(out / name, temporary)
    return folder / "index.html"


def fingerprint(path: Path) -> str:
    """Digest of the name, size and time of change of a file, or of every file below a folder."""
    files: Iterable[Path] = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return digest([str(path.resolve()), [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]])


# ---------------------------------------------------------------- one claim


def _context(claim: Claim, out: Path, settings: dict[str, Any], text: Path | None, show: Reporter) -> Context:
    given = getattr(claim, "given", {})  # what this claim alone was given, such as other images than the default's
    own = digest({**settings, **given, "claim": claim.id, "rule_sha256": claim.rule.sha256})
    return Context(
        folder=out / "work" / claim.id,
        settings=own,
        budget_s=settings["budget_s"],
        text=text,
        seeds=tuple(settings["seeds"]),
        threads=settings["threads"],
        on_progress=lambda doing, done, total: show.progress(claim.id, doing, done, total),
    )


def _run(claim: Claim, ctx: Context, show: Reporter) -> tuple[dict[str, Any], int]:
    """The claim's entry in the report and its exit code. The rule is journaled before anything is measured."""
    entry, mistake = _pending(claim), False
    try:
        sealed = ctx.step("the rule of judgement", lambda: {"sha256": claim.rule.sha256, **claim.rule.written()})
        result = claim.run(ctx)
        if result.rule_sha256 != sealed["sha256"]:
            raise RuntimeError("the claim was judged by another rule than the one fixed before the run")
        entry |= {"status": "done", "result": _checked(result)}
    except NotMeasurable as e:
        entry |= {"status": "done", "result": plain(_not_measurable(claim, str(e)))}
    except UserError as e:
        entry |= {"status": "failed", "reason": " ".join(str(e).split())}
        mistake = True
    except Exception as e:
        (ctx.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        entry |= {"status": "failed", "reason": f"{_line(e)} (see work/{claim.id}/error.txt)"}
    entry["steps"] = [{k: r[k] for k in ("step", "at", "seconds", "load")} for r in ctx.steps]
    verdict = entry["result"]["verdict"] if entry["result"] else f"failed: {entry['reason']}"
    show.line(f"{claim.id}: {verdict} ({span(sum(s['seconds'] for s in entry['steps']))})")
    return entry, 0 if entry["status"] == "done" else 2 if mistake else 1


def _checked(result: Result) -> dict[str, Any]:
    """The result as plain data. Raises ValueError where it holds what JSON or its types do not, such as NaN."""
    try:
        return plain(parse(Result, plain(result), "result"))
    except ConfigError as e:
        raise ValueError(str(e)) from e


def _not_measurable(claim: Claim, reason: str) -> Result:
    criteria = claim.rule.criteria
    findings = tuple(Finding("not measurable here", reason, criterion=c.name, rule=c.sentence) for c in criteria)
    return Result(
        id=claim.id,
        title=claim.title,
        sentence=claim.sentence,
        sources=claim.sources,
        rule=claim.rule.written(),
        rule_sha256=claim.rule.sha256,
        verdict="not measurable here",
        findings=findings,
    )


def _line(e: Exception) -> str:
    return f"{type(e).__name__}: {e}".splitlines()[0]


def _pending(claim: Claim) -> dict[str, Any]:
    return {
        "id": claim.id,
        "title": claim.title,
        "sentence": claim.sentence,
        "status": "pending",
        "reason": "",
        "result": None,
        "steps": [],
    }


def _page() -> Callable[[dict[str, Any]], str]:
    try:
        from postformer.claims.page import render
    except ImportError as e:
        raise UserError(f"the report needs {e.name}: pip install 'postformer[report]'") from e
    return render
