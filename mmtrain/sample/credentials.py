"""Content credentials (C2PA): who made a file and how, signed with a certificate that the user gives. Signing comes
last, since it covers every byte; whatever is written afterwards breaks it, and a copy of the frames leaves it behind.

Needs c2pa-python (`pip install mmtrain[credentials]`), offline: no time stamp is asked for, no certificate looked up.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmtrain.errors import UserError

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's word for media that a trained model made."""

ORIGIN = "org.mmtrain.origin"
ALGORITHMS = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512", "ed25519": b"ed25519"}


@dataclass(frozen=True)
class Signer:
    """A certificate chain and its private key, both PEM files; the leaf comes first."""

    certificate: Path
    private_key: Path

    def check(self) -> None:
        """Sign nothing yet, and find every fault of the pair.

        Raises:
            UserError: a file is missing or is none of these, the two do not belong together, or c2pa is not installed.
        """
        self._opened()

    def sign(self, file: Path, origin: Mapping[str, str], title: str) -> None:
        """Put credentials into a file, which is replaced when they are whole.

        Args:
            file: MP4, PNG, WebP or GIF.
            origin: facts for the assertion ``org.mmtrain.origin``.
            title: of the work.
        """
        manifest = {
            "claim_generator_info": [{"name": "mmtrain"}],
            "title": title,
            "assertions": [
                {
                    "label": "c2pa.actions.v2",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE}]},
                },
                {"label": ORIGIN, "data": dict(origin)},
            ],
        }
        c2pa = _library()
        signed = file.with_name(f".signed-{os.getpid()}-{file.name}")
        try:
            c2pa.Builder(manifest).sign_file(file, signed, self._opened())
            os.replace(signed, file)
        except c2pa.C2paError as error:
            raise UserError(
                str(file), f"it cannot be signed ({error})", "an MP4, PNG, WebP or GIF", "choose another"
            ) from error
        finally:
            signed.unlink(missing_ok=True)

    def _opened(self) -> Any:
        c2pa = _library()
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        wanted, fix = (
            "a PEM certificate chain, leaf first, and its private key",
            "correct --certificate or --private-key",
        )
        chain, key = (_bytes(path) for path in (self.certificate, self.private_key))
        try:
            leaf, private = x509.load_pem_x509_certificates(chain)[0], serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError, IndexError) as error:
            raise UserError("credentials", f"unreadable ({str(error).splitlines()[0]})", wanted, fix) from error
        if leaf.public_key() != private.public_key():
            raise UserError("credentials", "a key that is not the certificate's", wanted, fix)
        curve = getattr(getattr(private, "curve", None), "name", "ed25519")
        try:
            return c2pa.Signer.from_info(c2pa.C2paSignerInfo(ALGORITHMS[curve], chain, key, None))
        except (c2pa.C2paError, KeyError) as error:
            raise UserError("credentials", f"refused ({error})", wanted, fix) from error


@dataclass(frozen=True)
class Credentials:
    """What a file's credentials say.

    Attributes:
        sound: whether signature and file agree, byte for byte. Who signed is stated, not vouched for.
        signer: common name and issuer of the certificate.
        generated: whether they say that a trained model made it.
        origin: the facts of mmtrain's own assertion.
        faults: what does not hold, in C2PA's words.
    """

    sound: bool
    signer: str
    generated: bool
    origin: dict[str, str]
    faults: tuple[str, ...]


def read(file: Path) -> Credentials | None:
    """The credentials of a file, or None where it has none.

    Raises:
        UserError: c2pa is not installed.
    """
    c2pa = _library()
    try:
        with c2pa.Reader(file) as reader:
            manifest, results = reader.get_active_manifest(), reader.get_validation_results()
            state = reader.get_validation_state()
    except c2pa.C2paError:  # no credentials, or a format that cannot have any
        return None
    data = {assertion["label"]: assertion["data"] for assertion in manifest["assertions"]}
    signed = manifest.get("signature_info", {})
    failures = (results or {}).get("activeManifest", {}).get("failure", [])
    return Credentials(
        sound=state in ("Valid", "Trusted"),
        signer=f"{signed.get('common_name', 'nobody named')} ({signed.get('issuer', 'no issuer named')})",
        generated=SOURCE in json.dumps(data),
        origin={name: str(value) for name, value in data.get(ORIGIN, {}).items()},
        faults=tuple(failure["code"] for failure in failures),
    )


def installed() -> bool:
    """Whether credentials can be read and written here."""
    try:
        _library()
    except UserError:
        return False
    return True


def _library() -> ModuleType:
    try:
        import c2pa
    except ImportError as error:
        fix = "pip install 'mmtrain[credentials]'"
        raise UserError("credentials", f"no c2pa here ({error})", "c2pa-python", fix) from error
    return c2pa


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(str(path), str(error.strerror), "a PEM file that can be read", "check the path") from error
