"""A certificate authority of the tests' own: a root, a leaf that may sign content, and the leaf's key."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A chain, leaf first, and the leaf's private key, as PEM files."""
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("Studio root", root_key, root_key, authority=True)
    leaf = _certificate("Studio", leaf_key, root_key, authority=False)
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (leaf, root)))
    plain = serialization.NoEncryption()
    how = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(leaf_key.private_bytes(*how, plain))
    return chain, key


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    uses = dict.fromkeys(USES, False) | ({"key_cert_sign": True} if authority else {"digital_signature": True})
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    started = datetime.now(UTC) - timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("Studio root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(started)
        .not_valid_after(started + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_id, critical=False)
    )
    if not authority:
        email = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(email, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(common: str) -> x509.Name:
    whose = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A brand")
    return x509.Name([whose, x509.NameAttribute(NameOID.COMMON_NAME, common)])
