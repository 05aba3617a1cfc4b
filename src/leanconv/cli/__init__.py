"""The command line: one verb per library function, of the same name, one short file each.

Heavy packages are imported inside the verbs, so that `leanconv --help` answers at once. Exit codes: 0 done, 1 a fault
of ours, 2 bad input (one line on stderr, no traceback), 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from leanconv.cli import (
    bench,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    import_weights,
    list_,
    measure,
    pick,
    plan,
    predict,
    push,
    rewrite,
    run,
    study,
    table,
    train,
)
from leanconv.ends import Terminated, ended_in_order
from leanconv.errors import LeanconvError

__all__ = ["app", "main"]


class _Stopped(Exception):
    """A verb was interrupted, or who read its output has gone; typer would make exits of its own of these."""


def _verb(run: Callable[..., None]) -> Callable[..., None]:
    @wraps(run)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            run(*args, **kwargs)
        except (KeyboardInterrupt, BrokenPipeError) as ended:
            raise _Stopped from ended

    return call


app = typer.Typer(
    name="leanconv",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Rewrite the convolutions of any CNN into cheaper ones, measure, train, make elastic and deploy it.",
)
app.command("list")(_verb(list_.run))
app.command("measure")(_verb(measure.run))
app.command("plan")(_verb(plan.run))
app.command("rewrite")(_verb(rewrite.run))
app.command("train")(_verb(train.run))
app.command("eval")(_verb(evaluate.run))
app.command("predict")(_verb(predict.run))
app.command("compare")(_verb(compare.run))
app.command("study")(_verb(study.run))
app.command("table")(_verb(table.run))
app.command("pick")(_verb(pick.run))
app.command("run")(_verb(run.run))
app.command("export")(_verb(export.run))
app.command("bench")(_verb(bench.run))
app.command("import-weights")(_verb(import_weights.run))
app.command("push")(_verb(push.run))
app.command("demo")(_verb(demo.run))
app.command("doctor")(_verb(doctor.run))


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
    max_megapixels: Annotated[
        float | None,
        typer.Option(metavar="N", help="Decode images and frames of up to N million pixels; default: 100."),
    ] = None,
) -> None:
    """Rewrite the convolutions of any CNN into cheaper ones, measure, train, make elastic and deploy it."""
    if max_megapixels is not None:
        from leanconv.data.limits import MAX_MEGAPIXELS, most_pixels

        os.environ[MAX_MEGAPIXELS] = str(max_megapixels)  # for the processes that load, too
        most_pixels()


_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EISDIR)
"""What a path may be at fault for, wherever it is met first."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        with ended_in_order():
            code = app(given or ["--help"], standalone_mode=False)
    except LeanconvError as error:
        _say(str(error))
        code = 2
    except typer.Exit as error:
        code = error.exit_code
    except Terminated as error:
        if _speaks():
            _say(str(error) or "terminated")
        code = error.code
    except SystemExit as error:  # typer's own, while it prints help
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        code = 0
    except (_Stopped, KeyboardInterrupt, BrokenPipeError, typer.Abort) as error:
        cause = error.__cause__ or error
        code = 0 if isinstance(cause, BrokenPipeError) else 130
        if code and _speaks():
            _say(str(cause) or "interrupted")
    except (MemoryError, OSError, RuntimeError) as error:
        what = _of_the_system(error)
        if what is None:
            raise
        _say(what)
        code = 2
    except typer.TyperException as error:  # unknown verb or option, missing argument, value of the wrong type
        _say(f"{getattr(error, 'format_message', error.__str__)()} (leanconv --help, leanconv VERB --help)")
        code = 2
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`leanconv list | head`); the interpreter must not report it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


_OF_THE_SYSTEM = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO
}  # fmt: skip


def _of_the_system(error: Exception) -> str | None:
    """What to say where a path is at fault or the system has no more of something, None for any other error."""
    if isinstance(error, OSError) and error.errno in _OF_PATHS:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM and error.errno != errno.ENOMEM:
        at = f"{error.filename}: " if error.filename else ""
        return f"{at}{error.strerror}: what was there before is as it was; give it more, and run the same command again"
    text = str(error)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or (isinstance(error, OSError) and error.errno == errno.ENOMEM) or "allocate memory" in text:
        return (
            f"memory ran out ({' '.join(text.split())[:200] or type(error).__name__}): use smaller batches, fewer"
            " workers or a smaller input; a training goes on with: leanconv train --resume --out DIR"
        )
    return None


def _speaks() -> bool:
    """Whether this is the one of the processes of a training that says how it ended."""
    train = sys.modules.get("leanconv.train")
    return train is None or bool(train.is_main_process())


_LONGEST = 490
"""Characters of a message: what is longer quotes somebody's file, and its beginning and its end say enough."""


def _say(message: str) -> None:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in message).split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 205]} ... {line[-200:]}"
    print(f"leanconv: {line}", file=sys.stderr)
