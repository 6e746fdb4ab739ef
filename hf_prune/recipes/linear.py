"""A linear map stands in for attention."""

from hf_prune.method import C4, Method

METHODS: tuple[Method, ...] = (
    Method(
        name="nbl",
        title="The attentions that come closest to a linear map of the stream, replaced by that map",
        paper="https://arxiv.org/abs/2505.21077",
        measure="linearity",
        planner="top_k",
        surgery="nbl",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        unit="attention",
        cost="2 forwards to measure, 1 to fit",
        note="Llama, Mistral, Qwen2 and Qwen3; the result ships its modeling code. The released code reads hidden "
        "states in float16 and inverts covariances of any rank; here they are added up in float64, and directions "
        "without variance count for nothing. It takes at least 10 tokens a channel.",
    ),
)
