"""Single weights become zero, by a score of each: every shape stays."""

from hf_prune.method import C4, Method

_NOTE = (
    "Zeros in dense tensors: the model is as large and as fast as before without a kernel for sparse weights, and "
    "cannot be healed, which would fill them again. Embeddings and head are left alone; fused experts are refused."
)

METHODS: tuple[Method, ...] = (
    Method(
        name="wanda",
        title="Of each output's weights, those with the smallest magnitude times norm of their input",
        paper="https://arxiv.org/abs/2306.11695",
        measure=None,
        planner="every_block",
        surgery="sparsify",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cuts="weights",
        surgery_kwargs={"scores": "wanda"},
        cost="2 forwards",
        note=f"{_NOTE} Block by block, each by the inputs that pruned blocks send, as the paper does; inputs='dense' "
        "takes those of the whole model, in 1 forward.",
    ),
    Method(
        name="owl",
        title="Wanda, with less from layers that have more outliers among their scores",
        paper="https://arxiv.org/abs/2310.05175",
        measure=None,
        planner="every_block",
        surgery="sparsify",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cuts="weights",
        surgery_kwargs={"scores": "wanda", "allocation": "owl"},
        cost="3 forwards",
        note=f"{_NOTE} M = 5 and lambda = 0.08 are made for 70 % of 7B models. Layers count by their weights, so that "
        "the share is met also where they differ; the released code counts them alike.",
    ),
    Method(
        name="magnitude-sparsity",
        title="Of each linear map, the weights of the smallest magnitude",
        paper="https://arxiv.org/abs/1506.02626",
        measure=None,
        planner="every_block",
        surgery="sparsify",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        cuts="weights",
        surgery_kwargs={"scores": "magnitude"},
        note=f"{_NOTE} The baseline that papers on sparsity compare with.",
    ),
    Method(
        name="lamp",
        title="Of all linear maps together, the weights that count least among the larger ones of their map",
        paper="https://arxiv.org/abs/2010.07611",
        measure=None,
        planner="every_block",
        surgery="sparsify",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        cuts="weights",
        surgery_kwargs={"scores": "lamp", "allocation": "global"},
        note=f"{_NOTE} Made for networks that are trained again behind it; holds one score (4 bytes) for each weight.",
    ),
)
