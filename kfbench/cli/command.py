"""What every command shares: the same options, a help of one screen, one way to end."""

import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from typer.core import TyperCommand

from kfbench.cli.flags import flags_of, single_values
from kfbench.config.load import configure
from kfbench.config.method_table import METHODS
from kfbench.config.schema import Config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError
from kfbench.executors.launched import launched

Resume = Annotated[bool, typer.Option("--resume", help="continue the run in --out")]
Format = Annotated[
    Literal["table", "markdown", "csv", "json"],
    typer.Option("--format", metavar="table|markdown|csv|json", help="of the table on standard output"),
]
# Only parsed here, so that it is no unknown option: ``main`` and observers look for it in sys.argv.
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]

# Of what became of a run; any other status is a failure.
_EXIT_CODES = {"done": 0, "interrupted": 130}
_FAILED = 3
# What the short help says of an option, on the rest of a line of 80 columns.
_BRIEFLY = {
    "opt": "a method of `kfbench list`, or package.module:Class",
    "dataset": "fashion-mnist-1k unless told otherwise",
    "model": "mlp unless told otherwise",
    "width": "of the widest hidden layer",
    "lr": "learning rate",
    "damping": "lambda, as docs/conventions.md has it",
    "T": "updates between refreshes of the curvature",
    "epochs": "passes over the data",
    "batch_size": "samples per update",
    "seeds": "how many: seed, seed + 1, ...",
    "out": "output folder",
    "resume": "continue the run in --out",
    "plot": "write plots into the output folder",
    "format": "of the table: table, markdown, csv or json",
    "grid": "START:STOP:half-decades (decades, COUNT), or a,b,c",
    "jobs": "trials at the same time",
    "refine": "further trials around the best of each method",
    "dry_run": "print the cells and the predicted time",
    "scale": "of a claim: smoke, small or full",
    "keep": "of a claim: copy its summary to DIR/SCALE/ID",
    "html": "write compare.html, which needs no network",
    "profile": "of DIRs, one a problem: who is how near to the best",
    "rounds": "interleaved rounds",
    "precision": "go on until intervals are within +- this",
    "baseline": "exit 1 where slower than this earlier run",
    "follow": "the method that trains",
    "metric": "inner product: euclidean, foof or both",
    "every": "updates between looks",
    "progress": "how much each direction lowers the batch's loss",
    "spectrum": "compare curvature with this layer's Fisher",
}


@dataclass(frozen=True)
class Given:
    """What the user asked for: SPECs, a YAML as read, assignments a.b=c, and key -> values of every flag given."""

    command: str
    specs: Sequence[str]
    file: Path | None
    assignments: Sequence[str]
    flags: Mapping[str, Any]

    @cached_property
    def tree(self) -> Mapping[str, Any]:
        """The YAML, read once: a pipe holds nothing the second time. Nothing where there is none."""
        return read_yaml(self.file) if self.file is not None else {}

    def values(self) -> dict[str, Any]:
        """One value a flag; UsageError where one was repeated."""
        return single_values(self.flags, self.command)

    def configured(
        self, tree: Mapping[str, Any], values: Mapping[str, Any], specs: Sequence[Any], command: str | None = None
    ) -> Config:
        """The configuration of this tree with these flags; ``specs`` replace its methods."""
        return configure(tree, values, specs, self.assignments, (command or self.command,))


def specs_or(specs: Sequence[Any], tree: Mapping[str, Any], default: Sequence[Any]) -> Sequence[Any]:
    """The SPECs given; none where the file has methods, be they wrong; else the command's own."""
    return specs or (default if tree.get("methods") is None else ())


@dataclass(frozen=True)
class Output:
    """Where the results go, and how they are shown."""

    out: Path | None
    overwrite: bool
    plot: bool
    format: str


def end(status: str, directory: Path | None, quick: bool = False, interrupted: str = "") -> int:
    """The last lines on standard error; returns the exit code of a status."""
    if quick:
        print("quick run: not for comparison", file=sys.stderr)
    if status == "interrupted" and interrupted:
        print(f"interrupted; {interrupted}", file=sys.stderr)
    if directory is not None:
        print(f"records: {directory}", file=sys.stderr)
    return _EXIT_CODES.get(status, _FAILED)


@dataclass(frozen=True)
class Command:
    """A command's function as the parser takes it, and the class that shows its help."""

    run: Callable[..., None]
    kind: type[TyperCommand]


def command(
    *sections: str,
    first: Sequence[str],
    examples: Sequence[str],
    out: str = "output folder (default: new, under runs/)",
) -> Callable[[Callable[..., None]], Command]:
    """Make a command of ``function(given, output, ...)``: with the shared options, and a flag for each key of sections.

    ``first`` are the options that its short help shows, in that order, below the ``examples``.
    """

    def made(function: Callable[..., None]) -> Command:
        own = [p for p in inspect.signature(function).parameters.values() if p.name not in ("given", "output")]
        arguments = [p for p in own if isinstance(p.annotation.__metadata__[0], typer.models.ArgumentInfo)]
        options = [p for p in own if p not in arguments]
        shared, flags = _shared(out), flags_of(sections)
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*arguments, *shared, *options, *flags)]

        def run(**values: Any) -> None:
            if function.__name__ != "train":
                _refuse_several(function.__name__)
            # Of a flag that was not given the parser may make an empty list.
            given_flags = {f.name: v for f in flags if (v := values.pop(f.name)) not in (None, [], ())}
            common = {p.name: values.pop(p.name) for p in shared}
            given = Given(function.__name__, common["opt"] or [], common["config"], common["set_"] or [], given_flags)
            output = Output(common["out"], common["overwrite"], common["plot"], common["format"])
            function(given=given, output=output, **values)

        # From these the parser makes the options.
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return Command(run, _short_help(first, examples))

    return made


def _refuse_several(name: str) -> None:
    """UsageError where `torchrun` started several processes of a command that runs in one."""
    if (one_of := launched()) is not None:
        raise UsageError(f"torchrun is for train alone: {name} takes one process, got WORLD_SIZE={one_of.size}")


def _shared(out: str) -> list[inspect.Parameter]:
    """The options of every command, in the order of the long help."""
    names = ", ".join(METHODS)
    spec = typer.Option(
        "--opt",
        metavar="SPEC",
        help=f"NAME[:k=v,...] or package.module:Class[:k=v,...]; names: {names}",
        autocompletion=lambda incomplete: [name for name in METHODS if name.startswith(incomplete)],
    )
    file = typer.Option("--config", metavar="FILE", help="YAML; flags win over it")
    assignment = typer.Option("--set", metavar="a.b=c", help="set any key of the configuration")
    # Eager, so that it shows before anything that is missing or wrong is complained of.
    everything = typer.Option("--help-all", help="Show every option and exit.", is_eager=True, callback=_show_all)
    listed: dict[str, tuple[Any, Any]] = {
        "opt": (Annotated[Optional[list[str]], spec], None),
        "config": (Annotated[Optional[Path], file], None),
        "set_": (Annotated[Optional[list[str]], assignment], None),
        "out": (Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help=out)], None),
        "overwrite": (Annotated[bool, typer.Option("--overwrite", help="replace the run in --out")], False),
        "plot": (Annotated[bool, typer.Option("--plot", help="write plots into the output folder")], False),
        "format": (Format, "table"),
        "debug": (Debug, False),
        "help_all": (Annotated[bool, everything], False),
    }
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in listed.items()
    ]


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        # That of the parent class: the command's own is the short one.
        TyperCommand.format_help(ctx.command, ctx, ctx.make_formatter())  # type: ignore[arg-type]
        raise typer.Exit


def _short_help(first: Sequence[str], examples: Sequence[str]) -> type[TyperCommand]:
    """A parser's command whose help is what a first user needs, on one screen; completion still knows every flag."""

    class ShortHelp(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            by_name: dict[Any, Any] = {parameter.name: parameter for parameter in self.params}
            heads = [" ".join((*by_name[name].opts, _brief_metavar(by_name[name]))) for name in first]
            column = max(map(len, heads)) + 2
            formatter.write(f"{self.get_usage(ctx)}\n\n")
            what = inspect.cleandoc(self.help or "").partition("\n\n")[0]
            formatter.write(f"  {textwrap.fill(what, 78, subsequent_indent='  ')}\n\n")
            formatter.write("".join(f"  {example}\n" for example in examples) + "\n")
            for head, name in zip(heads, first, strict=True):
                formatter.write(f"  {head:<{column}}{_BRIEFLY[name]}\n")
            formatter.write(f"  {'--help-all':<{column}}every option with its default\n")

    return ShortHelp


def _brief_metavar(parameter: Any) -> str:
    """A list of choices stands in the text beside it."""
    metavar = str(parameter.metavar or "").rpartition("]")[2]  # of [METHOD.]NAME=GRID what must be there
    return parameter.name.upper() if "|" in metavar else metavar
