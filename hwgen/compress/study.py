# SPDX-License-Identifier: Apache-2.0
"""Compression: Optuna studies that processes and machines share, and that survive a kill."""

from __future__ import annotations

import os
import platform
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

_OPENINGS = 30  # of a storage that other processes are making
_DIGEST = "shears_digest"
_SESSION = uuid.uuid4().hex  # tells this process from an earlier one of the same number


@contextmanager
def open_study(storage: str | Path | None, name: str, digest: str) -> Iterator[optuna.Study]:
    """Open or make the study, refuse one of another search, and close its storage at the end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()
    if storage is not None:
        backend = _database(storage)
    try:
        study = optuna.create_study(
            storage=backend, study_name=name, direction="maximize", load_if_exists=True
        )
        empty = not study.get_trials(deepcopy=False)  # asked first: a digest precedes all trials
        held = study.user_attrs.get(_DIGEST)
        if held is None and empty:
            study.set_user_attr(_DIGEST, digest)
        elif held != digest:
            raise ValueError(
                f"study {name!r} in {storage} must belong to this model, these images and this "
                "config; try another study_name or another storage"
            )
        yield study
    finally:
        if isinstance(backend, optuna.storages.RDBStorage):
            backend.remove_session()
            backend.engine.dispose()


def _database(storage: str | Path) -> optuna.storages.RDBStorage:
    """Open a storage; with SQLite, processes wait up to a minute for each other.

    Optuna makes the tables that it finds missing, one by one; of processes that open a new storage
    at once all but one fail at some table, and try again.

    Raises
    ------
    ValueError
        If it cannot be opened; a password is not shown.
    """
    url = str(storage)
    try:
        if "://" not in url:
            file = URL.create("sqlite", database=str(Path(url).resolve()))
            url = file.render_as_string()  # with what means something else in a URL escaped
        shown = repr(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        shown = "text that is no URL"

    def refused(cause: Exception) -> ValueError:
        why = str(cause).splitlines()[0]
        return ValueError(
            "storage must be a file or a URL that Optuna takes, such as sqlite:///search.db or "
            f"mysql://user@server/search, not {shown}: {why}; try a folder that is there, or "
            "installing the database's driver"
        )

    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    attempt = 0
    while True:
        attempt += 1
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            clash = any(word in str(error).lower() for word in ("already exists", "unique"))
            if not clash or attempt == _OPENINGS:
                raise refused(error) from error
            time.sleep(0.1 * attempt * random.random())
        except (ArgumentError, ImportError) as error:
            raise refused(error) from error


def this_worker() -> str:
    """Return a name of this process, for :func:`is_gone`."""
    return f"{platform.node()}:{os.getpid()}:{_SESSION}"


def is_gone(worker: str | None) -> bool:
    """Say whether the process that a trial names was one of this machine and has ended."""
    if worker is None or os.name != "posix":
        return False  # signal 0 would end a process of another system
    host, pid, session = worker.rsplit(":", 2)
    if host != platform.node():
        return False
    if int(pid) == os.getpid():
        return session != _SESSION
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs, under another user
    return False
