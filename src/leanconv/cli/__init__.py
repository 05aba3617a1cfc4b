"""The command line: one verb per library function, of the same name, one short file each.

Heavy packages are imported inside the verbs, so that `leanconv --help` answers at once. Exit codes: 0 done, 1 a fault
of ours, 2 bad input (one line on stderr, no traceback), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from leanconv.cli import (
    bench,
    demo,
    doctor,
    evaluate,
    export,
    import_weights,
    list_,
    measure,
    pick,
    plan,
    rewrite,
    run,
    table,
    train,
)
from leanconv.errors import LeanconvError

__all__ = ["app", "main"]

app = typer.Typer(
    name="leanconv",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Rewrite the convolutions of any CNN into cheaper ones, measure, train, make elastic and deploy it.",
)
app.command("list")(list_.run)
app.command("measure")(measure.run)
app.command("plan")(plan.run)
app.command("rewrite")(rewrite.run)
app.command("train")(train.run)
app.command("eval")(evaluate.run)
app.command("table")(table.run)
app.command("pick")(pick.run)
app.command("run")(run.run)
app.command("export")(export.run)
app.command("bench")(bench.run)
app.command("import-weights")(import_weights.run)
app.command("demo")(demo.run)
app.command("doctor")(doctor.run)


def _version(wanted: bool) -> None:
    if wanted:
        from leanconv import __version__

        typer.echo(f"leanconv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rewrite the convolutions of any CNN into cheaper ones, measure, train, make elastic and deploy it."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(given or ["--help"], standalone_mode=False)
    except LeanconvError as error:
        _say(str(error))
        code = 2
    except typer.Exit as error:
        code = error.exit_code
        if isinstance(error.__cause__, KeyboardInterrupt):  # typer makes an exit with code 130 of it
            _say(str(error.__cause__) or "interrupted")
    except (KeyboardInterrupt, typer.Abort) as ended:
        _say(str(ended) or "interrupted")
        code = 130
    except BrokenPipeError:
        # The reader has gone (`leanconv list | head`); the interpreter must not report it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except typer.TyperException as error:  # unknown verb or option, missing argument, value of the wrong type
        _say(f"{getattr(error, 'format_message', error.__str__)()} (leanconv --help, leanconv VERB --help)")
        code = 2
    sys.exit(code or 0)


def _say(message: str) -> None:
    line = " ".join(message.split())
    print(f"leanconv: {line}", file=sys.stderr)
