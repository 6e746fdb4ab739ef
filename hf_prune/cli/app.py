"""The commands, in the order of the job."""

import typer

from hf_prune.cli import (
    benching,
    evaluating,
    exporting,
    inspecting,
    publishing,
    running,
    spacing,
    staging,
    sweeping,
    verifying,
)

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
    epilog=_examples(
        "hf-prune measure org/model --output scores",
        "hf-prune measure ./large --dataset text.jsonl --memory-budget 4GB",
        "torchrun --nproc-per-node 2 -m hf_prune.cli measure ./model --dataset text.jsonl",
    ),
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
        "hf-prune prune org/70b --method simple --drop-layers 24 --max-shard-size 2GB --output pruned",
    ),
)(staging.prune_command)
app.command(
    "heal",
    epilog=_examples(
        "hf-prune heal pruned --output healed",
        "hf-prune heal pruned --dataset allenai/c4 --dataset-config en --heal-tokens 2000000",
        "hf-prune heal pruned --original org/model --heal-method seam --dataset text.jsonl",
    ),
)(staging.heal_command)
app.command(
    "evaluate",
    epilog=_examples(
        "hf-prune evaluate pruned",
        "hf-prune evaluate pruned --original ./model --dataset text.jsonl",
        "hf-prune evaluate org/model --tasks boolq,piqa --output model.json",
    ),
)(evaluating.evaluate_command)
app.command(
    "compare",
    epilog=_examples(
        "hf-prune compare org/model me/model-pruned", "hf-prune compare org/model org/other --dataset text.jsonl"
    ),
)(evaluating.compare_command)
app.command(
    "verify",
    epilog=_examples(
        "hf-prune verify me/model-pruned",
        "hf-prune verify pruned --original ./model --replan",
        "hf-prune verify me/model-pruned --no-evaluate --json",
    ),
)(verifying.verify_command)
app.command(
    "sweep",
    epilog=_examples(
        "hf-prune sweep org/model --max-drop 16 --methods uidl,simple --output sweep",
        "hf-prune sweep org/model --heal --dataset text.jsonl --target-ppl-ratio 1.1",
        "hf-prune sweep org/model --target-size 4GB --dry-run",
    ),
)(sweeping.sweep_command)
app.command(
    "bench-methods",
    epilog=_examples(
        "hf-prune bench-methods org/model --methods uidl,simple,sleb --sparsity 0.25 --output methods",
        "hf-prune bench-methods org/model --drop-layers 8 --heal --seeds 0,1,2 --best 3 --dataset text.jsonl",
        "hf-prune bench-methods org/model --drop-layers 8 --dry-run",
    ),
)(benching.bench_methods_command)
app.command(
    "card",
    epilog=_examples(
        "hf-prune card pruned", "hf-prune card pruned --repo-id me/model-pruned", "hf-prune card pruned --check"
    ),
)(publishing.card_command)
app.command(
    "push", epilog=_examples("hf-prune push pruned me/model-pruned", "hf-prune push pruned me/model-pruned --dry-run")
)(publishing.push_command)
app.command(
    "export",
    epilog=_examples(
        "hf-prune export healed --to base-adapter --output small",
        "hf-prune export healed --to nf4 --output healed-nf4",
        "hf-prune export healed --to base-adapter --dry-run",
    ),
)(exporting.export_command)
space = typer.Typer(rich_markup_mode=None)
space.callback(
    invoke_without_command=True,
    epilog=_examples(
        "hf-prune space", "hf-prune space --pair me/model-pruned --mcp", "hf-prune space deploy me/my-space"
    ),
)(spacing.space_command)
space.command(
    "deploy",
    epilog=_examples(
        "hf-prune space deploy me/my-space --dry-run",
        "hf-prune space deploy me/my-space --pair me/model-pruned --hardware zero-a10g",
    ),
)(spacing.deploy_command)
app.add_typer(space, name="space")
app.command("info", epilog=_examples("hf-prune info org/model", "hf-prune info pruned --json"))(
    inspecting.info_command
)
app.command(
    "methods",
    epilog=_examples(
        "hf-prune methods",
        "hf-prune methods blockpruner",
        "hf-prune methods --planners",
        "hf-prune methods --families",
    ),
)(inspecting.methods_command)
app.command("demo", epilog=_examples("hf-prune demo", "hf-prune demo --output demo"))(running.demo_command)
