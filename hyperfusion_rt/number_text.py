"""How numbers are written for a reader."""


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is short."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 100 or not value else f"{value:#.3g}".rstrip(".")
