"""What programs call: the same functions as the page's, under names of their own, also as MCP tools."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from hf_prune.space import comparing, cutting, pairs
from hf_prune.space.frames import Sampling
from hf_prune.space.tabs.shared import COMPUTE, told, visitor


def build() -> None:
    """Add the endpoints to the page that is being built."""
    gr.api(compare, api_name="compare", concurrency_id=COMPUTE, concurrency_limit=1)
    gr.api(plan, api_name="plan", concurrency_limit=None)


def answer_in_json(page: gr.Blocks) -> None:
    """Let the tools of a page that is served as an MCP server answer in JSON; Gradio writes dicts as Python does.

    Args:
        page: served; nothing is done where it serves no MCP clients.
    """
    server = page.mcp_server_obj
    if server is not None:
        text = server.types.TextContent
        server.postprocess_output_data = lambda data, root_url: [  # type: ignore[method-assign]
            text(type="text", text=json.dumps(output, ensure_ascii=False)) for output in data
        ]


def compare(
    pair: str,
    prompt: str,
    temperature: float = 0.0,
    top_p: float = 0.95,
    max_tokens: int = 96,
    seed: int = 0,
    profile: gr.OAuthProfile | None = None,
    token: gr.OAuthToken | None = None,
    request: gr.Request | None = None,
) -> Iterator[dict[str, Any]]:
    """Let a pruned language model and the one it was made from answer the same prompt, and measure both.

    Streams how far it is; the last state holds everything: both answers, the tokens where they part with the KL
    divergence at each, and what both models cost in layers, parameters, bytes, memory and tokens per second.

    Args:
        pair: "demo", or the Hub id of a model that was pruned with hf-prune, such as "org/model".
        prompt: what both models go on from.
        temperature: 0 takes the likeliest token each time; up to 2.
        top_p: tokens are drawn from the likeliest ones that have this much probability together.
        max_tokens: most new tokens of each answer.
        seed: of the random draws, the same for both models.
    """
    try:
        sampling = Sampling(temperature, top_p, max_tokens, seed)
        for frame in comparing.compare(pair, prompt, sampling, visitor(profile, token, request)):
            yield dataclasses.asdict(frame)
    except Exception as error:
        raise _failure(error) from None


def plan(
    pair: str,
    method: str,
    drop_layers: int,
    profile: gr.OAuthProfile | None = None,
    token: gr.OAuthToken | None = None,
    request: gr.Request | None = None,
) -> dict[str, Any]:
    """Say which layers of a model would go, and what would be left of it, without running it.

    Works on the scores that are stored with a pruned model, so it answers at once.

    Args:
        pair: "demo", or the Hub id of a model that was pruned with hf-prune, such as "org/model".
        method: how layers are chosen: "uidl", "simple", or another one that the stored scores can tell.
        drop_layers: how many layers go.
    """
    try:
        found = pairs.find(pair, visitor(profile, token, request))
        return dataclasses.asdict(cutting.plan_cut(found, method, drop_layers))
    except Exception as error:
        raise _failure(error) from None


def _failure(error: Exception) -> gr.Error:
    """A failure as Gradio sends it."""
    return gr.Error(told(error), print_exception=False)
