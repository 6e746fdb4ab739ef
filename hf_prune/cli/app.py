"""The commands, in the order of the job."""

import typer

from hf_prune.cli import inspecting, publishing, running, staging

app = typer.Typer(
    name="hf-prune",
    help="Remove the layers of a language model that matter least, heal it, prove it, push it to the Hub.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: hf-prune run org/model --drop-layers 8 --heal --output out --push me/model-pruned",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app.command(
    "run",
    epilog=_examples(
        "hf-prune run org/model --drop-layers 8 --output out",
        "hf-prune run org/model --drop-layers 8 --heal --output out --push me/model-pruned",
        "hf-prune run ./model --method simple --sparsity 0.25 --dry-run",
    ),
)(running.run_command)
app.command(
    "measure",
    epilog=_examples("hf-prune measure org/model --output scores", "hf-prune measure ./model --dataset text.jsonl"),
)(staging.measure_command)
app.command(
    "plan",
    epilog=_examples(
        "hf-prune plan scores --drop-layers 8", "hf-prune plan org/model --method simple --drop-layers 8"
    ),
)(staging.plan_command)
app.command(
    "prune",
    epilog=_examples(
        "hf-prune prune org/model --plan scores/plan.json --output pruned",
        "hf-prune prune org/model --layers 21-28 --output pruned",
    ),
)(staging.prune_command)
app.command(
    "heal",
    epilog=_examples(
        "hf-prune heal pruned --output healed", "hf-prune heal pruned --dataset allenai/c4 --dataset-config en"
    ),
)(staging.heal_command)
app.command(
    "evaluate",
    epilog=_examples("hf-prune evaluate pruned", "hf-prune evaluate pruned --original ./model --dataset text.jsonl"),
)(staging.evaluate_command)
app.command("card", epilog=_examples("hf-prune card pruned", "hf-prune card pruned --repo-id me/model-pruned"))(
    publishing.card_command
)
app.command(
    "push", epilog=_examples("hf-prune push pruned me/model-pruned", "hf-prune push pruned me/model-pruned --dry-run")
)(publishing.push_command)
app.command("info", epilog=_examples("hf-prune info org/model", "hf-prune info pruned --json"))(
    inspecting.info_command
)
app.command("methods", epilog=_examples("hf-prune methods", "hf-prune methods --families"))(inspecting.methods_command)
app.command("demo", epilog=_examples("hf-prune demo", "hf-prune demo --output demo"))(running.demo_command)
