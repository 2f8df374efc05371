"""The perdure command."""


def main() -> None:
    """Entry point of the command; what it needs is imported when a command runs."""
    from perdure.cli.app import app
    from perdure.cli.failing import one_line_errors

    with one_line_errors():
        app(prog_name="perdure")


__all__ = ["main"]
