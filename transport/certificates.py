"""Certificates: read the identity of a node, and be the authority that issues them. Needs ``cryptography``.

:mod:`.identity` describes the contents of a certificate. Owns the files of an authority, and reads those of
identities; opens no socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import pynng
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from .errors import ConfigurationError, InvalidRequest, ProtocolError, copied, quoted
from .files import checked_path, os_errors_as, read_file, refusal
from .identity import AUTHORITY_DAYS, CERTIFICATE_REFUSED, CLOCK_BEHIND, DAYS, MEMBER, NAME, Member, date_of
from .log import get_logger
from .plain import fault_of

DAYS_MAX: Final = 36_500
ACCOUNTS_MAX: Final = 100
"""Most patterns of accounts in one certificate."""

logger = get_logger(__name__)

_ACCOUNT_URI: Final = "openoutcry:account:"
_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_PATTERN_LENGTH_MAX: Final = 65
_EARLIER: Final = timedelta(hours=1)
"""A certificate is valid from this long before its issue, because clocks differ."""


class Identity:
    """A node's key and certificate, and the authorities that it trusts. Read once, at the node's start."""

    def __init__(self, pem: str, *, source: str = "the identity") -> None:
        """Read the blocks of ``pem``, in any order; ``source`` names it in errors.

        Raises:
            ConfigurationError: a part is missing, malformed, out of date, or does not fit the others (code
                ``identity``); or the certificate is not in force yet by this machine's clock (code ``clock_behind``).
        """
        self._source = source
        self._authorities: list[x509.Certificate] = []
        blocks = [(found[1], f"{found[0]}\n") for found in _BLOCK.finditer(pem)]
        keys = [text for kind, text in blocks if kind.endswith("PRIVATE KEY")]
        if len(keys) != 1:
            raise self._wrong(f"holds {len(keys)} private keys where one is needed")
        public = self._public_key_of(keys[0])
        try:
            certificates = [x509.load_pem_x509_certificate(text.encode()) for kind, text in blocks if kind == _CERT]
            revocations = [x509.load_pem_x509_crl(text.encode()) for kind, text in blocks if kind == _CRL]
            own = [each for each in certificates if _public_bytes(each.public_key()) == public]
            for each in certificates:  # cryptography reads a part when it is asked for
                _ = each.subject, each.extensions
            self._revoked = frozenset([(found.issuer, one.serial_number) for found in revocations for one in found])
        except Exception as error:  # much else than ValueError, such as InvalidVersion and UnsupportedAlgorithm
            raise self._wrong(f"holds a malformed block: {error}") from error
        if len(own) != 1:
            raise self._wrong(f"holds {len(own)} certificates of its private key where one is needed")
        self._authorities = [each for each in certificates if each is not own[0]]
        for each in self._authorities:
            if not _is_authority(each):
                raise self._wrong(f"holds a certificate of {each.subject.rfc4514_string()}, which is no authority")
        for found in revocations:
            if not any([_signed(found, authority) for authority in self._authorities]):
                raise self._wrong("holds a list of revoked certificates that none of its authorities has signed")
            if not all([_signed(found, each) for each in self._authorities if each.subject == found.issuer]):
                # TLS takes the list for that of both, and would shut out all members of the one that has not signed it.
                raise self._wrong("holds two authorities of the same name, and what one of them has revoked")
        self.certificate: Final = own[0].public_bytes(Encoding.DER)
        """DER."""
        try:
            self.member: Final = self.verified(self.certificate)
        except ProtocolError as error:
            if error.code == CLOCK_BEHIND:
                raise ConfigurationError(f"{source}: {error.message}", code=CLOCK_BEHIND) from error
            raise self._wrong(f"cannot be used: {error.message}") from error
        self._own = (_pem(own[0]), keys[0])
        self._trusted = "".join([_pem(each) for each in self._authorities])
        self._revocations = "".join([text for kind, text in blocks if kind == _CRL]) or None
        self.server()  # what nng cannot use is found now, not at the first link

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Read the file at ``path``. Raises as the constructor does, also where it cannot be read."""
        try:
            whole = checked_path(path, "the identity")
            pem = read_file(whole).decode("ascii", "replace")
            mode = whole.stat().st_mode & 0o777
        except ConfigurationError as error:
            raise copied(error, f"{error.message}: it cannot be read", code="identity") from error
        except (OSError, ValueError) as error:
            raise copied(refusal(error, f"the identity {path} cannot be read"), code="identity") from error
        if mode & 0o077:
            logger.warning("identity_exposed", path=path, mode=f"{mode:o}")
        return cls(pem, source=str(path))

    @property
    def name(self) -> str:
        """The node's name."""
        return self.member.name

    @property
    def seconds_left(self) -> float:
        """Seconds until the certificate expires; negative: it has expired."""
        return self.member.ends_ns / 1e9 - time.time()

    def server(self) -> pynng.TLSConfig:
        """Return the TLS of a listening socket: it accepts nodes that one of our authorities has certified."""
        return self._config(pynng.TLSConfig.MODE_SERVER)

    def client(self, name: str) -> pynng.TLSConfig:
        """Return the TLS of a dialling socket: it accepts the node called ``name``, or any member if that is MEMBER."""
        config = self._config(pynng.TLSConfig.MODE_CLIENT)
        config.set_server_name(name)
        return config

    def verified(self, certificate: bytes) -> Member:
        """Return what a certificate (DER) says, if an authority of ours has issued it, and it is in force.

        Raises:
            ProtocolError: it is malformed, of another authority, out of date or revoked, or names no node (code
                ``certificate_refused``); or by this machine's clock it is not in force yet (code ``clock_behind``).
        """
        try:
            found = x509.load_der_x509_certificate(certificate)
        except Exception as error:  # a peer may send anything: cryptography raises many other errors too
            raise _refused(f"it is malformed: {error}") from error
        issuers = [authority for authority in self._authorities if _issued(found, authority)]
        if not issuers:
            raise _refused("it is issued by no authority that is trusted here")
        try:
            member = _read(found)
            names = _alternatives(found, x509.DNSName)
        except Exception as error:
            raise _refused(f"it is malformed: {error}") from error
        if not NAME.fullmatch(member.name) or member.name == MEMBER:
            raise _refused(f"{member.name!r:.80} cannot be a node's name")
        for pattern in member.accounts:
            if fault := _fault_of(pattern):
                raise _refused(f"that of {member.name} is for {quoted(pattern)}: {fault}")
        if not {member.name, MEMBER}.issubset(names):  # an authority may issue for other ends too
            raise _refused(f"that of {member.name} is of no node: its DNS names are not {member.name} and {MEMBER}")
        if found.subject.rdns[-1].get_attributes_for_oid(x509.NameOID.COMMON_NAME) != list(found.subject.rdns[-1]):
            raise _refused(f"its subject does not end with the name, {member.name}")  # nng reads on to the end
        if (found.issuer, found.serial_number) in self._revoked:
            raise _refused(f"that of {member.name} is revoked")
        # TLS accepts it only as long as its issuer's certificate.
        begins = max(found.not_valid_before_utc, min([each.not_valid_before_utc for each in issuers]))
        ends = min(found.not_valid_after_utc, max([each.not_valid_after_utc for each in issuers]))
        now = datetime.now(UTC)
        if now < begins:
            raise ProtocolError(
                f"the certificate of {member.name} is not valid before {date_of(begins)}, and this machine's clock "
                f"says {date_of(now)}: if that is wrong, set the clock; else wait until then",
                code=CLOCK_BEHIND,
            )
        if now > ends:
            raise _refused(
                f"that of {member.name} is in force from {date_of(begins)} to {date_of(ends)}; this machine's "
                f"clock says {date_of(now)}"
            )
        return dataclasses.replace(member, ends_ns=_ns(ends))

    def _config(self, mode: int) -> pynng.TLSConfig:
        config = pynng.TLSConfig(mode, auth_mode=pynng.TLSConfig.AUTH_MODE_REQUIRED)
        try:
            config.set_ca_chain(self._trusted, self._revocations)
            config.set_own_cert(*self._own)
        except pynng.NNGException as error:
            raise self._wrong(f"cannot be used for TLS ({error}); a key is ECDSA, as on P-256, or RSA") from error
        return config

    def _public_key_of(self, private_key: str) -> bytes:
        try:
            return _public_bytes(load_pem_private_key(private_key.encode(), None).public_key())
        except TypeError as error:
            raise self._wrong("holds an encrypted private key; a node has nobody to ask for a password") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise self._wrong(f"holds a malformed private key: {error}") from error

    def _wrong(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._source} {what}", code="identity")


class Authority:
    """Decides which nodes belong to an exchange: the key that signs their certificates, in a folder.

    ====================  =============================================================================================
    file                  holds
    ====================  =============================================================================================
    ``authority.key``     the private key; its owner can create members: keep it off the nodes
    ``authority.pem``     its certificate, which every identity holds too
    ``revoked.pem``       the list of what was revoked, once something was
    ``issued/``           each certificate that was issued, as ``NAME-SERIAL.pem``; no key
    ====================  =============================================================================================
    """

    def __init__(self, folder: str | Path) -> None:
        """Open an authority.

        Raises:
            ConfigurationError: there is none, or not a whole one (code ``authority``).
        """
        self.folder = checked_path(folder, "the authority's folder")
        try:
            self._certificate = x509.load_pem_x509_certificate(read_file(self.folder / "authority.pem"))
            key = load_pem_private_key(read_file(self.folder / "authority.key"), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{folder} holds no authority: {error}", code="authority") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigurationError(f"{folder} holds no key of an authority", code="authority")
        self._key = key

    @classmethod
    def create(cls, folder: str | Path, *, name: str = "Open Outcry", days: int = AUTHORITY_DAYS) -> Authority:
        """Make a key and its certificate in ``folder``, which must not hold an authority already.

        Its subject is ``name`` and a number of its own: two authorities, as while one replaces the other, have to
        differ in it.
        """
        folder = checked_path(folder, "the authority's folder")
        _check_days(days)
        if type(name) is not str or not 1 <= len(name) <= 64 or fault_of(name):
            raise InvalidRequest(
                f"an authority has a name of 1 to 64 characters that can be seen, not {quoted(name)}",
                code="invalid_name",
            )
        with os_errors_as(f"{folder} cannot be the folder of an authority"):
            if (folder / "authority.key").exists():
                raise ConfigurationError(f"{folder} holds an authority already", code="authority")
            (folder / "issued").mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name, x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, os.urandom(8).hex()))
        certificate = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        _write_private(folder / "authority.key", _key_pem(key))
        _write(folder / "authority.pem", _pem(certificate))
        return cls(folder)

    def issue(self, name: str, *, accounts: Iterable[str] = (), days: int = DAYS) -> str:
        """Return a new identity, as PEM, of a node called ``name``; its key is nowhere else.

        Args:
            name: letters, digits and any of ``. _ -``, up to 63.
            accounts: what the node may act for, instead of its own name and what is below it: up to 100 names, or
                beginnings of names and ``*``. ``*`` alone: every account.
            days: after how many days the certificate expires.

        Raises:
            InvalidRequest: an argument is malformed.
        """
        if type(name) is not str or not NAME.fullmatch(name) or name == MEMBER:
            raise InvalidRequest(
                f"a node with an identity has a name of 1 to 63 letters, digits and any of . _ -, and is not called "
                f"{MEMBER}; not {quoted(name)}",
                code="invalid_name",
            )
        _check_days(days)
        patterns = tuple(accounts)
        if len(patterns) > ACCOUNTS_MAX:
            raise InvalidRequest(f"a certificate names at most {ACCOUNTS_MAX} accounts", code="invalid_account")
        for pattern in patterns:
            sound = type(pattern) is str and 1 <= len(pattern) <= _PATTERN_LENGTH_MAX and "*" not in pattern[:-1]
            if not sound or _fault_of(pattern):
                raise InvalidRequest(
                    f"an account is given by its name, or by the beginning of names and *, not {quoted(pattern)}"
                    f"{f': {_fault_of(pattern)}' if sound else ''}",
                    code="invalid_account",
                )
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [x509.DNSName(name), x509.DNSName(MEMBER)]
        alternatives += [x509.UniformResourceIdentifier(_ACCOUNT_URI + quote(each, safe="/*")) for each in patterns]
        certificate = (
            _builder(_named(name), self._certificate.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        text = _pem(certificate)
        _write(self.folder / "issued" / f"{name}-{certificate.serial_number:x}.pem", text)
        return "".join([_key_pem(key), text, _pem(self._certificate), self.revocations()])

    def issue_file(self, path: Path, name: str, *, accounts: Iterable[str] = (), days: int = DAYS) -> None:
        """Write a new identity, as :meth:`issue` returns it, to ``path``: readable for its owner, and not there yet.

        Raises:
            InvalidRequest: an argument is malformed, or the file is there already (code ``exists``).
        """
        path = checked_path(path, "the file of the identity")
        try:
            with os_errors_as(f"{path} cannot be written"):
                path.touch(0o600, exist_ok=False)  # before anything is issued
        except ConfigurationError as error:
            if not os.path.lexists(path):
                raise
            text = f"{path} is there already: move it away, or choose another name"
            raise InvalidRequest(text, code="exists") from error
        try:
            text = self.issue(name, accounts=accounts, days=days)
        finally:
            path.unlink()
        _write_private(path, text)

    def issued(self) -> list[tuple[Member, bool]]:
        """Return each certificate that was issued, by name and end, and whether it is revoked."""
        revoked = self._revoked()
        found = []
        for path in (self.folder / "issued").glob("*.pem"):
            with os_errors_as(f"{path} cannot be read as a certificate"):
                found.append(_read(x509.load_pem_x509_certificate(read_file(path))))
        found.sort(key=lambda member: (member.name, member.ends_ns))
        return [(member, member.serial in revoked) for member in found]

    def revoke(self, name: str, *, serial: int | None = None) -> int:
        """Revoke every certificate that was issued to ``name``, or the one with ``serial``; return how many that are.

        It takes effect where identities hold the list: see :meth:`revocations`.

        Raises:
            InvalidRequest: there is none such (code ``unknown_certificate``).
        """
        revoked = self._revoked()
        members = [found for found, _ in self.issued() if found.name == name and serial in (None, found.serial)]
        if not members:
            which = "" if serial is None else f" with the serial number {serial:x}"
            raise InvalidRequest(f"no certificate{which} was issued to {quoted(name)} here", code="unknown_certificate")
        now = datetime.now(UTC)
        for member in members:
            revoked.setdefault(member.serial, now)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _EARLIER)
            .next_update(self._certificate.not_valid_after_utc)  # it may be old: nodes do not fetch it
        )
        for number, since in revoked.items():
            one = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(since).build()
            builder = builder.add_revoked_certificate(one)
        _write(self.folder / "revoked.pem", builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM).decode())
        return len(members)

    def revocations(self) -> str:
        """Return the list of what was revoked, as PEM, to be added to each identity; empty if nothing was."""
        with os_errors_as(f"{self.folder / 'revoked.pem'} cannot be read"), contextlib.suppress(FileNotFoundError):
            return read_file(self.folder / "revoked.pem").decode("ascii")
        return ""

    def _revoked(self) -> dict[int, datetime]:
        text = self.revocations()
        if not text:
            return {}
        return {one.serial_number: one.revocation_date_utc for one in x509.load_pem_x509_crl(text.encode())}


_CERT: Final = "CERTIFICATE"
_CRL: Final = "X509 CRL"


def _read(certificate: x509.Certificate) -> Member:
    """Return the contents of a certificate, without checking who issued it."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    name = str(names[0].value) if len(names) == 1 else ""
    uris = _alternatives(certificate, x509.UniformResourceIdentifier)
    accounts = tuple([unquote(uri[len(_ACCOUNT_URI) :]) for uri in uris if uri.startswith(_ACCOUNT_URI)])
    ends_ns = _ns(certificate.not_valid_after_utc)
    return Member(name, accounts or (name, f"{name}/*"), ends_ns, certificate.serial_number)


def _alternatives(
    certificate: x509.Certificate, kind: type[x509.DNSName] | type[x509.UniformResourceIdentifier]
) -> list[str]:
    with contextlib.suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return found.value.get_values_for_type(kind)
    return []


def _is_authority(certificate: x509.Certificate) -> bool:
    with contextlib.suppress(x509.ExtensionNotFound):
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    return False


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    with contextlib.suppress(Exception):  # among them UnsupportedAlgorithm, of what somebody has written there
        certificate.verify_directly_issued_by(authority)
        return True
    return False


def _signed(revocations: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key: Any = authority.public_key()
    with contextlib.suppress(TypeError, UnsupportedAlgorithm):  # a key that signs nothing
        return revocations.issuer == authority.subject and revocations.is_signature_valid(key)
    return False


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _fault_of(pattern: str) -> str | None:
    """Return why accounts of that pattern may be taken for others; its last blank may be followed by more."""
    return fault_of(pattern.removesuffix("*") + "x" if pattern.endswith("*") else pattern)


def _check_days(days: int) -> None:
    if type(days) is not int or not 1 <= days <= DAYS_MAX:
        raise InvalidRequest(f"days is a whole number from 1 to {DAYS_MAX}, not {quoted(days)}", code="invalid_days")


def _named(name: str, *more: x509.NameAttribute[str]) -> x509.Name:
    return x509.Name([*more, x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _public_bytes(key: Any) -> bytes:
    found: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; it must not be there yet."""
    with (
        os_errors_as(f"{path} cannot be written"),
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    """Write a file in one step: a reader finds either the old text or the new."""
    new = path.with_name(f"{path.name}.new")
    with os_errors_as(f"{path} cannot be written"):
        new.unlink(missing_ok=True)
        _write_private(new, text)
        new.chmod(0o644)
        new.replace(path)


def _ns(when: datetime) -> int:
    return int(when.timestamp()) * 1_000_000_000


def _refused(why: str) -> ProtocolError:
    return ProtocolError(f"a certificate was refused: {why}", code=CERTIFICATE_REFUSED)
