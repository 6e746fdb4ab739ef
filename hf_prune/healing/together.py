"""What several processes can heal together, and how they share a batch."""

from hf_prune.config import HealingConfig
from hf_prune.distributed import Group
from hf_prune.errors import ConfigError
from hf_prune.healing.teaching import Asked


def check_shared(config: HealingConfig, wanted: Asked | None, group: Group) -> None:
    """Refuse what several processes cannot do together, before any work.

    Args:
        config: resolved.
        wanted: of the original; None where nothing is.
        group: the processes.

    Raises:
        ConfigError: something is to be stored, or a batch cannot be shared evenly.
    """
    forwards_per_step(config, group)
    if config.prefix == "store":
        raise ConfigError(
            f"healing.prefix='store' writes one store, and {group.size} processes would; expected 'share' or "
            "'recompute', or one process"
        )
    if wanted is not None and wanted.mode == "stored":
        why = "healing.teacher='stored'" if config.teacher else "healing.stop_on='kl'"
        raise ConfigError(
            f"{why} writes one store of the original's predictions, and {group.size} processes would; expected "
            "teacher 'resident' or 'nf4', or one process"
        )


def forwards_per_step(config: HealingConfig, group: Group) -> int:
    """Forwards of each process in an optimizer step; the batch is the same however many processes there are.

    Args:
        config: resolved.
        group: the processes that train together.

    Raises:
        ConfigError: a batch cannot be shared evenly.
    """
    assert config.batch_size and config.micro_batch_size
    share = config.batch_size // group.size
    if config.batch_size % group.size == 0 and share % config.micro_batch_size == 0:
        return share // config.micro_batch_size
    if config.batch_size % group.size:
        near = max(1, round(config.batch_size / group.size)) * group.size
        fits = f"healing.batch_size that they divide, such as {near}"
    else:
        fits = f"healing.micro_batch_size of {' or '.join(str(n) for n in range(1, share + 1) if share % n == 0)}"
    raise ConfigError(
        f"{group.size} processes cannot share batches of {config.batch_size} evenly in forwards of "
        f"{config.micro_batch_size} sequences; expected a {fits}"
    )
