"""The folder of a local stack: its lock, and the keys in it."""

import fcntl
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cmcl.ports import StackError


class FolderLock:
    """An exclusive lock of a stack's folder. The system releases it when this process ends."""

    def __init__(self, folder: Path) -> None:
        """Raises StackError while another process has it."""
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise StackError(
                f"{folder} is in use by process {holder}: stop it, or choose another --folder"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let others have the folder."""
        self._file.close()


@dataclass(frozen=True)
class OperatorKeys:
    """The operator's key and the pair that signs the list of keys; each is made once and stays.

    Files `operator`, `private.pem` and `public.pem` of a private folder. The service makes the pair, as
    it has the library for it.
    """

    folder: Path

    @property
    def operator(self) -> str | None:
        """The key that may do everything; None before `make`."""
        path = self.folder / "operator"
        return path.read_text(encoding="ascii") if path.is_file() else None

    @property
    def signing_key(self) -> str:
        """The private key in PEM that signs the list of keys."""
        return (self.folder / "private.pem").read_text(encoding="ascii")

    @property
    def public_key(self) -> Path:
        """The file by which the endpoint verifies the list."""
        return self.folder / "public.pem"

    def make(self) -> None:
        """Make what is missing. Raises StackError if CMCL_ADMIN_KEY is not the saved key."""
        exported, saved = os.environ.get("CMCL_ADMIN_KEY"), self.operator
        if saved is None:
            self._write("operator", exported or secrets.token_hex(32))
        elif exported and exported != saved:
            raise StackError(
                f"CMCL_ADMIN_KEY differs from the operator's key in {self.folder / 'operator'}: "
                "unset the variable to use the saved key, or remove the file to replace it"
            )
        if not (self.folder / "private.pem").is_file():
            command = [sys.executable, "-m", "service", "keys", "signing-key"]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                raise StackError(f"no signing key could be made: {made.stderr.strip()}")
            private, begin, public = made.stdout.partition("-----BEGIN PUBLIC KEY-----")
            self._write("public.pem", begin + public)
            self._write("private.pem", private)

    def _write(self, name: str, text: str) -> None:
        """Write the whole file or none: half a key would be read as a key at the next start."""
        written = self.folder / f".{name}"
        written.write_text(text, encoding="ascii")
        written.chmod(0o600)
        written.rename(self.folder / name)
