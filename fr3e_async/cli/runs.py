"""The commands that ask something of a run that is there: audit, replay, replay_step, export, report."""

from pathlib import Path

import click

from fr3e_async.cli.words import UserPath, show
from fr3e_async.errors import printable

TRUST_HELP = "Run Python code that came with the model, as the run did."


@click.command()
@click.argument("run", metavar="RUN", type=UserPath())
def audit(run: Path) -> int:
    """Check that every prompt group of a run was used once.

    Reads the run directory RUN; the run may be over, killed, or still going. Checks staleness and the newest checkpoint, too. Exit code 1: something is wrong with it.
    """
    from fr3e_async.run.audit import audit_run, table, verdict

    found = audit_run(run)
    show(printable(f"{table(found)}\n{verdict(found.problems)}"))  # it quotes names from the run's files
    return 1 if found.problems else 0


@click.command()
@click.argument("run", metavar="RUN", type=UserPath())
@click.option("--session", type=int, help="Only this one (default: all).")
@click.option("--first", type=int, default=0, metavar="N", help="Show events from number N on.")
@click.option("--last", type=int, default=0, metavar="N", help="Show events up to number N.")
@click.option("--state", is_flag=True, help="With each event that is shown, the state of the machine after it.")
def replay(run: Path, session: int | None, first: int, last: int, state: bool) -> int:
    """Make a recorded run's decisions again, and compare.

    Drives the control machine through RUN, event by event. Needs the run's journal/ alone: no GPU, no engine. Exit code 1: another decision, which is shown.
    """
    from fr3e_async.run.replay import follow, journals

    codes = [follow(path, show=(first, last), state=state) for path in journals(run, session=session)]
    if None in codes:
        show("a session that was killed before its first event is passed over")
    return max([code for code in codes if code is not None], default=0)


@click.command("replay_step")
@click.argument("dump", metavar="DUMP", type=UserPath())
@click.option("--device", default="cpu", metavar="DEVICE", help="cpu (default) or cuda.")
@click.option("--trust-remote-code", is_flag=True, help=TRUST_HELP)
@click.option("--tokens", type=int, default=10, metavar="N", help="Tokens to print, the most alarming first (default 10).")
def replay_step(dump: Path, device: str, trust_remote_code: bool, tokens: int) -> int:
    """Repeat an optimiser step that a run refused.

    DUMP is the folder that the run wrote, such as RUN/dumps/step-000012. Prints the numbers that are found now beside the recorded ones. One process, without DeepSpeed, Ray and vLLM. Exit code 1: it did
    not happen again.
    """
    from fr3e_async.files.scratch import scratch

    with scratch():
        from fr3e_async.learner.replay import comparison, replay  # torch makes a folder for compiled code as it is imported

        again, text = comparison(*replay(dump, device=device, trust_remote_code=trust_remote_code), tokens=tokens)
    show(text)
    return 0 if again else 1


@click.command()
@click.argument("source", metavar="CHECKPOINT_OR_RUN", type=UserPath())
@click.argument("out", metavar="OUT", type=UserPath())
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Type of the weights (default: that of training).")
@click.option("--step", type=int, metavar="N", help="Which checkpoint of a run directory (default: the newest).")
@click.option("--trust-remote-code", is_flag=True, help=TRUST_HELP)
def export(source: Path, out: Path, dtype: str | None, step: int | None, trust_remote_code: bool) -> int:
    """Write a checkpoint as a model folder.

    CHECKPOINT_OR_RUN is a checkpoint, or a run directory for its newest one; OUT is the folder to make. transformers and vLLM load it.
    """
    from fr3e_async.files.scratch import scratch

    with scratch():
        from fr3e_async.run.export import export_to

        show(export_to(out.absolute(), source, step=step, dtype=dtype, trust_remote_code=trust_remote_code))
    return 0


@click.command()
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=UserPath())
@click.option("--out", type=UserPath(), metavar="FILE", help="The page; report.html in the first RUN if not given.")
@click.option(
    "--trees", type=click.IntRange(min=0), default=10_000, metavar="N", help="Trees kept of each run, evenly over it (10000)."
)
def report(runs: tuple[Path, ...], out: Path | None, trees: int) -> int:
    """Write the HTML page of one or more runs.

    RUN is a run directory, also of a run that is still going. The page is one file and needs no network; the first one gives the colour of its curves.
    """
    from fr3e_async.report.page import write_page

    page = out or runs[0] / "report.html"
    counts = write_page(list(runs), page, trees=trees)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    show(printable(f"{page}: {told}, {page.stat().st_size / 1e6:.1f} MB"))
    return 0
