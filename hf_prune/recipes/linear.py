"""A linear map stands in for attention, or a map of the stream for whole blocks."""

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
    Method(
        name="linearpatch",
        title="A contiguous window; behind the block before, the stream is scaled in a rotated basis",
        paper="https://arxiv.org/abs/2505.24680",
        measure="cosine",
        planner="window",
        surgery="linear_patch",
        healing="uidl",
        protect_first=1,
        protect_last=0,
        dataset=C4,
        cost="2 forwards",
        note="Llama, Mistral, Qwen2 and Qwen3; the result ships its modeling code. The released code's selector takes "
        "its cosine over tokens instead of channels (no `dim`); here it is over channels. The paper's distillation of "
        "the patch is not done.",
    ),
    Method(
        name="emulated-updates",
        title="A contiguous window; behind the block before, the mean of what the blocks added is added",
        paper="https://arxiv.org/abs/2407.16286",
        measure="cosine",
        planner="window",
        surgery="emulate",
        healing="uidl",
        protect_first=1,
        protect_last=0,
        dataset=C4,
        cost="2 forwards",
        note="Llama, Mistral, Qwen2 and Qwen3; the result ships its modeling code. Surgery option rank=16 takes a map "
        "of that rank, rank=null the full least-squares one. The paper chooses by several metrics, and trains its "
        "low-rank maps; here they are solved for.",
    ),
)
