"""Certificates, keys and CAs of TLS, for listeners and for shards: read from files, and read anew when these change.

New connections use the newest files that could be used; connections that stand keep what they began with. A file that
is replaced may not fit the others for a moment, and a new file may be broken. Then the old ones stay in use.

A change is seen by the time, size and inode of the file to which the path leads, so a replaced file, a file written in
place and a link that is turned to another folder (Kubernetes' secrets) are all seen.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import gmtime, strftime, time
from typing import Final, NoReturn

from esp.core.background import in_a_thread
from esp.core.certificate import Certificate, certificates_in
from esp.core.tls_paths import Files, TlsFileError

log = logging.getLogger("esp.tls")

LOOK_SECONDS: Final = 2.0
"""How often the files are looked at."""
MAX_FILE_BYTES: Final = 8_388_608
WARN_SECONDS: Final = 14 * 86_400.0
"""How long before its end a certificate is warned of, once a day."""
DAY: Final = 86_400.0

Prepare = Callable[[ssl.SSLContext], None]


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a file's certificates end.

    Attributes:
        use: whose files these are, such as "shard a" or "listener".
        path: the file.
        not_after: when the first certificate of a chain ends, or the last of several CAs; seconds since 1970.
    """

    use: str
    path: Path
    not_after: float

    def warning(self, now: float) -> str:
        """The sentence for people if the certificates have ended or end soon; "" else."""
        if self.not_after - now >= WARN_SECONDS:
            return ""
        ends = "has ended" if self.not_after <= now else "ends"
        return f"{self.use}: {self.path} {ends} on {day_of(self.not_after)}; renew it"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The result of reading all files of one end."""

    context: ssl.SSLContext
    chain: tuple[Certificate, ...]
    cas: tuple[Certificate, ...]


Stamp = tuple[object, ...]


class Credentials:
    """One end's certificate, key and CAs, as the newest usable files have them.

    Attributes:
        use: whose files these are, for people.
        files: their paths.
        context: for the next connection. Never changed, only replaced.
        loads: how often the files have been read well; 1 after the start.
        trouble: why the files as they are now cannot be used; "" if they can.
    """

    def __init__(self, use: str, files: Files, make: Callable[[], ssl.SSLContext], prepare: Prepare | None) -> None:
        """Reads the files. `make` makes the context without them, `prepare` finishes it.

        Raises:
            TlsFileError: a file cannot be used.
        """
        self.use = use
        self.files = files
        self.loads = 1
        self.trouble = ""
        self._make = make
        self._prepare = prepare
        self._stamp = stamp_of(files)
        self._suspect: Stamp | None = None
        self._loaded = self._load()
        self.context = self._loaded.context

    @property
    def is_client(self) -> bool:
        """Whether these are for connections to servers."""
        return self._make in (_verifying_client, _trusting_client)

    @property
    def common_name(self) -> str:
        """The common name in this end's certificate; "" if the certificate has none, or there is no certificate."""
        return self._loaded.chain[0].common_name if self._loaded.chain else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The host names in this end's certificate."""
        return self._loaded.chain[0].names if self._loaded.chain else ()

    def expiries(self) -> list[Expiry]:
        """When the certificates in use end. Nothing for the system's CAs."""
        loaded, files = self._loaded, self.files
        found = []
        if files.cert is not None and loaded.chain:
            found.append(Expiry(self.use, files.cert, min(each.not_after for each in loaded.chain)))
        if files.ca is not None and loaded.cas:
            found.append(Expiry(self.use, files.ca, max(each.not_after for each in loaded.cas)))
        return found

    def look(self) -> tuple[_Loaded | None, str]:
        """Looks at the files; blocks. If they have changed and can be used: their content. Else why they cannot.

        Files that cannot be used may be half replaced. So the fault is told when a second look finds the same files.
        """
        stamp = stamp_of(self.files)
        if stamp == self._stamp:
            self._suspect = None
            return None, ""
        try:
            loaded = self._load()
            self._refuse_expired(loaded)
        except TlsFileError as error:
            is_settled = stamp == self._suspect
            self._suspect = stamp
            return None, str(error) if is_settled else self.trouble
        if stamp_of(self.files) != stamp:  # a file was replaced meanwhile, and the context may be of both
            return None, self.trouble
        self._stamp = stamp
        self._suspect = None
        return loaded, ""

    def take(self, loaded: _Loaded) -> None:
        """Uses new files from now on."""
        self._loaded = loaded
        self.context = loaded.context
        self.loads += 1

    def _load(self) -> _Loaded:
        context = self._make()
        chain, cas = _load(context, self.files)
        if self.files.ca is None and context.verify_mode is not ssl.CERT_NONE:
            context.load_default_certs()
        if self._prepare is not None:
            self._prepare(context)
        return _Loaded(context, chain, cas)

    def _refuse_expired(self, new: _Loaded) -> None:
        """A new certificate that has ended is no replacement for one that has not.

        Raises:
            TlsFileError: the new one has ended.
        """
        cert, now = self.files.cert, time()
        if cert is not None and new.chain[0].not_after <= now < self._loaded.chain[0].not_after:
            raise TlsFileError(cert, f"has ended on {day_of(new.chain[0].not_after)}; renew it")


class TlsFiles:
    """All credentials of a process, and the task that looks after them.

    Attributes:
        all: the credentials in use.
        reloads: how often changed files were put in use.
        refusals: how often changed files could not be used.
    """

    def __init__(self) -> None:
        self.all: list[Credentials] = []
        self.reloads = 0
        self.refusals = 0
        self._warned: dict[Path, float] = {}

    def client(self, use: str, files: Files, *, verify: bool = True) -> Credentials:
        """Credentials for connections to servers; the same ones for the same files.

        Raises:
            TlsFileError: a file cannot be used.
        """
        make = _verifying_client if verify else _trusting_client
        for known in self.all:
            if known.files == files and known._make is make:
                if known.use != use:
                    known.use = "shards"
                return known
        return self._add(Credentials(use, files, make, None))

    def server(self, use: str, files: Files, prepare: Prepare) -> Credentials:
        """Credentials for connections of clients; with a CA, clients need a certificate.

        `prepare` finishes each new context.

        Raises:
            TlsFileError: a file cannot be used.
        """
        return self._add(Credentials(use, files, _asking_server if files.ca else _server, prepare))

    def _add(self, credentials: Credentials) -> Credentials:
        self.all.append(credentials)
        return credentials

    def keep_clients(self, used: Iterable[Credentials]) -> None:
        """Forgets all other credentials for connections to servers."""
        self._keep(used, of_clients=True)

    def keep_servers(self, used: Iterable[Credentials]) -> None:
        """Forgets all other credentials for connections of clients."""
        self._keep(used, of_clients=False)

    def _keep(self, used: Iterable[Credentials], *, of_clients: bool) -> None:
        used = set(used)
        self.all = [each for each in self.all if each in used or each.is_client is not of_clients]
        paths = {path for each in self.all for path in each.files.paths()}
        self._warned = {path: told for path, told in self._warned.items() if path in paths}

    def expiries(self) -> list[Expiry]:
        """When the certificates of all files end; each use of a file once."""
        found = {(each.use, each.path): each for credentials in self.all for each in credentials.expiries()}
        return list(found.values())

    async def watch(self) -> None:
        """Looks at the files again and again, until cancelled. A slow disk holds up nothing else."""
        while True:
            self.warn(time())
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Looks at all files once."""
        watched = list(self.all)
        if not watched:
            return
        found = await in_a_thread("the TLS files", lambda: [credentials.look() for credentials in watched])
        for credentials, (loaded, trouble) in zip(watched, found, strict=True):
            if loaded is not None:
                credentials.take(loaded)
                self.reloads += 1
                log.info("%s: new certificates are in use%s", credentials.use, _until(credentials.expiries()))
            if trouble and trouble != credentials.trouble:
                self.refusals += 1
                log.error("%s: %s; the files read before stay in use", credentials.use, trouble)
            credentials.trouble = trouble

    def warn(self, now: float) -> None:
        """Tells, once a day, of certificates that have ended or end soon; `now` is in seconds since 1970."""
        for expiry in self.expiries():
            if expiry.warning(now) and now - self._warned.get(expiry.path, -DAY) >= DAY:
                self._warned[expiry.path] = now
                if expiry.not_after <= now:
                    log.error("%s: %s has ended on %s; renew it", expiry.use, expiry.path, day_of(expiry.not_after))
                else:
                    log.warning("%s: %s ends on %s; renew it", expiry.use, expiry.path, day_of(expiry.not_after))


def any_server(files: Files | None) -> ssl.SSLContext:
    """A client's context that trusts any server, to find out who a server is: without ALPN.

    With this end's certificate, if there is one that can be used now.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files is not None and files.cert is not None:
        with suppress(TlsFileError):
            _load_chain(context, files.cert, files.key or files.cert)
    return context


def check_files(files: Files) -> None:
    """Reads the files, and forgets them.

    Raises:
        TlsFileError: a file cannot be used.
    """
    _load(_trusting_client(), files)


def stamp_of(files: Files) -> Stamp:
    """A value that changes when one of the files does."""
    return tuple([_stamp(path) for path in files.paths()])


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _context(kind: int) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _verifying_client() -> ssl.SSLContext:
    """As Go's clients verify: names from the certificate's list of names alone, any certificate in `ca` is trusted."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    return context


def _trusting_client() -> ssl.SSLContext:
    context = _verifying_client()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _server() -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_SERVER)


def _asking_server() -> ssl.SSLContext:
    context = _server()
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load(context: ssl.SSLContext, files: Files) -> tuple[tuple[Certificate, ...], tuple[Certificate, ...]]:
    """Loads the files into a context; the certificates of this end's chain, and those of the CAs.

    Raises:
        TlsFileError: a file cannot be used.
    """
    chain: tuple[Certificate, ...] = ()
    cas: tuple[Certificate, ...] = ()
    if files.cert is not None:
        chain = _certificates(files.cert)
        _load_chain(context, files.cert, files.key or files.cert)
    if files.ca is not None:
        cas = _certificates(files.ca)
        _load_cas(context, files.ca)
    return chain, cas


def _certificates(path: Path) -> tuple[Certificate, ...]:
    """The certificates of a file.

    Raises:
        TlsFileError: the file cannot be read, or has none.
    """
    pem = _read(path)
    try:
        found = tuple(certificates_in(pem))
    except ValueError:
        raise TlsFileError(path, "has a damaged certificate; copy the file again") from None
    if not found:
        is_key = b"PRIVATE KEY-----" in pem
        cure = "is a private key; name the certificate" if is_key else "has no certificate in PEM form"
        raise TlsFileError(path, cure)
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TlsFileError(path, f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(data) > MAX_FILE_BYTES:
        raise TlsFileError(path, f"is larger than {MAX_FILE_BYTES >> 20} MiB; is this the right file?")
    if not data.strip():
        raise TlsFileError(path, "is empty")
    return data


def _load_chain(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    pem = _read(key)
    if b"PRIVATE KEY-----" not in pem:
        is_cert = b"CERTIFICATE-----" in pem
        what = "a certificate and no key; name the key" if is_cert else "no private key in PEM form"
        raise TlsFileError(key, f"has {what}")
    try:
        context.load_cert_chain(cert, key, password=lambda: _refuse_password(key))
    except TlsFileError:
        raise
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsFileError(key, f"does not belong to the certificate {cert}; name the pair") from None
        raise TlsFileError(cert, f"or {key} cannot be used: {words(error)}") from None
    except OSError as error:
        raise TlsFileError(cert, f"or {key} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _refuse_password(key: Path) -> NoReturn:
    raise TlsFileError(key, "is encrypted; decrypt it, as with openssl pkey -in KEY -out NEW")


def _load_cas(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise TlsFileError(ca, f"cannot be used: {words(error)}") from None
    except OSError as error:
        raise TlsFileError(ca, f"cannot be read: {(error.strerror or str(error)).lower()}") from None


def words(error: ssl.SSLError) -> str:
    """OpenSSL's reason, in words: "ca md too weak"."""
    return (error.reason or error.strerror or str(error)).replace("_", " ").lower()


def day_of(seconds: float) -> str:
    """A time in seconds since 1970, for people."""
    return strftime("%Y-%m-%d %H:%M UTC", gmtime(seconds))


def _until(expiries: Iterable[Expiry]) -> str:
    ends = [expiry.not_after for expiry in expiries]
    return f", until {day_of(min(ends))}" if ends else ""
