"""The command line: which commands there are, and how every error becomes one sentence."""

import importlib
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from kfbench.cli.command import Command
from kfbench.cli.streams import finish_output, lossy_streams
from kfbench.config.importing import children_away_from_working_folder
from kfbench.errors import KfbenchError, cut, described

# name -> (module, function or sub-application, one line for --help). A module is imported when its
# command runs, so that --help answers at once.
_COMMANDS = {
    "train": ("kfbench.cli.train", "train", "Train a model with one optimizer and record every loss."),
    "sweep": ("kfbench.cli.sweep", "sweep", "Tune the methods' parameters, each with as many trials."),
    "compare": ("kfbench.cli.compare", "compare", "Compare methods over seeds: who wins, by how much, how fast."),
    "wallclock": ("kfbench.cli.wallclock", "wallclock", "Time updates of several optimizers, with error bars."),
    "similarity": ("kfbench.cli.similarity", "similarity", "Compare the directions of methods along one trajectory."),
    "report": ("kfbench.cli.reporting", "report", "Write a site of all verdicts, and quote them in documents."),
    "data": ("kfbench.cli.data", "app", "List, fetch and check data sets."),
    "list": ("kfbench.cli.listing", "list_names", "List methods, models and data sets."),
}


class _LazyGroup(TyperGroup):
    """Shows stubs; puts the real command in place once it is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _COMMANDS:
            self.commands[args[0]] = _load(args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (SystemExit, KeyboardInterrupt, EOFError) as error:
            # The parser would take it for its own, and end without a word.
            raise _FromCommand(error) from error


class _FromCommand(BaseException):
    """Has what a command raised as its argument."""


def _load(name: str) -> Any:
    module, attribute, _ = _COMMANDS[name]
    entry = getattr(importlib.import_module(module), attribute)
    if not isinstance(entry, typer.Typer):
        # A plain function, as of `list`, has typer's own help: its options fit on one screen.
        run, kind = (entry.run, entry.kind) if isinstance(entry, Command) else (entry, None)
        wrapped = typer.Typer(add_completion=False)
        wrapped.command(name, cls=kind)(run)
        entry = wrapped
    loaded = typer.main.get_command(entry)
    loaded.name = name
    return loaded


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    help="A benchmark for neural-network optimizers of the Kronecker family: FOOF, K-FAC, against SGD and Adam.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import kfbench

        print(f"kfbench {kfbench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


# Stubs: each has its line of --help, for which nothing need be imported.
for _name, (_, _, _help) in _COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main() -> NoReturn:
    """Run a command; errors are one sentence on standard error, with the exit code they name."""
    warnings.showwarning = _show_warning
    with lossy_streams(), children_away_from_working_folder():
        try:
            code = app(standalone_mode=False)
            finish_output()
        except BaseException as error:  # Ctrl-C and exits get their code here too
            code = _report(error)
            with suppress(OSError):  # one error is said, not also that of what was still in the buffer
                finish_output()
    # A typer.Exit comes back as its code; a command that just ends has no code.
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException) -> int:
    """Print what the user should know of an error; returns the exit code."""
    if isinstance(error, SystemExit):  # of the parser, which has completed a word
        return int(error.code or 0)
    if isinstance(error, _FromCommand):
        error = error.args[0]
    # Not as parsed: an error of the parser can be looked into as well.
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    if isinstance(error, SystemExit):  # no command of ours ends so
        return _fail(f"{described(error)}, raised by a method, model or library; the command ended early", 3)
    if isinstance(error, KfbenchError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}; what was written before stays valid", 2)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return _fail("interrupted", 130)
    if type(error).__name__ == "NoArgsIsHelpError":  # the parser has shown the help
        return 2
    if hasattr(error, "format_message"):  # a usage error of the command-line parser
        return _fail(error.format_message(), getattr(error, "exit_code", 2))
    name = type(error).__name__
    return _fail(f"internal error, {name}: {error} (run again with --debug for the traceback)", 3)


def _fail(sentence: str, code: int) -> int:
    print("Error:", cut(" ".join(filter(None, map(str.strip, sentence.splitlines())))), file=sys.stderr)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
        return  # for the authors of libraries, not for users
    print(f"Warning: {message}", file=sys.stderr)
