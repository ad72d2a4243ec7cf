"""What comes before a command and after it: signals, standard streams, the exit status.

Whatever happens is one line on standard error and an exit status. Imports little, so that Ctrl-C
has an answer from the first moment on.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import itertools
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from hyperfusion_rt.errors import HyperFusionError

INTERRUPTED = 130  # the exit status after Ctrl-C or SIGTERM
NO_READER = 141  # as the system's own programs have it: 128 + SIGPIPE
signalled: list[int] = []  # the signals that asked this command to stop


class Results(io.TextIOWrapper):
    """Standard output: what cannot be written is an error, and without a reader the program ends.

    Raises:
        HyperFusionError: the disk is full, say.
        SystemExit: nobody reads (`| head`).
    """

    def write(self, text: str, /) -> int:
        """Write `text`."""
        try:
            return super().write(text)
        except OSError as error:
            _lost(error)

    def flush(self) -> None:
        """Hand everything on."""
        try:
            super().flush()
        except OSError as error:
            _lost(error)


class Messages(io.TextIOWrapper):
    """Standard error: a message that cannot be written is lost, and nothing else is."""

    def write(self, text: str, /) -> int:
        """Write `text`."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Hand everything on."""
        try:
            super().flush()
        except OSError:
            _forget(self)


def _forget(stream: io.TextIOWrapper) -> None:
    """Nothing can be written there any more: let the rest go, or it would fail again at exit."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def _lost(error: OSError) -> NoReturn:
    if isinstance(sys.stdout, Results):
        _forget(sys.stdout)
    if error.errno == errno.EPIPE:
        raise SystemExit(NO_READER) from None
    raise HyperFusionError(
        f"standard output: cannot be written: {error.strerror or error}",
        code="output-cannot-be-written",
    ) from None


def main() -> None:
    """Run the command line; whatever goes wrong is one line and an exit status."""
    signalled.clear()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name)
        # A scheduler's SIGTERM is treated like Ctrl-C: nothing half-made is left. What nohup
        # ignores stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    # Not where they are replaced already: in a test, or in a program that calls this function.
    own = all(s is None or type(s) is io.TextIOWrapper for s in (sys.stdout, sys.stderr))
    cut = False
    try:
        if own:
            _speak_utf8()
            _open_streams()
        status = _run()
    except HyperFusionError as error:
        status = _failed(error)
    except KeyboardInterrupt:
        status, cut = INTERRUPTED, True
    if own:
        # Nothing is left that could be interrupted.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if status == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    if cut:  # else the command has said itself how far it came
        status = _ended(status, HyperFusionError("interrupted", code="run-interrupted"))
    sys.exit(status)


def _interrupt(number: int, _: FrameType | None) -> None:
    signalled.append(number)
    raise KeyboardInterrupt


def _run() -> int:
    """The exit status of the command."""
    from hyperfusion_rt.cli import terminal

    terminal.printed = False
    try:
        _need_a_folder()
        from hyperfusion_rt.cli.app import run

        run(sys.argv[1:])
        sys.stdout.flush()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        # What Typer ends with: it has said already what is wrong with the usage.
        of = stop.__context__
        if isinstance(of and of.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if (wrong := getattr(of, "format_message", None)) is None:
            return _flushed(status)
        text = " ".join(wrong().split())
        return _ended(status, HyperFusionError(text, code="usage-wrong"))
    except KeyboardInterrupt:
        raise
    except HyperFusionError as error:
        return _failed(error)
    except MemoryError:
        return _failed(HyperFusionError("there was not enough memory", code="out-of-memory"))
    except Exception as error:
        # Raised within a callback, say, the interrupt was lost, and this is what came of it.
        if signalled:
            raise KeyboardInterrupt from None
        return _failed(unexpected(error))
    return 0


def unexpected(error: BaseException) -> HyperFusionError:
    """An error that the program does not know, in one line."""
    if os.environ.get("HFRT_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    text = " ".join(str(error).split())
    return HyperFusionError(
        f"unexpected {type(error).__name__}: {text}; please report it, with what is printed "
        "when the environment has HFRT_TRACEBACK=1",
        code="unexpected",
    )


def _failed(error: HyperFusionError) -> int:
    """Say what is wrong."""
    from hyperfusion_rt.cli.options import spell

    print(f"error: {spell(error)}", file=sys.stderr)
    return _ended(1, error)


def _ended(status: int, error: HyperFusionError) -> int:
    """The exit status of a command that ended without its result; also in JSON and in the log."""
    from hyperfusion_rt.cli import terminal

    arguments = sys.argv[1:]
    if terminal.printed:
        return _flushed(status)  # with its result
    path = _log_file(arguments)
    if "--json" not in arguments and path is None:
        return _flushed(status)
    from hyperfusion_rt.cli.options import spell

    message = spell(error)
    if path is not None and error.parameter != "log_file":
        from hyperfusion_rt.runtime.cohort.log import RunLog

        with contextlib.suppress(HyperFusionError), RunLog(path) as log:
            log.write("critical", error.code, message, exit_status=status)
    if "--json" in arguments:
        terminal.print_json({"error": {"code": error.code, "message": message}})
    return _flushed(status)


def _log_file(arguments: list[str]) -> Path | None:
    """Where `hfrt infer` was told to write its log, though it may not have come to read that."""
    if arguments[:1] != ["infer"]:
        return None
    for text, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = text.partition("=")
        if name == "--log-file":
            return Path(value if equals else following)
    return None


def _flushed(status: int) -> int:
    """Hand on what was printed; `status`, or that of not being able to."""
    try:
        sys.stdout.flush()
    except HyperFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return status or 1
    except SystemExit:
        return status or NO_READER
    return status


def _need_a_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise HyperFusionError(
            f"the working folder cannot be used: {error.strerror or error}; it was deleted, "
            "perhaps: change to another one (cd)",
            code="folder-gone",
        ) from None


def _speak_utf8() -> None:
    """Begin again in UTF-8 where the locale knows ASCII only (`LC_ALL=C`, as under cron).

    Else a file's name with an accent would be another text than the same name in the table.
    """
    ascii_only = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if ascii_only and not sys.flags.utf8_mode and sys.executable:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _open_streams() -> None:
    """Streams that name what goes wrong, and show what they cannot encode as `\\udcfc`.

    Raises:
        HyperFusionError: standard output is closed.
    """
    # The number of a closed stream would be given to the next file.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    closed = sys.stdout is None
    sys.stdout = _stream(Results, sys.stdout, 1)
    sys.stderr = _stream(Messages, sys.stderr, 2)
    if closed:
        raise HyperFusionError(
            "standard output is closed; send it to a file or /dev/null",
            code="output-cannot-be-written",
        )


def _stream(kind: type[io.TextIOWrapper], old: TextIO | None, number: int) -> io.TextIOWrapper:
    return kind(
        os.fdopen(number, "wb", closefd=False) if old is None else old.buffer,
        encoding="utf-8" if old is None else old.encoding,
        errors="backslashreplace",
        line_buffering=number == 2 if old is None else old.isatty() or number == 2,
    )
