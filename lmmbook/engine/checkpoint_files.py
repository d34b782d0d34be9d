"""The files of checkpoints: written, found again, and seen to be whole.

Chapter 08. `checkpoint` says what is in them. They are TensorFlow's own: ``ckpt-7.index`` and
``ckpt-7.data-...`` are number 7, and ``checkpoint`` names those that were written to their end. It
is written last, and in one go.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmmbook._tensorflow.quiet import quiet_log

import tensorflow as tf

KEPT_CHECKPOINTS = 2  # of several workers some may have written one more than the others
NAMES = "checkpoint"  # the file with their names
PROBE = 4096  # bytes that are written to see whether anything can be
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # after a variable's name in a `tf.train.Checkpoint`


def check_folder(folder: str | Path) -> None:
    """Make the folder, and see that something can be written there.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If there is a file in its place, it cannot be made, or nothing can be written.
    """
    if not isinstance(folder, str | Path):
        raise TypeError(f"checkpoint: expected the path of a folder, got {folder!r}")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"checkpoint: expected a folder, or room for one, got a file: {error.filename}"
        ) from error
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        raise ValueError(
            f"checkpoint: expected a folder that can be written to, got {str(folder)!r}: "
            f"{getattr(error, 'strerror', error)}"
        ) from error


def check_room(folder: str | Path, size: float) -> None:
    """See that there is room for checkpoints of ``size`` bytes each.

    Raises
    ------
    ValueError
        If there is not.
    """
    wanted = (KEPT_CHECKPOINTS + 1) * size  # a new one, beside the old
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise ValueError(
            f"checkpoint: expected room for {wanted / 1e6:,.1f} MB in {str(folder)!r}, got "
            f"{free / 1e6:,.1f} MB; make room, or give a folder on another disk"
        )


def write(folder: Path, number: int, values: Mapping[str, Any]) -> None:
    """Write a checkpoint, and take away older ones, and what is left of any that was broken off.

    Raises
    ------
    OSError, tf.errors.OpError
        If it cannot be written. Those that were there are there still.
    """
    saved = tf.train.Checkpoint(**{name: tf.Variable(x) for name, x in values.items()})
    manager = tf.train.CheckpointManager(saved, str(folder), KEPT_CHECKPOINTS)
    manager.save(checkpoint_number=number)
    kept = tuple(f"{Path(path).name}." for path in manager.checkpoints)
    for path in folder.glob("ckpt-*"):
        if path.is_dir():  # where TensorFlow puts the parts of one that it has not put together
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(kept) or ".tempstate" in path.name:
            path.unlink(missing_ok=True)


def found(folder: Path) -> dict[int, str]:
    """Number to path, of the checkpoints that were written to their end.

    Raises
    ------
    ValueError
        If the file with their names is damaged.
    """
    names = folder / NAMES
    if not names.exists() and len(list(folder.glob("ckpt-*.index"))) < KEPT_CHECKPOINTS:
        return {}  # nothing, or a first one that was broken off before it had its name
    try:
        with quiet_log():  # TensorFlow passes over a file that it cannot read, with a warning
            state = tf.train.get_checkpoint_state(str(folder))
        paths = [*state.all_model_checkpoint_paths, state.model_checkpoint_path]
        return {int(path.rsplit("-", 1)[1]): path for path in paths}
    except (AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"checkpoint: expected the names of checkpoints in {names}, got a file that is "
            f"{'damaged' if names.exists() else 'missing'}; take the folder away to begin anew"
        ) from error


def read(path: str) -> dict[str, Any]:
    """The values that `write` was given.

    Raises
    ------
    IndexError, tf.errors.OpError
        If the files are missing or damaged.
    """
    reader = tf.train.load_checkpoint(path)
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith(VALUE)]
    return {name.removesuffix(VALUE): reader.get_tensor(name) for name in names}
