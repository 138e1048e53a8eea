"""Only a bundle that one's own key has signed is loaded, where that is asked for."""

import datetime
import shutil
import subprocess

import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.errors import InputError
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.trust import SIGNATURE, Signer, Trust
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import export
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json, write_json

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402

PEM = serialization.Encoding.PEM


def write_keys(folder, name="own", key=None, password=None):
    """The two PEM files of a new key, as openssl writes them."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    hidden = serialization.NoEncryption()
    if password:
        hidden = serialization.BestAvailableEncryption(password)
    private, public = folder / f"{name}.pem", folder / f"{name}_public.pem"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(PEM, form, hidden))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(PEM, form))
    return str(private), str(public)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "bundle")


def test_a_bundle_is_loaded_by_its_signers_key_alone(copy, tmp_path):
    private, public = write_keys(tmp_path)
    _, anothers = write_keys(tmp_path, "another")
    with pytest.raises(InputError, match=r"is not signed.*--gin\.export\.signing_key"):
        Recommender.load(copy, public_key=public)
    Signer(private).sign(copy)
    assert Recommender.load(copy, public_key=public).model
    assert Recommender.load(copy).model, "nobody has to look"
    with pytest.raises(InputError, match="no signature of .* another signed"):
        Recommender.load(copy, public_key=anothers)
    manifest = read_json(copy / "manifest.json")
    manifest["made"]["by"] = "somebody else"
    write_json(copy / "manifest.json", {**manifest, "seal": artifacts.seal(manifest)})
    assert Recommender.load(copy).model
    with pytest.raises(InputError, match="another than was signed"):
        Recommender.load(copy, public_key=public)
    for wrong in (b"", b"x" * 64):
        (copy / SIGNATURE).write_bytes(wrong)
        with pytest.raises(InputError, match="no signature of"):
            Trust(public_key=public).check(copy)


def test_a_changed_part_of_a_signed_bundle_is_found(copy, tmp_path):
    private, public = write_keys(tmp_path)
    Signer(private).sign(copy)
    whole = (copy / "user_hashes.npy").read_bytes()
    (copy / "user_hashes.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"user_hashes\.npy is damaged"):
        Recommender.load(copy, public_key=public)


@pytest.mark.parametrize("seal", ["", None, "f" * 64])
def test_an_empty_seal_is_refused(copy, seal):
    manifest = read_json(copy / "manifest.json")
    write_json(copy / "manifest.json", {**manifest, "seal": seal})
    with pytest.raises(InputError, match="is damaged"):
        Recommender.load(copy)


def test_export_signs_also_what_is_up_to_date(copy, tmp_path, monkeypatch):
    private, public = write_keys(tmp_path)

    def is_current(workdir, name, **_):
        now = datetime.datetime.now()
        return artifacts.StageRun(workdir / name, True, {}, {}, (), now)

    monkeypatch.setattr(artifacts, "begin", is_current)
    export(RunContext(tmp_path), signing_key=private)
    Trust(public_key=public).check(copy)
    assert sorted(p.name for p in tmp_path.iterdir() if "sig" in p.name) == []


@pytest.mark.slow  # an export
def test_an_export_is_signed_as_it_is_made(tmp_path):
    private, public = write_keys(tmp_path)
    workdir = make_trained_workdir(tmp_path / "shop", with_quantizer=True)
    options = {"num_beams": 10, "batch_sizes": (1,)}
    export(RunContext(workdir), **options, signing_key=private)
    assert Recommender.load(workdir / "bundle", public_key=public).model


def test_what_is_no_key_is_said_before_any_work(tmp_path):
    elliptic = write_keys(tmp_path, "ec", ec.generate_private_key(ec.SECP256R1()))
    locked = write_keys(tmp_path, "locked", password=b"secret")
    own, public = write_keys(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    for file in (public, elliptic[0], locked[0], "nothing.pem", str(tmp_path)):
        with pytest.raises(InputError, match=r"signing_key=.* is no Ed25519 key"):
            export(RunContext(tmp_path), signing_key=file)
    for file in (own, elliptic[1], "nothing.pem", str(tmp_path)):
        with pytest.raises(InputError, match="public_key=.* is no Ed25519 key") as told:
            Trust(public_key=file).check(tmp_path)
        assert "\n" not in str(told.value)


def test_what_was_read_before_is_not_called_trusted(copy):
    versions = CatalogueVersions.open(copy)
    with pytest.raises(InputError, match=r"has been read.*CatalogueVersions\.open"):
        Recommender.load(versions, expected_hash="0" * 64)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_makes_the_keys_and_the_signature(copy, tmp_path):
    for command in (
        "genpkey -algorithm ed25519 -out key.pem",
        "pkey -in key.pem -pubout -out public.pem",
        "pkeyutl -sign -rawin -inkey key.pem -in bundle/manifest.json "
        "-out bundle/manifest.sig",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True)
    by_openssl = (copy / SIGNATURE).read_bytes()
    Trust(public_key=str(tmp_path / "public.pem")).check(copy)
    Signer(str(tmp_path / "key.pem")).sign(copy)
    assert (copy / SIGNATURE).read_bytes() == by_openssl
