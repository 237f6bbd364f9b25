"""Tries hostile files on the decoder: an error that names itself, or Gaussians; nothing else.

python tests/fuzz.py random --inputs N [--seed S]    mutations of the corpus, without guidance
python tests/fuzz.py guided [options of libFuzzer]   guided by coverage (pip install atheris)

Both start from tests/golden and tests/corpus. What an input may cost: a second of processor time
and memory in proportion to its length. An input that breaks this is written beside the corpus.
"""

import argparse
import random
import resource
import struct
import sys
import time
import zlib
from pathlib import Path

import torch

from instantgi.codec import FormatError, open_file

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
SECONDS = 1.0  # of processor time
LIMIT = 6 * 2**30  # bytes of address space, torch's own included
LONGEST = 20_000  # bytes of a mutated input
KINDS = b"HEAD GRID FULL POSI SIZE LUMA CHRO SHAP SEED NETS FEAT SCAL OFFS PART recp".split() + [
    b"END "
]


def one_input(data: bytes) -> None:
    """Raises if these bytes do anything but decode or end in FormatError."""
    began = time.process_time()
    for whole in (True, False):
        try:
            file = open_file(data, whole=whole)
            parts = [file.gaussians()]
            if len(file.blocks) > 1:
                parts.append(file.gaussians((0, 0, 5, 5)))
            assert file.metadata is not None
        except FormatError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            continue
        for gaussians in parts:
            assert len(gaussians) <= min(file.num_gaussians, 8 * len(data))
            fields = (gaussians.means, gaussians.cholesky, gaussians.colors)
            assert all(bool(field.isfinite().all()) for field in fields)
        break
    spent = time.process_time() - began
    assert spent < SECONDS * torch.get_num_threads(), f"{spent} s"


def corpus() -> list[bytes]:
    paths = sorted((FOLDER / "golden").glob("*.gi")) + sorted(CORPUS.glob("*"))
    return [path.read_bytes() for path in paths]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut or added; mostly in a chunk whose checksum is made right again."""
    if draw.random() < 0.15:
        return _scramble(bytearray(data), draw)[:LONGEST]
    chunks = _chunks(data)
    if not chunks:
        return _scramble(bytearray(data), draw)[:LONGEST]
    for _ in range(draw.choice([1, 1, 2, 3])):
        i = draw.randrange(len(chunks))
        kind, payload = chunks[i]
        choice = draw.random()
        if choice < 0.8:
            chunks[i] = (kind, _scramble(bytearray(payload), draw))
        elif choice < 0.85:
            chunks[i] = (draw.choice(KINDS), payload)
        elif choice < 0.9:
            chunks.insert(draw.randrange(len(chunks) + 1), chunks[i])
        elif choice < 0.95 and len(chunks) > 1:
            del chunks[i]
        else:
            j = draw.randrange(len(chunks))
            chunks[i], chunks[j] = chunks[j], chunks[i]
    made = data[:8]
    for kind, payload in chunks:
        checksum = zlib.crc32(kind + payload)
        made += struct.pack("<I4s", len(payload), kind) + payload + struct.pack("<I", checksum)
    return made[:LONGEST]


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """As far as lengths make sense."""
    found, at = [], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, at)
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _scramble(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 1, 2, 4, 8])):
        at = draw.randrange(len(data) + 1)
        choice = draw.random()
        if choice < 0.35 and at < len(data):
            data[at] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        elif choice < 0.5 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif choice < 0.7 and at + 4 <= len(data):
            special = [0, 1, 255, 2**16, 2**26, 2**31 - 1, 2**31, 2**32 - 1]
            value = draw.choice([*special, draw.getrandbits(32)])
            data[at : at + 4] = value.to_bytes(4, "little")
        elif choice < 0.8:
            del data[at : at + draw.randrange(1, 40)]
        elif choice < 0.9:
            data[at:at] = draw.randbytes(draw.randrange(1, 20))
        else:
            begin = draw.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + draw.randrange(1, 40)]
    return bytes(data)


def run_random(inputs: int, seed: int) -> None:
    draw, seeds, began = random.Random(seed), corpus(), time.perf_counter()
    decoded, slowest = 0, 0.0
    for i in range(inputs):
        data = mutate(draw.choice(seeds), draw)
        start = time.process_time()
        try:
            one_input(data)
        except BaseException:
            path = CORPUS / f"broken_{seed}_{i}"
            path.write_bytes(data)
            print(f"{path}: breaks the decoder", flush=True)
            raise
        slowest = max(slowest, time.process_time() - start)
        try:
            decoded += open_file(data) is not None
        except FormatError:
            pass
    spent = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{inputs} inputs of seed {seed}: none broke it, {decoded} opened; slowest {slowest:.3f} s "
        f"of processor time, peak {peak} MiB, {spent:.0f} s"
    )


def run_guided(options: list[str]) -> None:
    import atheris  # pyright: ignore[reportMissingImports]

    for name, module in list(sys.modules.items()):
        if name.startswith("instantgi.codec"):
            for value in vars(module).values():
                if callable(value) and getattr(value, "__module__", "") == name:
                    _instrument(atheris, module, value)

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        return mutate(data, random.Random(seed))[:longest]

    folders = [str(CORPUS), str(FOLDER / "golden")]
    arguments = [sys.argv[0], *options, f"-max_len={LONGEST}", "-timeout=10", *folders]
    atheris.Setup(arguments, one_input, custom_mutator=mutator)
    atheris.Fuzz()


def _instrument(atheris, module, value) -> None:
    if isinstance(value, type):
        for name, method in list(vars(value).items()):
            if type(method).__name__ == "function":
                setattr(value, name, atheris.instrument_func(method))
    elif type(value).__name__ == "function":
        setattr(module, value.__name__, atheris.instrument_func(value))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("how", choices=("random", "guided"))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    CORPUS.mkdir(exist_ok=True)
    if options.how == "guided":
        run_guided(rest)
    else:
        run_random(options.inputs, options.seed)


if __name__ == "__main__":
    main()
