"""The `conemos` command: one subcommand per file of `commands/`, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from keyword import iskeyword
from types import ModuleType

from nnunetv2_conemos.errors import ConemosError
from nnunetv2_conemos.signals import end_with_parent, ended_by_signals

DESCRIPTION = """\
Train one nnU-Net v2 network on cases that are annotated for different subsets of the labels: several datasets with
labels of their own, partly annotated or unlabelled cases, image tags. The commands prepare such data, evaluate on
annotated labels only, and export models; nnU-Net itself plans, trains and predicts."""

# step -> subcommand (a module of `commands/` with add_arguments(parser) and run(args) -> exit status) -> line of help
STEPS = {
    "prepare data": {
        "import": "make a dataset from masks, segmentations or DICOM, knowing what was not annotated",
        "merge": "merge raw datasets with different labels into one",
        "declare": "record which labels are annotated in which case, from a table",
        "check": "check the environment, and that a dataset is ready for training",
        "slices": "add a 2D configuration whose patch holds whole slices, to train on image tags",
    },
    "prepare experiments": {
        "hide": "make a partially labelled copy of a complete dataset",
        "split": "make folds for semi-supervised learning, domain adaptation or generalisation",
    },
    "train (with nnUNetv2_train -tr TRAINER)": {
        "env": "print the line that lets nnU-Net find the trainers",
        "adapt": "convert a checkpoint into initial weights for nnUNetv2_train -pretrained_weights",
    },
    "predict (or with nnUNetv2_predict)": {
        "predict": "predict all labels or some, in memory that does not grow with their number",
        "complete": "fill in the missing labels of a dataset, so that stock nnU-Net can train on it",
        "convert": "write label maps or predictions as masks, .seg.nrrd, RTSTRUCT or DICOM SEG",
        "cams": "turn image tags into label maps, with a model that learnt from tags",
    },
    "evaluate": {
        "evaluate": "measure Dice, NSD and HD95 of predictions, on annotated labels only",
        "compare": "compare evaluations of several models, paired by case",
        "best": "rank trained configurations and ensembles on annotated labels",
        "benchmark": "compare methods and stock nnU-Net on one dataset: tables, figures, a report",
        "speed": "measure time and memory against the number of labels (also `conemos benchmark speed`)",
    },
    "pass on": {
        "export": "write one label of a model, or all, as a stock nnU-Net model",
    },
    "try it": {
        "demo": "run the whole chain on generated data: stock nnU-Net beside ConditionalFiLMTrainer",
    },
}
COMMANDS = {name: text for commands in STEPS.values() for name, text in commands.items()}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Exit status: 0 done, 1 findings or failures, 2 bad input (with a message), 130 or 143 ended by Ctrl-C or SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:2] == ["benchmark", "speed"]:  # a command of its own: it shares no argument with the benchmark
        argv = argv[1:]
    with ended_by_signals(" ".join(["conemos", *argv[:1]])):
        parser = argument_parser(argv)
        args = parser.parse_args(argv)
        try:
            return command_module(args.command).run(args) or 0
        except KeyboardInterrupt:  # in a thread, where signals cannot be handled
            print(f"conemos {args.command}: interrupted", file=sys.stderr)
            return 130
        except (ConemosError, ValueError, OSError, RuntimeError) as error:  # the latter from nnU-Net and libraries
            print(f"conemos {args.command}: {error}", file=sys.stderr)
            return 2


def argument_parser(argv: list[str]) -> argparse.ArgumentParser:
    """Build the parser; only the subcommand in `argv` gets its arguments, since importing torch takes seconds."""
    parser = argparse.ArgumentParser(
        prog="conemos",
        usage="conemos [-h] COMMAND ...",
        description=DESCRIPTION,
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(
        dest="command", required=True, prog="conemos", metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, description=sentence(text), allow_abbrev=False)
        if argv and argv[0] == name:
            command_module(name).add_arguments(subparser)
    return parser


def overview() -> str:
    """List the commands by step."""
    steps = [
        "\n".join([f"{step}:", *(f"  {name:<11}{text}" for name, text in commands.items())])
        for step, commands in STEPS.items()
    ]
    return "\n\n".join([*steps, "conemos COMMAND --help explains a command."])


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def command_module(name: str) -> ModuleType:
    # `import_` for import, which is a word of Python's
    return importlib.import_module(f"nnunetv2_conemos.commands.{name}{'_' * iskeyword(name)}")


end_with_parent()  # Python imports the main module, and this one, in every process that it spawns, nnU-Net's among them

if __name__ == "__main__":
    sys.exit(main())
