"""The errors that users meet. Every message says what, where, and what to do."""


class HyperFusionError(Exception):
    """Base class: the command line prints it as one line, without a traceback."""


class ScanError(HyperFusionError):
    """A scan that cannot be used: unreadable, malformed, or not where the box is."""


class TableError(HyperFusionError):
    """A table, or one of its rows, that cannot be used."""


class CohortError(HyperFusionError):
    """Scans and rows that cannot be joined."""


class ConfigError(HyperFusionError):
    """A configuration that is wrong or cannot be found."""


class ArtifactError(HyperFusionError):
    """An artifact that is damaged, incomplete, or of another format version."""


class EngineError(HyperFusionError):
    """An engine that is unknown, not installed, or not in the artifact."""


class MissingExtraError(HyperFusionError):
    """A package that an optional feature needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs '{package}', which is not installed: "
            f"pip install 'hyperfusion_rt[{extra}]'"
        )


def reason_of(error: Exception, where: object) -> str:
    """One line for a case that failed, whatever raised: an error of ours says it all itself."""
    if isinstance(error, MemoryError):
        return f"{where}: there was not enough memory for it"
    if isinstance(error, HyperFusionError):
        return str(error)
    return f"{where}: unexpected {type(error).__name__}: {error}"
