"""The `conemos` command: one subcommand per module, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys

from nnunetv2_conemos.subprocesses import clean_end

# subcommand -> (module with add_arguments(parser) and run(args) -> exit status, one line of help)
COMMANDS = {
    "check": ("check", "is the environment sound, does every case match one source, do the maps fit?"),
    "merge": ("merge", "several raw datasets with different labels become one with `sources`"),
    "hide": ("hide", "a partially labelled copy of a complete dataset, for experiments"),
    "split": ("split", "folds of a dataset for semi-supervised learning, domain adaptation or generalisation"),
    "declare": ("declare", "write `sources` into dataset.json from a table case -> annotated labels"),
    "slices": ("slices", "a 2D configuration whose patch holds whole slices, to train on image tags"),
    "predict": ("predict", "nnUNetv2_predict, for some of the labels"),
    "complete": ("complete", "fill in the labels that are missing, for a dataset that stock nnU-Net can train on"),
    "cams": ("cams", "label maps of tagged cases from a model that learnt from tags, as a source to train on"),
    "export": ("export", "one label of a model, or all, as a stock nnU-Net model"),
    "evaluate": ("evaluate", "Dice, NSD and HD95 of predictions, on annotated labels only"),
    "compare": ("compare", "evaluations of several models on the same cases, paired by case"),
    "best": ("best", "rank trained configurations and ensembles on annotated labels"),
    "adapt": ("adapt", "turn a checkpoint into a start for -pretrained_weights"),
    "env": ("env", "print the line that lets nnU-Net find the trainers"),
    "benchmark": ("benchmark", "all methods and stock nnU-Net on one dataset: tables, figures, a report"),
    "demo": ("demo", "the whole chain on a generated phantom: stock nnU-Net beside ConditionalFiLMTrainer"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: done; 1: findings or failure of the command; 2: bad input, said in a message; 130: interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="conemos", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        if argv and argv[0] == name:  # torch and nnU-Net take seconds to import
            importlib.import_module(f"nnunetv2_conemos.commands.{module}").add_arguments(subparser)
    args, others = parser.parse_known_args(argv)
    module = importlib.import_module(f"nnunetv2_conemos.commands.{COMMANDS[args.command][0]}")
    if others and not getattr(module, "HANDS_ON", False):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    args.handed_on = others
    try:
        with clean_end():
            return module.run(args) or 0
    except KeyboardInterrupt:
        print(f"conemos {args.command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:  # nnU-Net raises RuntimeError for unknown names
        print(f"conemos {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
