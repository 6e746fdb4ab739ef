"""The page: a header, the pair that is looked at, and the tabs; `hf-prune space` serves it."""

import os
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

from hf_prune.space import gpu  # noqa: E402, F401, I001  # comes before whatever might start CUDA

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from hf_prune.space import api, bounds, look, settings  # noqa: E402
from hf_prune.space.tabs import anatomy, compare, cut, make, picking  # noqa: E402
from hf_prune.space.tabs.shared import has_login  # noqa: E402

_HEADER = """
<div class="hp-header"><h1>hf-prune</h1>
<p>Language models are stacks of layers, and some layers hardly matter. Here a model and a copy of it with layers
removed answer the same prompt, so you see what was lost and what was saved.</p></div>
"""


def build() -> gr.Blocks:
    """The whole page, ready to be launched."""
    with gr.Blocks(title="hf-prune: a language model with and without some of its layers") as page:
        with gr.Row(elem_classes="hp-top"):
            gr.HTML(_HEADER)
            if has_login():
                gr.LoginButton(size="sm", scale=0, min_width=200)
        shared = picking.build()
        with gr.Tabs():
            for title, tab in (("Compare", compare), ("Anatomy", anatomy), ("Try a cut", cut), ("Make one", make)):
                with gr.Tab(title):
                    tab.build(shared)
        api.build()
    return page


def launch(
    host: str | None = None,
    port: int | None = None,
    *,
    share: bool | None = None,
    mcp: bool | None = None,
    open_browser: bool = False,
    block: bool = True,
    **limits: Any,
) -> gr.Blocks:
    """Build the page and serve it.

    Args:
        host: address to serve on; `GRADIO_SERVER_NAME`, else this machine alone, when None.
        port: the first free one from 7860 on when None.
        share: whether it gets a public link; `GRADIO_SHARE` when None.
        mcp: whether programs may use it as an MCP server; `GRADIO_MCP_SERVER` when None. Takes longer to start.
        open_browser: whether to show it.
        block: whether to stay until it is stopped.
        limits: fields of `hf_prune.space.settings.Settings` that differ from this machine's.

    Returns:
        The page, served.

    Raises:
        ConfigError: an environment variable of `hf_prune.space.settings` holds something else than it should.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    # Gradio is told no where nothing was said: in a hosted notebook it would share the page, with its owner's login.
    share = settings.asks_to_share(os.environ) if share is None else share
    settings.use(settings.read(os.environ, host=host, shared=share, **limits))
    page = build()
    page.queue(max_size=settings.current().queue_size, default_concurrency_limit=None)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        mcp_server=mcp,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        ssr_mode=False,
        show_error=False,
        max_file_size=1,  # nothing on the page takes files
        app_kwargs={"middleware": [Middleware(bounds.Bounded)]},
        **look.launch_options(),
    )
    api.answer_in_json(page)
    if block:
        page.block_thread()
    return page


if __name__ == "__main__":
    launch()
