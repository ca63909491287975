"""``fr3e COMMAND …``: the list of commands, and the one place that prints errors and picks the exit code.

Exit codes: 0 done, or stopped with a checkpoint; 1 it failed after it had started, or found what it looks for (audit, replay); 2 bad input,
and nothing was started or written; 130 Ctrl-C, SIGTERM or SIGHUP before it had started.
"""

import os
import sys
from collections.abc import Sequence

import click

from fr3e_async import __version__
from fr3e_async.cli import runs, sizing, train, verify
from fr3e_async.cli.evaluate import evaluate
from fr3e_async.cli.words import stop_printing
from fr3e_async.errors import RunFailed, UserError, printable

HELP = ("--help", "-h")


@click.group(
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": list(HELP), "max_content_width": 100},
)
@click.version_option(__version__, message="fr3e_async %(version)s")
@click.pass_context
def fr3e(context: click.Context) -> int:
    """FR3E reinforcement learning of reasoning models on Ray, vLLM and DeepSpeed.

    Settings are written key=value, for example:  fr3e train config=toy run.steps=20
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    return 0


for command in (
    train.train, evaluate, sizing.plan, sizing.simulate, runs.audit, runs.replay, runs.replay_step, runs.export, runs.report,
    verify.verify, train.config,
):  # fmt: skip
    fr3e.add_command(command)


def run(argv: Sequence[str]) -> int:
    """Do what the words ask for; returns the exit code. Every error that a person can mend is one line on stderr."""
    try:
        with fr3e.make_context("fr3e", _as_train(argv)) as context:
            return int(fr3e.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        asked = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _failed(printable(error.format_message()) + asked, 2)
    except UserError as error:
        return _failed(" ".join(str(error).split("\n")), error.exit_code)
    except RunFailed as error:  # may be a diagnosis of several lines
        return _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not set(HELP) & set(argv):
            raise
        stop_printing()
        return 0


def _failed(message: str, code: int) -> int:
    print("error:", message, file=sys.stderr)
    return code


def _as_train(argv: Sequence[str]) -> list[str]:
    """Before it had commands, ``fr3e config=toy`` trained; it still does in this version, with a note."""
    first = next(iter(argv), "")
    if "=" not in first and first != "--dry-run":
        return list(argv)
    print("note: fr3e has commands now, and the next version asks for one: fr3e train", *argv, file=sys.stderr)
    return ["train", *argv]


def entry(*command: str) -> None:
    """The program ``fr3e``, or one command of it. It finds a person's own modules in the working directory, as ``python -m`` does."""
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    sys.exit(run([*command, *sys.argv[1:]]))
